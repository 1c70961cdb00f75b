"""The vocabulary that kernels of all targets are written in: arguments, scratch memory, and the conversions that TVM gets wrong.

Kernels are built with TVM's IR builder, whose frames (`with T.serial(K) as k`) are the loop nest. A Python loop unrolls.
Functions of values take and give vectors of any number of lanes; a scalar is one lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Value: TypeAlias = tvm.ir.Expr  # a scalar or vector of the IR
Buffer: TypeAlias = tvm.tirx.Buffer


def prim_func(body: Callable[[], None]) -> tvm.tirx.PrimFunc:
    """The PrimFunc whose arguments and statements `body` emits. No pass reschedules or fuses it."""
    with IRBuilder() as builder, T.prim_func():
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})  # 8: opaque to fusion
        body()
    return builder.get()


def argument(name: str, shape: Sequence[Value | int], dtype: str) -> Buffer:
    """A tensor argument. Nothing is assumed of its alignment: weights come from a mapped file."""
    return T.arg(name, T.buffer(tuple(shape), dtype, align=np.dtype("uint8" if dtype == "bfloat16" else dtype).itemsize))


def local(shape: int | tuple[int, ...], dtype: str = "float32") -> Buffer:
    """Scratch memory of the thread: on the stack below 1 KB, else from TVM's pool. (TVM takes all of the scope "local" from the pool.)"""
    return T.alloc_buffer(shape, dtype, scope="global")


def name(value: Value) -> Value:
    """`value`, computed once. Held in memory that LLVM turns into a register: TVM's simplifier puts what is bound to a
    variable back in at each use, and takes forever over the result."""
    dtype = value.ty.dtype
    buffer = local(dtype.lanes, str(dtype).partition("x")[0])
    index = lane_index(0, dtype.lanes)
    T.buffer_store(buffer, value, [index])
    return buffer[index]


def lanes_of(value: Value) -> int:
    """Lanes of a vector; 1 for a scalar."""
    return value.ty.dtype.lanes


def typed(dtype: str, lanes: int) -> str:
    """The type of so many lanes of `dtype`."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lane_index(start: Value | int, lanes: int) -> Value:
    """The index of a vector's elements from `start` on."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def splat(value: Value | float, lanes: int) -> Value:
    """`value` in every lane; a vector that has so many stays as it is."""
    value = T.float32(value) if isinstance(value, (int, float)) else value
    return value if lanes_of(value) == lanes else T.broadcast(value, lanes)


def int_splat(value: int, lanes: int) -> Value:
    """An int32 in every lane."""
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


# TVM casts between bfloat16 and float32 go wrong on vectors (the bits are taken for an integer), so they are written out.
def bf16_to_f32(value: Value, lanes: int) -> Value:
    """Exact."""
    bits = T.cast(T.reinterpret(typed("uint16", lanes), value), typed("int32", lanes))
    return T.reinterpret(typed("float32", lanes), bits << int_splat(16, lanes))


def f32_to_bf16(value: Value, lanes: int) -> Value:
    """To nearest even; NaN is not kept."""
    bits = name(T.reinterpret(typed("int32", lanes), value))
    rounded = bits + int_splat(0x7FFF, lanes) + ((bits >> int_splat(16, lanes)) & int_splat(1, lanes))
    return T.reinterpret(typed("bfloat16", lanes), T.cast(rounded >> int_splat(16, lanes), typed("uint16", lanes)))


def f16_to_f32(value: Value, lanes: int) -> Value:
    """Exact for finite numbers: the exponent and mantissa move up, and a multiplication corrects the bias."""
    bits = name(T.cast(T.reinterpret(typed("uint16", lanes), value), typed("int32", lanes)))
    magnitude = T.reinterpret(typed("float32", lanes), (bits & int_splat(0x7FFF, lanes)) << int_splat(13, lanes))
    scaled = T.reinterpret(typed("int32", lanes), magnitude * splat(2.0**112, lanes))
    return T.reinterpret(typed("float32", lanes), scaled | ((bits & int_splat(0x8000, lanes)) << int_splat(16, lanes)))


def f32_to_f16(value: Value, lanes: int) -> Value:
    """To nearest even; beyond 65504 it saturates, NaN is not kept."""
    integer, real = typed("int32", lanes), typed("float32", lanes)
    bits = name(T.reinterpret(integer, value))
    magnitude = name(T.min(T.reinterpret(real, bits & int_splat(0x7FFFFFFF, lanes)), splat(65504.0, lanes)))
    small = name(T.reinterpret(integer, magnitude + splat(0.5, lanes)) - int_splat(0x3F000000, lanes))  # subnormal: 0.5's ulp is 2^-24
    raw = name(T.reinterpret(integer, magnitude))
    odd = (raw >> int_splat(13, lanes)) & int_splat(1, lanes)
    normal = (raw + int_splat(0xFFF - (112 << 23), lanes) + odd) >> int_splat(13, lanes)
    half = T.Select(magnitude < splat(2.0**-14, lanes), small, normal)
    sign = (bits >> int_splat(16, lanes)) & int_splat(0x8000, lanes)
    return T.reinterpret(typed("float16", lanes), T.cast(half | sign, typed("uint16", lanes)))


def e4m3_to_f32(code: Value, lanes: int) -> Value:
    """Codes 0 to 255 in int32 as floats (`formats.tables`), exact. No number on the way is subnormal, which some machines take for zero.
    NaN becomes ±480."""
    magnitude = code & int_splat(0x7F, lanes)
    normal = T.reinterpret(typed("float32", lanes), (magnitude << int_splat(20, lanes)) + int_splat(120 << 23, lanes))
    small = T.cast(magnitude, typed("float32", lanes)) * splat(2.0**-9, lanes)
    value = T.reinterpret(typed("int32", lanes), T.Select(magnitude < int_splat(8, lanes), small, normal))
    return T.reinterpret(typed("float32", lanes), value | ((code & int_splat(0x80, lanes)) << int_splat(24, lanes)))


def f32_to_e4m3(value: Value, lanes: int) -> Value:
    """To the nearest code, of two the even one, in int32; beyond 448 it saturates, NaN is not kept."""
    integer, real = typed("int32", lanes), typed("float32", lanes)
    bits = T.reinterpret(integer, value)
    magnitude = T.min(T.reinterpret(real, bits & int_splat(0x7FFFFFFF, lanes)), splat(448.0, lanes))
    small = T.reinterpret(integer, magnitude + splat(2.0**14, lanes)) - int_splat(141 << 23, lanes)  # whose ulp is that of subnormal codes
    raw = T.reinterpret(integer, magnitude)
    odd = (raw >> int_splat(20, lanes)) & int_splat(1, lanes)
    normal = (raw + int_splat(0x7FFFF - (120 << 23), lanes) + odd) >> int_splat(20, lanes)
    return T.Select(magnitude < splat(2.0**-6, lanes), small, normal) | ((bits >> int_splat(24, lanes)) & int_splat(0x80, lanes))
