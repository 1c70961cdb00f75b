"""Loops of plain kernels, a number at a time: what a line of mathematics says, in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, local, name

_ROUND = 1.5 * 2.0**23  # added to a number, it leaves the nearest integer in the low bits


@contextmanager
def each(*extents: Value | int) -> Iterator[tuple[Value, ...]]:
    """A nest of loops, and its indices."""
    with ExitStack() as frames:
        yield tuple(frames.enter_context(T.serial(T.int64(extent) if isinstance(extent, int) else extent)) for extent in extents)


def total(extent: Value | int, term: Callable[[Value], Value], dtype: str = "float32") -> Value:
    """The sum of `term(i)` for i < extent, in that order."""
    return fold(extent, 0, term, lambda sum_, value: sum_ + value, dtype)


def fold(extent: Value | int, start: float, term: Callable[[Value], Value], combine: Callable[[Value, Value], Value], dtype: str) -> Value:
    """`term(i)` for i < extent, combined one after the other."""
    held = local(1, dtype)
    T.buffer_store(held, T.cast(T.float32(start) if dtype == "float32" else T.int32(start), dtype), [0])
    with each(extent) as (i,):
        T.buffer_store(held, combine(held[0], term(i)), [0])
    return held[0]


def load(buffer: Buffer, *index: Value | int) -> Value:
    """An element as float32."""
    value, dtype = buffer[index], str(buffer.dtype)
    if dtype == "float16":
        return f16_to_f32(value, 1)  # in integers: not every machine has an instruction for it, nor every linker the function
    return bf16_to_f32(value, 1) if dtype == "bfloat16" else T.cast(value, "float32")


def store(buffer: Buffer, index: Sequence[Value | int], value: Value) -> None:
    """Writes a float32, rounded to the buffer's type."""
    T.buffer_store(buffer, narrow(value, str(buffer.dtype)), list(index))


def narrow(value: Value, dtype: str) -> Value:
    """A float32 rounded to `dtype`."""
    if dtype == "float16":
        return f32_to_f16(value, 1)
    return f32_to_bf16(value, 1) if dtype == "bfloat16" else T.cast(value, dtype)


def step_of(largest: Value) -> tuple[Value, Value]:
    """The step of int8 codes for numbers of that largest magnitude, and the factor that makes codes of numbers."""
    inverse = T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0))
    return name(largest * T.float32(1 / 127)), name(inverse)


def code_of(value: Value, inverse: Value) -> Value:
    """A number's code of int8, by what `step_of` gave: the nearest, of two the even one."""
    return T.cast(T.reinterpret("int32", name(value * inverse + T.float32(_ROUND))), "int8")


def largest(extent: Value | int, term: Callable[[Value], Value]) -> Value:
    """The largest magnitude of `term(i)` for i < extent."""
    return name(fold(extent, 0, lambda i: _magnitude(name(term(i))), T.max, "float32"))


def _magnitude(value: Value) -> Value:
    return T.max(value, T.float32(0) - value)
