"""The arguments of a library's functions: addresses and sizes, held against the manifest first. Compiled code checks nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.plan import ALIGNMENT
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device.interface import Tensor
from cupola.runtime.errors import EngineError


class Arguments:
    """Addresses of inputs and the sizes that a step brings, as arrays of C. What is bound stays in memory.

    Args:
        inputs: of `forward`.
        dims: the names of the sizes, in the plan's order.
    """

    def __init__(self, inputs: Sequence[TensorSpec], dims: Sequence[str]) -> None:
        self._inputs, self._names = inputs, dims
        self._bound: list[Tensor | None] = [None] * len(inputs)
        self.pointers, self.dims = (ctypes.c_void_p * len(inputs))(), (ctypes.c_int64 * len(dims))()
        self.sizes: Mapping[str, int] = {}

    def bind(self, tensors: Mapping[int, Tensor], sizes: Mapping[str, int]) -> dict[str, int]:
        """Binds tensors to inputs, by index; they must agree on all sizes, with each other and with `sizes`. Returns all sizes.

        Raises:
            EngineError: naming the input that doesn't fit.
        """
        found = measure([self._inputs[i] for i in tensors], list(tensors.values()), sizes)
        for i, tensor in tensors.items():
            self.pointers[i], self._bound[i] = tensor.address, tensor
        for i, name in enumerate(self._names):
            self.dims[i] = found.get(name, 0)
        self.sizes = found
        return found


def measure(specs: Sequence[TensorSpec], tensors: Sequence[Tensor], sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """The sizes by which `specs` describe `tensors`, beside those that are known.

    Raises:
        EngineError: naming the tensor whose dtype, rank, size or alignment is another one.
    """
    found = dict(sizes or {})
    if len(specs) != len(tensors):
        raise EngineError(f"{len(tensors)} tensors were given where {len(specs)} are taken")
    for spec, tensor in zip(specs, tensors, strict=True):
        if tensor.dtype != spec.dtype or len(tensor.shape) != len(spec.shape):
            raise _misfit(spec, tensor)
        if tensor.address % ALIGNMENT:
            raise EngineError(f"{spec.name!r} begins at an address that is no multiple of {ALIGNMENT}")
        for size, given in zip(spec.shape, tensor.shape, strict=True):
            if isinstance(size, str) and size.isidentifier():
                found.setdefault(size, given)
    for spec, tensor in zip(specs, tensors, strict=True):
        for size, given in zip(spec.shape, tensor.shape, strict=True):
            if given != evaluate(size, found):
                raise _misfit(spec, tensor)
    return found


def _misfit(spec: TensorSpec, tensor: Tensor) -> EngineError:
    return EngineError(f"{spec.name!r} is {tensor.dtype} {list(tensor.shape)} where {spec.dtype} {list(spec.shape)} is taken")
