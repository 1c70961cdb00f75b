"""The parameters of llama.cpp's samplers, in llama-server's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cupola.runtime.errors import RequestError

ORDER = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")  # llama.cpp's default
LETTERS = dict(zip("edskypmxt", ORDER, strict=True))
OTHER_NAMES = {"typical": "typ_p", "typical_p": "typ_p", "nucleus": "top_p", "temp": "temperature"}
MAX_SAMPLERS, MAX_BREAKERS, MAX_BREAKER_CHARACTERS = 32, 64, 64
MAX_INT = 2**63 - 1

INTEGERS = (
    ("dry_allowed_length", 0, MAX_INT),
    ("dry_penalty_last_n", -1, MAX_INT),
)
NUMBERS = (
    ("typical_p", 0.0, 1.0),
    ("xtc_probability", 0.0, 1.0),
    ("xtc_threshold", 0.0, 1.0),
    ("dry_multiplier", 0.0, 100.0),
    ("dry_base", 1.0, 100.0),
    ("mirostat_tau", 0.0, 100.0),
    ("mirostat_eta", 0.0, 1.0),
    ("top_n_sigma", -1.0, 100.0),
    ("dynatemp_range", 0.0, 100.0),
    ("dynatemp_exponent", 0.0, 100.0),
)


@dataclass(frozen=True, kw_only=True)
class ChainParams:
    """Settings of samplers. Any that is switched on, or `samplers`, makes the request's samplers run in llama.cpp's order.

    Args:
        typical_p: keep the tokens whose surprise is nearest to the one expected, with this much probability together; 1 is off.
        xtc_probability: how often all but the least likely of the tokens with at least `xtc_threshold` are dropped; 0 is off.
        xtc_threshold: above 0.5 there is at most one such token, and nothing is dropped.
        dry_multiplier: what is subtracted from the logit of a token that would make a repetition of `dry_allowed_length` tokens longer;
            it grows by a factor of `dry_base` with each further token. 0 is off.
        dry_penalty_last_n: how many of the last tokens are looked through for repetitions; -1 is all, 0 is off.
        dry_sequence_breakers: texts over which no repetition goes.
        mirostat: 2 keeps the surprise of the output's tokens near `mirostat_tau` bits, correcting by `mirostat_eta` of what is missing;
            as in llama.cpp, only the temperature is applied beside it. 0 is off; version 1 is not supported.
        top_n_sigma: keep the tokens whose logits are within so many standard deviations of the largest; 0 or less is off.
        dynatemp_range: the temperature lies this much around `temperature`, low where the model is sure, as the entropy to the power of
            `dynatemp_exponent` says; 0 is off.
        samplers: which of ORDER to apply, in this order; as a string their letters, "edskypmxt".
    """

    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    top_n_sigma: float = -1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    samplers: str | Sequence[str] | None = None

    @property
    def uses_chain(self) -> bool:
        """True if samplers run as a chain: one is switched on that is in no other order, or an order is given."""
        off = self.typical_p == 1 and self.xtc_probability == self.dry_multiplier == self.mirostat == self.dynatemp_range == 0
        return not (off and self.top_n_sigma <= 0 and self.samplers is None)

    @property
    def sampler_names(self) -> tuple[str, ...]:
        """The chain's samplers, in order. Raises RequestError naming one that isn't there."""
        if self.mirostat:
            return ("temperature", "mirostat")
        if self.samplers is None:
            return ORDER
        fix = f"give some of {', '.join(ORDER)}"
        if not isinstance(self.samplers, str | list | tuple) or len(self.samplers) > MAX_SAMPLERS:
            raise RequestError(f"is {self.samplers!r:.60}", field="samplers", fix=fix)
        names = [LETTERS.get(name, name) for name in self.samplers] if isinstance(self.samplers, str) else self.samplers
        found = []
        for name in names:
            plain = name.replace("-", "_") if isinstance(name, str) else ""
            plain = OTHER_NAMES.get(plain, plain)
            if plain not in ORDER:
                raise RequestError(f"has {name!r:.60}, which is not supported", field="samplers", fix=fix)
            found.append(plain)
        return tuple(found)

    def check_chain(self) -> None:
        """Checks what no table of ranges says. Raises RequestError naming the field and the fix."""
        if type(self.mirostat) is not int or self.mirostat not in (0, 2):
            problem = "is 1, which is not supported" if self.mirostat == 1 else f"is {self.mirostat!r:.60}"
            raise RequestError(problem, field="mirostat", fix="give 2, or 0 for none")
        breakers = self.dry_sequence_breakers
        if not isinstance(breakers, list | tuple) or len(breakers) > MAX_BREAKERS:
            raise RequestError(f"is {breakers!r:.60}", field="dry_sequence_breakers", fix=f"give a list of at most {MAX_BREAKERS} strings")
        for text in breakers:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_BREAKER_CHARACTERS:
                fix = f"give strings of 1 to {MAX_BREAKER_CHARACTERS} characters"
                raise RequestError(f"has {text!r:.60}", field="dry_sequence_breakers", fix=fix)
        _ = self.sampler_names
