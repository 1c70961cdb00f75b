"""How fields of a configuration follow from a GGUF file: rules, of which `gguf_architectures` makes its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_header import RECONVERT
from cupola.compiler.sources.gguf_metadata import Metadata
from cupola.runtime.errors import SourceError


@dataclass(frozen=True)
class Facts:
    """A file's metadata and tensors, with the sizes that every architecture's configuration has.

    Attributes:
        read: the metadata, which remembers what was read.
        tensors: the names of the file's tensors.
        values_of: reads a small tensor by its name.
        hidden_size, num_layers, num_heads, num_kv_heads, head_dim, rotary_dim: sizes; without attention, no heads.
        kv_heads: the K/V heads of each layer; 0 for one without attention.
        widths: what `feed_forward_length` says, by layer.
    """

    read: Metadata
    tensors: frozenset[str]
    values_of: Callable[[str], Array]
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    kv_heads: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    def is_further(self, layer: str) -> bool:
        """True of a layer that predicts further tokens, and is no part of the model."""
        return bool(layer) and bool(self.read.value("nextn_predict_layers")) and int(layer) >= self.num_layers

    def rows_of(self, tensor: str) -> int:
        """The rows of a tensor; 0 if there is none."""
        return next((info.shape[0] for info in self.read.header.tensors if info.name == tensor), 0)

    def numbers(self, key: str) -> list[float]:
        """A number for each layer, of a key that has no architecture's name before it."""
        values = self.read.header.metadata.get(key)
        if not isinstance(values, list) or len(values) < self.num_layers or not all(isinstance(each, float) for each in values):
            problem = f"is not a number for each of {self.num_layers} layers"
            raise SourceError(problem, file=self.read.header.path, field=key, fix=RECONVERT)
        return values[: self.num_layers]

    def layers_with(self, part: str) -> list[int]:
        """The layers that have a part."""
        return [layer for layer in range(self.num_layers) if f"blk.{layer}.{part}" in self.tensors]


Rule = Callable[[Facts], Any]


def real(key: str, default: float | None = None) -> Rule:
    """The value of a key, a positive number."""
    return lambda facts: facts.read.real(key, default)


def optional_real(key: str) -> Rule:
    """The value of a key; None where it is absent or 0."""
    return lambda facts: facts.read.real(key) if facts.read.value(key) else None


def optional_integer(key: str) -> Rule:
    """The value of a key, a whole number; None where it is absent or 0."""
    return lambda facts: facts.read.integer(key) if facts.read.value(key) else None


def integer(key: str, default: int | None = None) -> Rule:
    """The value of a key, a whole number."""
    return lambda facts: facts.read.integer(key, default)


def layers_without(part: str) -> Rule:
    """The layers that lack a part."""
    return lambda facts: sorted(set(range(facts.num_layers)) - set(facts.layers_with(part)))


def flag(key: str, default: bool) -> Rule:
    """The value of a key, true or false."""

    def rule(facts: Facts) -> bool:
        value = facts.read.value(key)
        if value is not None and not isinstance(value, bool):
            facts.read.fail(key, f"is {value!r:.40}, not true or false")
        return default if value is None else value

    return rule


def stated(key: str, *values: object) -> Callable[[Mapping[str, object]], bool]:
    """A test of metadata: true if a key has one of these values, or, if none is given, any but 0 and false."""
    return lambda metadata: metadata.get(key) in values if values else bool(metadata.get(key))


def always(value: object) -> Rule:
    """A value that the class leaves open, and the architecture does not."""
    return lambda _: value


def has(tensor: str) -> Rule:
    """True if the file has a tensor."""
    return lambda facts: tensor in facts.tensors


def windows(every: int, default: int = 0) -> Rule:
    """`layer_types`: sliding windows, but for each `every`th layer; a pattern in the file comes first. `default` is a window not stated."""

    def rule(facts: Facts) -> list[str]:
        pattern = facts.read.value("attention.sliding_window_pattern")
        window = facts.read.integer("attention.sliding_window", default)
        slides = [bool(window) and (layer + 1) % every != 0 for layer in range(facts.num_layers)]
        if isinstance(pattern, list) and len(pattern) == facts.num_layers:
            slides = [bool(window) and bool(each) for each in pattern]
        elif pattern is not None:
            facts.read.refuse("attention.sliding_window_pattern", f"{pattern!r:.40} does not say a kind for each layer")
        return ["sliding_attention" if each else "full_attention" for each in slides]

    return rule


def attention_scalar(largest: int) -> Rule:
    """Gemma's `query_pre_attn_scalar`, which no key says: the head size; in the largest model, told by its layers, hidden size by heads."""
    return lambda facts: facts.hidden_size // facts.num_heads if facts.num_layers == largest else facts.head_dim
