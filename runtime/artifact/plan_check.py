"""Checks of a plan beyond the types of its fields: indices, sizes, names, and that calls fit their kernels."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.manifest import COMPILE_AGAIN
from cupola.runtime.artifact.plan import ABI, BUFFER, CONSTANT, INPUT, Place, Plan, PlanBuffer, PlanCall, PlanKernel, num_bytes
from cupola.runtime.artifact.tensors import ITEM_BYTES, FunctionSpec, TensorSpec
from cupola.runtime.errors import ArtifactError

Shape = tuple[int | str, ...]
Fault = tuple[str, str]  # the field, and what is wrong with it
MAX_RANK, MAX_BYTES = 8, 2**48
NUMBERS = ("int32", "int64", "bool", "int8", "uint8")
_NAME = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)


def check_plan(plan: Plan, forward: FunctionSpec, file: Path) -> None:
    """Raises ArtifactError naming `file` and the first field that is out of range or contradicts another."""
    for field, problem in _faults(plan, forward):
        raise ArtifactError(problem, file=file, field=field, fix=COMPILE_AGAIN)


def _faults(plan: Plan, forward: FunctionSpec) -> Iterator[Fault]:
    """All faults, in an order that lets a later check rely on the earlier ones."""
    if plan.abi != ABI:
        yield "abi", f"is {reprlib.repr(plan.abi)}, this cupola runs {ABI}"
    given = [size for tensor in forward.inputs for size in tensor.shape]
    for i, dim in enumerate(plan.dims):
        if dim not in given:
            yield f"dims[{i}]", f"{reprlib.repr(dim)} is no dimension of an input of forward"
    yield from _unfit_names("dims", plan.dims)
    for i, size in enumerate(plan.storages):
        yield from _unfit_size(f"storages[{i}]", size, plan.dims)
    for i, constant in enumerate(plan.constants):
        yield from _tensor_faults(f"constants[{i}]", constant, ())
    yield from _unfit_names("kernels", [kernel.name for kernel in plan.kernels])
    for i, kernel in enumerate(plan.kernels):
        yield from _kernel_faults(f"kernels[{i}]", kernel)
    for i, buffer in enumerate(plan.buffers):
        yield from _buffer_faults(f"buffers[{i}]", buffer, plan)
    kernels = {kernel.name: kernel for kernel in plan.kernels}
    for i, call in enumerate(plan.calls):
        yield from _call_faults(f"calls[{i}]", call, plan, forward, kernels)
    yield from _exit_faults(plan)


def _kernel_faults(field: str, kernel: PlanKernel) -> Iterator[Fault]:
    yield from _unfit_names(f"{field}.sizes", kernel.sizes)
    for i, tensor in enumerate(kernel.pointers):
        yield from _tensor_faults(f"{field}.pointers[{i}]", tensor, kernel.sizes)
    for i, dtype in enumerate(kernel.numbers):
        if dtype not in NUMBERS:
            yield f"{field}.numbers[{i}]", f"{reprlib.repr(dtype)} is unknown"


def _buffer_faults(field: str, buffer: PlanBuffer, plan: Plan) -> Iterator[Fault]:
    yield from _tensor_faults(field, buffer, plan.dims)
    yield from _unfit_size(f"{field}.offset", buffer.offset, plan.dims)
    if not 0 <= buffer.first <= buffer.last < len(plan.calls):
        yield f"{field}.first", f"it is used from call {buffer.first} to {buffer.last} of {len(plan.calls)}"
    if not 0 <= buffer.storage < len(plan.storages):
        yield f"{field}.storage", f"there is none of index {buffer.storage}"
    for sizes in _samples(plan.dims):
        start, room = evaluate(buffer.offset, sizes), evaluate(plan.storages[buffer.storage], sizes)
        if start + num_bytes(buffer, sizes) > room:
            yield f"{field}.offset", f"it ends outside of storage {buffer.storage}"


def _call_faults(field: str, call: PlanCall, plan: Plan, forward: FunctionSpec, kernels: Mapping[str, PlanKernel]) -> Iterator[Fault]:
    if call.kernel not in kernels:
        yield f"{field}.kernel", f"{reprlib.repr(call.kernel)} is not among the kernels"
    kernel = kernels[call.kernel]
    for name in ("pointers", "numbers", "sizes"):
        count, wanted = len(getattr(call, name)), len(getattr(kernel, name))
        if count != wanted:
            yield f"{field}.{name}", f"there are {count}, the kernel takes {wanted}"
    for name in ("numbers", "sizes"):
        for i, size in enumerate(getattr(call, name)):
            yield from _unfit_size(f"{field}.{name}[{i}]", size, plan.dims)
    for i, (place, tensor) in enumerate(zip(call.pointers, kernel.pointers, strict=True)):
        yield from _missing_place(f"{field}.pointers[{i}]", place, plan, forward)
        given = plan.tensor(place, forward.inputs)
        if given.dtype != tensor.dtype or not _are_as_many(given.shape, plan.dims, tensor.shape, kernel.sizes, call.sizes):
            yield f"{field}.pointers[{i}]", f"{place.kind} {place.index} is not what the kernel takes as {reprlib.repr(tensor.name)}"


def _exit_faults(plan: Plan) -> Iterator[Fault]:
    """Exits come in order, and what they hand over is as large for each token."""
    for i, end in enumerate(plan.exits):
        if not 0 <= end.buffer < len(plan.buffers):
            yield f"exits[{i}].buffer", f"there is no buffer of index {reprlib.repr(end.buffer)}"
        if not (plan.exits[i - 1].call if i else 0) < end.call < len(plan.calls):
            yield f"exits[{i}].call", f"is {reprlib.repr(end.call)} of {len(plan.calls)} calls, or not behind the one before"
        (rows, *sizes), (_, *wanted) = (plan.buffers[at].shape or ("",) for at in (end.buffer, plan.exits[0].buffer))
        if rows not in (("n", "r") if end is plan.exits[-1] else ("n",)) or sizes != wanted:
            yield f"exits[{i}].buffer", "is not a row for each token, as that of the first"
        if plan.buffers[end.buffer].dtype != plan.buffers[plan.exits[0].buffer].dtype:
            yield f"exits[{i}].buffer", "has another dtype than that of the first"


def _missing_place(field: str, place: Place, plan: Plan, forward: FunctionSpec) -> Iterator[Fault]:
    counts = {INPUT: len(forward.inputs), CONSTANT: len(plan.constants), BUFFER: len(plan.buffers)}
    if place.kind not in counts:
        yield f"{field}.kind", f"{reprlib.repr(place.kind)} is none of {', '.join(counts)}"
    if not 0 <= place.index < counts[place.kind]:
        yield f"{field}.index", f"there is no {place.kind} of index {reprlib.repr(place.index)}"


@lru_cache(1024)  # layers are alike
def _are_as_many(given: Shape, dims: tuple[str, ...], wanted: Shape, names: tuple[str, ...], values: Shape) -> bool:
    """True if a tensor has as many elements as a kernel takes whose sizes have these values, whatever `dims` are; shapes may be views."""
    for sizes in _samples(dims):
        own = {name: evaluate(size, sizes) for name, size in zip(names, values, strict=True)}
        if math.prod(evaluate(size, sizes) for size in given) != math.prod(evaluate(size, own) for size in wanted):
            return False
    return True


@lru_cache(64)
def _samples(dims: tuple[str, ...]) -> list[dict[str, int]]:
    """Sizes that are affine in others are equal if they are so for these, or nearly certainly."""
    return [{dim: base + step * i for i, dim in enumerate(dims)} for base, step in ((1, 0), (7, 10), (1009, 333))]


def _tensor_faults(field: str, tensor: TensorSpec | PlanBuffer, names: tuple[str, ...]) -> Iterator[Fault]:
    if tensor.dtype not in ITEM_BYTES:
        yield f"{field}.dtype", f"{reprlib.repr(tensor.dtype)} is unknown"
    if len(tensor.shape) > MAX_RANK:
        yield f"{field}.shape", f"has {len(tensor.shape)} dimensions"
    for size in tensor.shape:
        yield from _unfit_size(f"{field}.shape", size, names)
    for sizes in _samples(names):
        if math.prod(evaluate(size, sizes) for size in tensor.shape) > MAX_BYTES:
            yield f"{field}.shape", "is too large"


def _unfit_size(field: str, size: int | str, names: tuple[str, ...]) -> Iterator[Fault]:
    try:
        values = [evaluate(size, sizes) for sizes in _samples(names)]
    except ValueError as error:
        yield field, f"{reprlib.repr(size)}: {error}"
        return
    if not all(0 <= value <= MAX_BYTES for value in values):
        yield field, f"{reprlib.repr(size)} is negative or too large"


def _unfit_names(field: str, names: Iterable[str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            yield f"{field}[{i}]", f"{reprlib.repr(name)} is no name"
        if name in seen:
            yield field, f"{reprlib.repr(name)} comes twice"
        seen.add(name)
