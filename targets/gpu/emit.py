"""The vocabulary that kernels for GPUs are written in: blocks of threads, registers, and sums in one order.

A warp has 32 lanes, on every GPU that these kernels are for. Functions of values take and give scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value

WARP = 32
_ALL = 0xFFFFFFFF


@contextmanager
def blocks(*extents: Value | int, threads: int) -> Iterator[tuple[Value, ...]]:
    """A launch of at most three extents of blocks. Gives the block's indices, then the thread's, all as int64."""
    with T.launch_thread("threadIdx.x", threads) as thread:
        indices = []
        frames = [T.launch_thread(f"blockIdx.{axis}", extent) for axis, extent in zip("xyz", extents, strict=False)]
        for frame in frames:
            indices.append(frame.__enter__())
        try:
            yield (*(T.cast(index, "int64") for index in indices), T.cast(thread, "int64"))
        finally:
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


def synchronize() -> None:
    """Waits until all threads of the block are here, and what they wrote can be read."""
    T.evaluate(T.tvm_storage_sync("shared"))


def over_warp(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes' values, combined in an order that only their number decides; every lane gets the result."""
    held = registers(1, str(value.ty.dtype))
    T.buffer_store(held, value, [0])
    for distance in (16, 8, 4, 2, 1):
        T.buffer_store(held, combine(held[0], from_lane(held[0], distance)), [0])
    return keep(T.tvm_warp_shuffle(T.uint32(_ALL), held[0], 0, WARP, WARP))


def from_lane(value: Value, distance: int) -> Value:
    """The value of the lane so many further on; the last ones get their own."""
    return T.tvm_warp_shuffle_down(T.uint32(_ALL), value, distance, WARP, WARP)


def warp_sum(value: Value) -> Value:
    """The sum over the warp, for every lane."""
    return over_warp(value, lambda a, b: a + b)


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
