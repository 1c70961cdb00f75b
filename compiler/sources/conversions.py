"""Parameters that a checkpoint holds in another arrangement than the model: single experts, gates apart from ups, transposed matrices.

transformers' own table says which (`transformers.conversion_mapping`): a `WeightConverter` has patterns of names and the operations that
make parameters of such tensors. Here each becomes a lazy tensor: what is stacked of experts is read expert by expert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.composition import combined, joined, stacked, turned
from cupola.runtime.errors import SourceError, UnsupportedError

Lists = list[list[LazyTensor]]  # by source pattern, then by target pattern


@dataclass
class Conversion:
    """The tensors found so far of which a converter makes one or several parameters; `target` is the first of these."""

    converter: Any
    target: str
    file: str
    found: dict[str, dict[int, LazyTensor]] = field(default_factory=dict)

    def add(self, pattern: str, name: str, tensor: LazyTensor) -> None:
        """Takes in a tensor whose name, as renamed, fits a source pattern; where that has a star, a number stands for it.

        Raises:
            SourceError: another one has that number.
        """
        place = re.search(pattern.replace("*.", r"(\d+)\."), name) if "*" in pattern else None
        number = int(place[1]) if place is not None else 0
        other = self.found.setdefault(pattern, {}).setdefault(number, tensor)
        if other is not tensor:
            raise SourceError(f"is there twice: {other.name} is the same part of {self.target}", file=self.file, field=tensor.name)

    def tensors(self, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
        """The parameters, by their names.

        Raises:
            SourceError: a tensor is missing, or there is one too many.
            UnsupportedError: the converter does what is not known here.
        """
        targets = [self.target.replace(self.converter.target_patterns[0], each) for each in self.converter.target_patterns]
        lists = [self._listed(pattern, parameters.get(self.target)) for pattern in self.converter.source_patterns]
        parts = [tensor for each in lists for tensor in each]
        for operation in self.converter.operations:
            kind = type(operation).__name__
            if kind not in _OPERATIONS or getattr(operation, "num_shards_attribute", None) is not None:
                problem = f"is made of the checkpoint's tensors by {kind}, which cupola does not know"
                raise UnsupportedError(problem, file=self.file, field=self.target)
            lists = _OPERATIONS[kind](operation, lists, [parameters.get(target) for target in targets])
        made = [tensor for each in lists for tensor in each]
        if len(made) != len(targets):
            raise UnsupportedError(f"{len(made)} tensors are made for {len(targets)} parameters", file=self.file, field=self.target)
        names = tuple(part.name for part in parts)
        return {name: replace(tensor, name=name, names=names) for name, tensor in zip(targets, made, strict=True)}

    def _listed(self, pattern: str, shape: tuple[int, ...] | None) -> list[LazyTensor]:
        found = self.found.get(pattern, {})
        if not found:
            raise SourceError(f"is missing from the weights: no tensor is called {pattern}", file=self.file, field=self.target)
        merges = any(type(operation).__name__ == "MergeModulelist" for operation in self.converter.operations)
        count = shape[0] if merges and shape else max(found) + 1
        if missing := sorted(set(range(count)) - set(found)):
            problem = f"is missing from the weights: no tensor is called {pattern.replace('*', str(missing[0]))}"
            raise SourceError(problem, file=self.file, field=self.target, fix="check that all files of the checkpoint are there")
        if more := sorted(set(found) - set(range(count))):
            problem = f"is one too many: the configuration has {count} experts"
            raise SourceError(problem, file=self.file, field=found[more[0]].name)
        first = found[0]
        if different := [tensor for tensor in found.values() if tensor.shape != first.shape]:
            problem = f"has the shape {list(different[0].shape)}, where the others have {list(first.shape)}"
            raise SourceError(problem, file=self.file, field=different[0].name)
        return [found[number] for number in range(count)]


def _by_slabs(tensors: Sequence[LazyTensor], axes: Sequence[int], function: Callable[[list[LazyTensor], int], LazyTensor]) -> LazyTensor:
    """`function(tensors, axes that are gone)`, slab by slab where all have them and none of the axes is the first."""
    if min(axes) > 0 and all(tensor.slabs for tensor in tensors):
        return stacked([function(list(slabs), 1) for slabs in zip(*(tensor.slabs for tensor in tensors), strict=True)])
    return function(list(tensors), 0)


def _concatenate(operation: Any, lists: Lists, _: Any) -> Lists:
    def concatenated(tensors: list[LazyTensor], gone: int) -> LazyTensor:
        axis, shape = operation.dim - gone, list(tensors[0].shape)
        if axis == 0:
            return joined(tensors)
        shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
        return combined(tensors, lambda *arrays: np.concatenate(arrays, axis), tuple(shape))

    return [[_by_slabs([tensor for each in lists for tensor in each], [operation.dim], concatenated)]]


def _transpose(operation: Any, lists: Lists, shapes: Sequence[tuple[int, ...] | None]) -> Lists:
    def swapped(tensors: list[LazyTensor], gone: int) -> LazyTensor:
        axes, shape = (operation.dim0 - gone, operation.dim1 - gone), list(tensors[0].shape)
        shape[axes[0]], shape[axes[1]] = shape[axes[1]], shape[axes[0]]
        if sorted(axis % len(shape) for axis in axes) == [len(shape) - 2, len(shape) - 1]:
            return turned(tensors[0])
        return combined(tensors, lambda x: np.swapaxes(x, *axes), tuple(shape))

    def one(tensor: LazyTensor) -> LazyTensor:
        keeps = operation.check_dims and tensor.shape == shapes[0]
        return tensor if keeps else _by_slabs([tensor], [operation.dim0, operation.dim1], swapped)

    return [[one(tensor) for tensor in each] for each in lists]


def _interleave(operation: Any, lists: Lists, _: Any) -> Lists:
    """Pairs beside each other to halves (or, inverse, back)."""

    def sorted_apart(tensors: list[LazyTensor], gone: int) -> LazyTensor:
        axis, shape = operation.dim - gone, tensors[0].shape
        half = shape[axis] // 2
        sizes = (*shape[:axis], *((2, half) if operation.inverse else (half, 2)), *shape[axis + 1 :])
        return combined(tensors, lambda x: np.swapaxes(x.reshape(sizes), axis, axis + 1).reshape(shape), shape)

    return [[_by_slabs([tensor], [operation.dim], sorted_apart) for tensor in each] for each in lists]


def _chunk(operation: Any, lists: Lists, shapes: Sequence[tuple[int, ...] | None]) -> Lists:
    ((whole,),) = lists

    def part(number: int) -> LazyTensor:
        def cut(tensors: list[LazyTensor], gone: int) -> LazyTensor:
            axis, shape = operation.dim - gone, list(tensors[0].shape)
            size = -(-shape[axis] // len(shapes))
            start, stop = number * size, min((number + 1) * size, shape[axis])
            shape[axis] = stop - start
            return combined(tensors, lambda x: x.take(range(start, stop), axis), tuple(shape))

        return _by_slabs([whole], [operation.dim], cut)

    return [[part(number)] for number in range(len(shapes))]


# transformers' operations by their classes: lists of tensors, and the shapes of the parameters, to lists of tensors.
_OPERATIONS: dict[str, Callable[[Any, Lists, Sequence[tuple[int, ...] | None]], Lists]] = {
    "MergeModulelist": lambda operation, lists, _: [[stacked(each)] for each in lists],
    "Concatenate": _concatenate,
    "Transpose": _transpose,
    "Interleave": _interleave,
    "Chunk": _chunk,
}
