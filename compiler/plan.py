"""Reads the plan off `forward` whose memory is planned: by then it is a straight line of kernel calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import tvm
from tvm import IRModule, relax, tirx

from cupola.runtime.artifact.plan import ABI, BUFFER, CONSTANT, INPUT, Place, Plan, PlanBuffer, PlanCall, PlanKernel
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets.native.interface import describe_kernel, is_tensor, symbolic_sizes
from cupola.targets.native.sizes import size_of

Size = int | str


@dataclass(frozen=True)
class Extracted:
    """A plan, the values of its constants, and which inputs the function returned, if it still did: those that kernels wrote to."""

    plan: Plan
    constants: tuple[npt.NDArray[Any], ...]
    returned: tuple[int, ...] = ()


def extract_plan(mod: IRModule) -> Extracted:
    """The plan of `forward`; its library has all kernels of `mod`.

    Raises:
        UnsupportedError: it is more than a straight line of kernel calls.
    """
    reader = _Reader(mod, mod["forward"])
    constants = tuple(TensorSpec(f"constant_{i}", str(c.dtype), c.shape) for i, c in enumerate(reader.constants))
    buffers, calls = _used(reader.buffers, reader.calls)
    plan = Plan(ABI, tuple(reader.dims), tuple(reader.storages), constants, buffers, _kernels_of(mod), calls)
    return Extracted(plan, tuple(reader.constants), reader.returned)


def plan_of_kernels(mod: IRModule) -> Extracted:
    """The plan of a library that has the kernels of `mod`, and calls none."""
    return Extracted(Plan(ABI, (), (), (), (), _kernels_of(mod), ()), ())


def _kernels_of(mod: IRModule) -> tuple[PlanKernel, ...]:
    kernels = [(var.name_hint, f) for var, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]
    return tuple(describe_kernel(*kernel) for kernel in sorted(kernels, key=lambda kernel: kernel[0]))


class _Reader:
    """Goes over a function's bindings once. Of each tensor it keeps the place and the shape that it has under that name."""

    def __init__(self, mod: IRModule, func: relax.Function) -> None:
        self._mod = mod
        self._tensors: dict[Any, tuple[Place, tuple[Size, ...]]] = {}
        self._values: dict[relax.Var, relax.Expr] = {}  # what tuples and shapes are bound to
        self._storages: dict[relax.Var, int] = {}
        self.storages: list[Size] = []
        self.constants: list[npt.NDArray[Any]] = []
        self.buffers: list[PlanBuffer] = []
        self.calls: list[PlanCall] = []
        for i, param in enumerate(func.params):
            self._tensors[param] = Place(INPUT, i), _sizes(param.ty.shape)
        sizes = (size for param in func.params for size in param.ty.shape)
        self.dims = list(dict.fromkeys(size.name for size in sizes if isinstance(size, tirx.Var)))
        for block in func.body.blocks:
            for binding in block.bindings:
                self._bind(binding.var, binding.value)
        self.returned = self._returned(func.body.body)

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.TupleGetItem):
            value = self._value(value.tuple_value).fields[value.index]
        if isinstance(value, relax.Call):
            self._bind_call(var, value)
        elif value in self._tensors:
            self._tensors[var] = self._tensors[value]
        elif isinstance(value, relax.Tuple | relax.ShapeExpr | relax.Var):
            self._values[var] = self._value(value)
        else:
            raise _refusal(type(value).__name__)

    def _value(self, value: relax.Expr) -> relax.Expr:
        return self._values.get(value, value) if isinstance(value, relax.Var) else value

    def _bind_call(self, var: relax.Var, call: relax.Call) -> None:
        if isinstance(call.op, tvm.ir.GlobalVar):
            self._call(call.op, call.args)
            return
        match call.op.name:
            case "relax.memory.alloc_storage":
                self._storages[var] = len(self.storages)
                self.storages.append(size_of(self._value(call.args[0]).values[0]))
            case "relax.memory.alloc_tensor":
                storage, offset, shape, dtype = call.args[:4]
                sizes, start = _sizes(self._value(shape).values), size_of(_plain(offset))
                buffer = PlanBuffer(var.name, str(dtype.value), sizes, self._storages[storage], start, -1, -1)
                self._tensors[var] = Place(BUFFER, len(self.buffers)), sizes
                self.buffers.append(buffer)
            case "relax.reshape":
                self._tensors[var] = self._tensor(call.args[0])[0], _sizes(self._value(call.args[1]).values)
            case other:
                raise _refusal(other)

    def _tensor(self, value: relax.Expr) -> tuple[Place, tuple[Size, ...]]:
        if isinstance(value, tvm.ir.GenericConst) and value not in self._tensors:
            self._tensors[value] = Place(CONSTANT, len(self.constants)), _sizes(value.ty.shape)
            self.constants.append(value.value.numpy())
        if value not in self._tensors:
            raise _refusal(f"{value}, which is no tensor in planned memory")
        return self._tensors[value]

    def _call(self, var: tvm.ir.GlobalVar, args: Sequence[relax.Expr]) -> None:
        kernel = self._mod[var]
        pointers, numbers, known = [], [], dict[tirx.Var, Size]()
        for param, value in zip(kernel.params, args, strict=True):
            if not is_tensor(param):
                numbers.append(size_of(_plain(value)))
                continue
            place, shape = self._tensor(value)
            pointers.append(place)
            for size, given in zip(param.ty.shape, shape, strict=True):
                if isinstance(size, tirx.Var):
                    known.setdefault(size, given)
        sizes = tuple(known[size] for size in symbolic_sizes(kernel))
        self.calls.append(PlanCall(var.name_hint, tuple(pointers), tuple(numbers), sizes))

    def _returned(self, result: relax.Expr) -> tuple[int, ...]:
        """Callers bring the memory of results, so that what a function would still return can only be something else that they brought."""
        result = self._value(result)
        if not isinstance(result, relax.Var | relax.Tuple):
            return ()
        places = [self._tensor(field)[0] for field in (result.fields if isinstance(result, relax.Tuple) else [result])]
        if not all(place.kind == INPUT for place in places):
            raise _refusal("a result that is a part of its own memory")
        return tuple(place.index for place in places)


def _used(buffers: Sequence[PlanBuffer], calls: Sequence[PlanCall]) -> tuple[tuple[PlanBuffer, ...], tuple[PlanCall, ...]]:
    """The buffers that some call uses, from the first to the last one, and the calls of those."""
    uses: dict[int, list[int]] = {}
    for i, call in enumerate(calls):
        for place in call.pointers:
            if place.kind == BUFFER:
                uses.setdefault(place.index, []).append(i)
    index = {old: new for new, old in enumerate(sorted(uses))}
    kept = tuple(replace(buffers[old], first=uses[old][0], last=uses[old][-1]) for old in index)

    def moved(places: Iterable[Place]) -> tuple[Place, ...]:
        return tuple(replace(place, index=index[place.index]) if place.kind == BUFFER else place for place in places)

    return kept, tuple(replace(call, pointers=moved(call.pointers)) for call in calls)


def _sizes(shape: Iterable[Any]) -> tuple[Size, ...]:
    return tuple(map(size_of, shape))


def _plain(value: Any) -> Any:
    """The number that Relax may wrap."""
    return getattr(value, "value", value)


def _refusal(what: str) -> UnsupportedError:
    return UnsupportedError(f"forward holds {what}, and is no straight line of kernel calls", fix="report this model to cupola's authors")
