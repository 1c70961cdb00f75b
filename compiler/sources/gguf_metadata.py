"""The metadata of a GGUF file's architecture, read field by field; what nobody read is refused or told.

A key that cupola does not read may change what the model computes. `Metadata` therefore remembers which keys were asked for:
of the rest, those that the format defines are refused unless their value changes nothing, and those that it does not know are
told in a note.
"""

from __future__ import annotations

from typing import Any, Never

import numpy as np

from cupola.compiler.sources.gguf_header import RECONVERT, USE_CHECKPOINT, GGUFHeader
from cupola.runtime.errors import SourceError, UnsupportedError

_WITHOUT_EFFECT = (
    "vocab_size",  # the embedding's rows say it
    "tensor_data_layout",  # llama.cpp reads only one
    "rope.scaling.finetuned",
    "pooling_type",  # of embeddings, not of logits
    "attention.layer_norm_epsilon",  # of architectures with the root mean square's, or, as OLMo's, with one that never differs
)
"""Keys that say nothing about what the architectures in `gguf_architectures` compute, unless their lines there read them."""

_ONE = (0, 1)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "logit_scale": _ONE,
    "embedding_scale": _ONE,
    "residual_scale": _ONE,
    "rope.scaling.attn_factor": _ONE,
    "rope.scaling.yarn_attn_factor": _ONE,
    "rope.scaling.yarn_ext_factor": (1,),
}
"""The values of further keys that change nothing; of all others 0, false and nothing at all."""


def _is_neutral(key: str, value: object) -> bool:
    return value in _NEUTRAL[key] if key in _NEUTRAL else not value


class Metadata:
    """The architecture's own fields, each checked for its type and noted as read."""

    def __init__(self, header: GGUFHeader, architecture: str) -> None:
        self.header, self.architecture = header, architecture
        self._read: set[str] = set()

    def fail(self, key: str, message: str) -> Never:
        """Raises SourceError about a field."""
        raise SourceError(message, file=self.header.path, field=f"{self.architecture}.{key}", fix=RECONVERT)

    def refuse(self, key: str, message: str) -> Never:
        """Raises UnsupportedError about a field."""
        raise UnsupportedError(message, file=self.header.path, field=f"{self.architecture}.{key}", fix=USE_CHECKPOINT)

    def value(self, key: str) -> Any:
        """The file's value of a key of the architecture, of any type; None if there is none."""
        self._read.add(key)
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.value(key)
        value = default if value is None else value
        if value is None:
            self.fail(key, "is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(key, f"is {value!r:.40}, not one whole number")
        return value

    def integers(self, key: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """A whole number for each of `count` layers, of which the file has one for all, or a list."""
        value = self.value(key)
        if not isinstance(value, list):
            return (self.integer(key, default),) * count
        if len(value) != count or not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
            self.fail(key, f"is {value!r:.40}, not a whole number for each of {count} layers")
        return tuple(value)

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 field as the shortest decimal that stands for it, as `config.json` would have it."""
        value = self.value(key)
        value = default if value is None else value
        if value is None:
            self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            self.fail(key, f"is {value!r:.40}, not a positive number")
        return float(str(np.float32(value)))

    def check_all_read(self) -> tuple[str, ...]:
        """Notes on keys that nobody asked for and the format does not know.

        Raises:
            UnsupportedError: a key that the format knows, whose value may change what the model computes.
        """
        prefix = f"{self.architecture}."
        unread = {key.removeprefix(prefix): value for key, value in self.header.metadata.items() if key.startswith(prefix)}
        unread = {key: value for key, value in unread.items() if key not in self._read and key not in _WITHOUT_EFFECT}
        unread = {key: value for key, value in unread.items() if not _is_neutral(key, value)}
        known = _known_keys()
        for key in sorted(unread.keys() & known):
            self.refuse(key, "is not read from GGUF")
        names = ", ".join(f"{prefix}{key}" for key in sorted(unread))
        return (f"metadata that is not known was left out: {names:.300}",) if unread else ()


def _known_keys() -> frozenset[str]:
    """The keys that the gguf package knows of an architecture, without its name."""
    from gguf.constants import Keys

    groups = [group for group in vars(Keys).values() if isinstance(group, type)]
    keys = [key for group in groups for key in vars(group).values() if isinstance(key, str)]
    return frozenset(key.removeprefix("{arch}.") for key in keys if key.startswith("{arch}."))
