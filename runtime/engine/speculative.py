"""The option `speculative`: its values. Needs no model, and imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cupola.runtime.errors import OptionError

Propose = Callable[[list[int], int], Sequence[int]]  # a user's own: from a sequence's tokens, and how many are wanted at most
Speculative = str | Propose | None
NAMES = ("ngram", "suffix", "lookahead", "auto")
DRAFT = "draft:"  # before the path of an artifact
EARLY_EXIT = "early-exit:"  # before a number of layers
FIELD = "speculative"


def check_speculative(speculative: object) -> None:
    """Checks a value of the option `speculative`, as far as that goes without a model. Raises OptionError."""
    if speculative is None or callable(speculative):
        return
    if isinstance(speculative, str) and speculative.startswith(DRAFT) and speculative != DRAFT:
        if not Path(speculative.removeprefix(DRAFT)).is_dir():
            raise OptionError(
                f"is {speculative!r:.200}, and there is no such folder", field=FIELD, fix="give that of a small model's artifact"
            )
        return
    if isinstance(speculative, str) and speculative.startswith(EARLY_EXIT):
        num_layers(speculative)
        return
    if isinstance(speculative, str) and speculative in NAMES:
        return
    fix = f"give one of {', '.join(NAMES)}, {DRAFT} and the folder of a small model's artifact, or {EARLY_EXIT} and a number of layers"
    raise OptionError(f"is {speculative!r:.200}", field=FIELD, fix=fix)


def num_layers(speculative: str) -> int:
    """The layers that draft, of "early-exit:16". Raises OptionError."""
    given = speculative.removeprefix(EARLY_EXIT)
    if not (given.isascii() and given.isdigit() and int(given[:9]) > 0 and len(given) < 9):
        raise OptionError(f"is {speculative!r:.200}", field=FIELD, fix=f"give a number of layers, such as {EARLY_EXIT}16")
    return int(given)
