"""The vocabulary that kernels for GPUs are written in: blocks of threads, registers, and sums in one order.

A warp has 32 lanes, on every GPU that these kernels are for, unless a matrix unit wants more. Functions of values take and give scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.base import KernelRule
from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.units import MMA, MatrixUnit

WARP = 32
_ALL = 0xFFFFFFFF
_P = ParamSpec("_P")
_Kernel = TypeVar("_Kernel", bound=tvm.tirx.PrimFunc | None)


@dataclass(frozen=True)
class Gpu:
    """The abilities of a GPU that kernels are written by.

    Attributes:
        warps: of a block, where a kernel may choose.
        max_lanes: elements that a load may bring.
        has_shuffles: whether a warp's lanes read each other's registers. Else values go through the block's memory, and blocks are one warp
            where lanes exchange any, so that all of a block's threads come to the same barriers.
        matrix: the unit that kernels multiply by, if they multiply by one. Its warps may have more lanes.
    """

    warps: int = 4
    max_lanes: int = 16
    has_shuffles: bool = True
    matrix: MatrixUnit = MMA


_MOST = Gpu()  # as CUDA's are
_GPU = ContextVar("gpu", default=_MOST)
_LANE: ContextVar[Value] = ContextVar("lane")


def gpu() -> Gpu:
    """The GPU that kernels are now written for."""
    return _GPU.get()


def for_gpu(rule: KernelRule, which: Gpu) -> KernelRule:
    """`rule`, its kernels written for such a GPU."""

    @wraps(rule)
    def lower(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
        token = _GPU.set(which)
        try:
            return rule(call, builder)
        finally:
            _GPU.reset(token)

    return lower


def cached(write: Callable[_P, _Kernel]) -> Callable[_P, _Kernel]:
    """`functools.cache` for a function that writes a kernel: once for the arguments and each GPU. A decorator."""

    @cache
    def written(which: Gpu, arguments: tuple[Any, ...]) -> _Kernel:
        return cast("Callable[..., _Kernel]", write)(*arguments)

    def of_this_gpu(*arguments: Any) -> _Kernel:
        return written(gpu(), arguments)

    return cast("Callable[_P, _Kernel]", of_this_gpu)


@contextmanager
def blocks(*extents: Value | int, threads: int) -> Iterator[tuple[Value, ...]]:
    """A launch of at most three extents of blocks. Gives the block's indices, then the thread's, all as int64."""
    with T.launch_thread("threadIdx.x", threads) as thread:
        indices = []
        frames = [T.launch_thread(f"blockIdx.{axis}", extent) for axis, extent in zip("xyz", extents, strict=False)]
        for frame in frames:
            indices.append(frame.__enter__())
        token = _LANE.set(T.cast(thread, "int64") % WARP)
        try:
            yield (*(T.cast(index, "int64") for index in indices), T.cast(thread, "int64"))
        finally:
            _LANE.reset(token)
            for frame in reversed(frames):
                frame.__exit__(None, None, None)


def registers(count: int = 1, dtype: str = "float32") -> Buffer:
    """Memory of the thread."""
    return T.alloc_buffer((count,), dtype, scope="local")


def shared(count: int, dtype: str = "float32") -> Buffer:
    """Memory of the block."""
    return T.alloc_buffer((count,), dtype, scope="shared")


def keep(value: Value) -> Value:
    """`value`, computed once, in a register."""
    held = registers(1, str(value.ty.dtype))
    T.buffer_store(held, value, [0])
    return held[0]


def call(function: str, *arguments: Value) -> None:
    """Calls a function of the device's, such as those of `matrix.cuh`, for what it does."""
    T.evaluate(T.call_extern("int32", function, *arguments))


def synchronize() -> None:
    """Waits until all threads of the block are here, and what they wrote can be read."""
    T.evaluate(T.tvm_storage_sync("shared"))


def over_warp(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes' values, combined in an order that only their number decides; every lane gets the result."""
    if not gpu().has_shuffles:
        return _over_block([value], combine)[0]
    held = registers(1, str(value.ty.dtype))
    T.buffer_store(held, value, [0])
    for distance in (16, 8, 4, 2, 1):
        T.buffer_store(held, combine(held[0], from_lane(held[0], distance)), [0])
    return from_first(held[0])


def from_lane(value: Value, distance: int) -> Value:
    """The value of the lane so many further on; the last ones get their own."""
    if not gpu().has_shuffles:
        held, lane = exchange(value), _LANE.get()
        return keep(held[T.if_then_else(lane < T.int64(WARP - distance), lane + T.int64(distance), lane)])
    return T.tvm_warp_shuffle_down(T.uint32(_ALL), value, distance, WARP, WARP)


def any_lane(value: Value, lane: Value) -> Value:
    """The value of a lane that each may choose for itself. Where lanes read each other's registers."""
    return keep(T.tvm_warp_shuffle(T.uint32(_ALL), value, T.cast(lane, "int32"), WARP, WARP))


def from_first(value: Value) -> Value:
    """The first lane's value, for every lane."""
    if not gpu().has_shuffles:
        return keep(exchange(value)[0])
    return keep(T.tvm_warp_shuffle(T.uint32(_ALL), value, 0, WARP, WARP))


def _over_block(values: Sequence[Value], combine: Callable[[Value, Value], Value]) -> list[Value]:
    """`over_warp` of several values at once, since waiting takes longer than adding: every lane makes the whole tree."""
    held, half = exchange(*values), WARP // 2
    part, results = registers(half, str(held.dtype)), []
    for first in range(0, len(values) * WARP, WARP):
        for i in range(half):
            T.buffer_store(part, combine(held[first + i], held[first + i + half]), [i])
        for distance in (8, 4, 2, 1):
            for i in range(distance):
                T.buffer_store(part, combine(part[i], part[i + distance]), [i])
        results.append(keep(part[0]))
    return results


def exchange(*values: Value) -> Buffer:
    """Each value of all lanes, by lane, one value's after the other's. What was exchanged before has been read by all."""
    held = shared(len(values) * WARP, str(values[0].ty.dtype))
    synchronize()
    for i, value in enumerate(values):
        T.buffer_store(held, value, [_LANE.get() + T.int64(i * WARP)])
    synchronize()
    return held


def warp_sum(value: Value) -> Value:
    """The sum over the warp, for every lane."""
    return over_warp(value, lambda a, b: a + b)


def warp_sums(held: Buffer, each: Callable[[Callable[[int], None]], None]) -> None:
    """Puts the sum over the warp in the place of each number of `held`; `each` does something for those that matter."""
    if gpu().has_shuffles:
        each(lambda i: T.buffer_store(held, warp_sum(held[i]), [i]))
        return
    for i, total in enumerate(_over_block([held[i] for i in range(int(held.shape[0]))], lambda a, b: a + b)):
        T.buffer_store(held, total, [i])


@contextmanager
def strided(extent: Value | int, start: Value, step: int) -> Iterator[Value]:
    """A loop over start, start + step, … below `extent`."""
    last = (T.int64(extent) if isinstance(extent, int) else extent) - start + T.int64(step - 1)
    with T.serial(last // T.int64(step)) as i:
        yield start + T.cast(i, "int64") * T.int64(step)


def load(buffer: Buffer, *index: Value | int) -> Value:
    """An element as float32."""
    return T.cast(buffer[index], "float32")


def store(buffer: Buffer, index: tuple[Value | int, ...], value: Value) -> None:
    """Writes a float32, rounded to the buffer's type."""
    T.buffer_store(buffer, T.cast(value, str(buffer.dtype)), list(index))
