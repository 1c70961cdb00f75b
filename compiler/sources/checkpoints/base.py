"""The interface of a method of quantizing checkpoints, and its inputs: the fields of its configuration and the tensors of a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cupola.compiler.sources.base import LazyTensor
from cupola.runtime.errors import SourceError, UnsupportedError

FIX = "use the config.json that came with the weights"
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Settings:
    """The content of `quantization_config`. It remembers which fields were read, so that the others can be named."""

    fields: Mapping[str, Any]
    file: object
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the safetensors files
    seen: set[str] = field(default_factory=lambda: {"quant_method"})

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default` where it is missing or null."""
        self.seen.add(name)
        value = self.fields.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None, choices: Sequence[int] = (), lowest: int = 1) -> int:
        """A whole number. Raises SourceError if it is none, UnsupportedError if it is none of `choices`."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise SourceError(f"is {value!r:.40}, not a whole number", file=self.file, field=self.label(name), fix=FIX)
        if choices and value not in choices:
            raise self.refused(name, value, choices)
        if value < lowest:
            raise SourceError(f"is {value}, less than {lowest}", file=self.file, field=self.label(name), fix=FIX)
        return value

    def group_size(self) -> int:
        """`group_size`: values of a row that share a scale; -1: whole rows do. Raises SourceError."""
        size = self.whole("group_size", 128, lowest=-1)
        if size == 0:
            raise SourceError("is 0", file=self.file, field=self.label("group_size"), fix=FIX)
        return size

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of some texts, in small letters. Raises UnsupportedError."""
        value = str(self.get(name, default)).lower()
        if value not in choices:
            raise self.refused(name, value, choices)
        return value

    def record(self, name: str) -> Mapping[str, Any]:
        """An object, {} where there is none. Raises SourceError."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise SourceError(f"is {value!r:.40}, not an object", file=self.file, field=self.label(name), fix=FIX)
        return value

    def refused(self, name: str, value: object, choices: Sequence[object]) -> UnsupportedError:
        """The error for a value that can't be honoured."""
        known = ", ".join(map(str, choices))
        return UnsupportedError(
            f"is {value!r:.60}, which cupola does not read", file=self.file, field=self.label(name), fix=f"it reads {known}"
        )

    def label(self, name: str) -> str:
        """A field's name for errors."""
        return f"quantization_config.{name}"


@dataclass(frozen=True)
class Parts:
    """The tensors that make one quantized weight, by the ends of their names, such as `.qweight`.

    Attributes:
        name: what their names begin with: the module's, such as `model.layers.0.self_attn.q_proj`.
    """

    name: str
    tensors: Mapping[str, LazyTensor]
    file: object

    def get(self, part: str) -> LazyTensor | None:
        """A part, or None."""
        return self.tensors.get(part)

    def need(self, part: str, types: Sequence[str], shape: Sequence[int | None] | None = None) -> LazyTensor:
        """A part of one of these safetensors types, and of a shape, of which None is any size.

        Raises:
            SourceError: it is missing or has another type or shape.
        """
        tensor = self.tensors.get(part)
        if tensor is None:
            raise self.damaged(part, "is missing from the weights")
        if tensor.stored_as not in types:
            raise self.damaged(part, f"has the type {tensor.stored_as}, not {' or '.join(types)}")
        if 0 in tensor.shape:
            raise self.damaged(part, f"has the shape {list(tensor.shape)}, which holds nothing")
        fits = shape is None or (len(shape) == len(tensor.shape) and all(a in (None, b) for a, b in zip(shape, tensor.shape, strict=True)))
        if not fits:
            wanted = ", ".join("…" if size is None else str(size) for size in shape or ())
            raise self.damaged(part, f"has the shape {list(tensor.shape)}, not [{wanted}]")
        return tensor

    def damaged(self, part: str, problem: str) -> SourceError:
        """The error for a part that can't be right."""
        fix = "check that config.json and weights belong together, or download them again"
        return SourceError(problem, file=self.file, field=self.name + part, fix=fix)


class Reader(Protocol):
    """A method with the settings of one checkpoint.

    Attributes:
        marks: ends of names, such as `.qweight`, of tensors that each stand for a quantized weight.
        parts: ends of the names of everything that may belong to one.
        beside: ends of names of tensors that no weight needs -> what they are, for a note.
        result: the end of the weight's own name.
    """

    @property
    def marks(self) -> tuple[str, ...]: ...  # noqa: D102  above

    @property
    def parts(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def beside(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def result(self) -> str: ...  # noqa: D102

    def read(self, parts: Parts) -> LazyTensor:
        """The weight that these tensors make, whose values nobody reads yet. Raises InputError."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to quantize checkpoints.

    Attributes:
        title: for people.
        names: its values of `quant_method`.
        open: its reader, by the settings. Raises InputError if one can't be honoured.
        unimportant: fields that say how the weights were quantized, and nothing of what they are.
        refused: ends of names of tensors that mean what cupola does not do -> what.
    """

    title: str
    names: tuple[str, ...]
    open: Callable[[Settings], Reader]
    unimportant: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
