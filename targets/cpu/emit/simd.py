"""The vocabulary that CPU kernels are written in: vectors of float32, and the mathematics on them.

Kernels are built with TVM's IR builder, whose frames (`with T.serial(K) as k`) are the loop nest. A Python loop unrolls.
Every function takes and gives vectors of any number of lanes (a scalar is one lane). Multiply-adds are written as such,
so that no compiler decides where to round: results must not depend on the path that computed them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import tvm
from tvm.tirx.script import builder as T

from cupola.targets.cpu.isa import ISA
from cupola.targets.emit import Buffer as Buffer  # "as": CPU kernels take their whole vocabulary from here
from cupola.targets.emit import Value as Value
from cupola.targets.emit import argument as argument
from cupola.targets.emit import bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, int_splat, lane_index, typed
from cupola.targets.emit import lanes_of as lanes_of
from cupola.targets.emit import local as local
from cupola.targets.emit import name as name
from cupola.targets.emit import prim_func as prim_func
from cupola.targets.emit import splat as splat

CACHE_LINE = 64  # bytes


def pieces(extent: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of the vectors that cover `extent` elements: full ones, then ever smaller powers of two."""
    result, start = [], 0
    while start < extent:
        while lanes > extent - start:
            lanes //= 2
        result.append((start, lanes))
        start += lanes
    return result


class Register:
    """A vector that a loop changes. Its own small buffer, so that LLVM keeps it in a register."""

    def __init__(self, lanes: int, value: Value | float | None = 0.0, dtype: str = "float32") -> None:
        self.lanes = lanes
        self.buffer = local(lanes, dtype)
        if value is not None:
            self.set(splat(T.cast(value, dtype) if isinstance(value, (int, float)) else value, lanes))

    def get(self) -> Value:
        return self.buffer[lane_index(0, self.lanes)]

    def set(self, value: Value) -> None:
        T.buffer_store(self.buffer, value, [lane_index(0, self.lanes)])


def iota(start: Value, lanes: int) -> Value:
    """start, start + 1, …"""
    return lane_index(start, lanes)


def tree(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """Reduces the lanes of a vector to a scalar, always in the same order."""
    lanes = lanes_of(value)
    while lanes > 1:
        value, half = name(value), lanes // 2
        low, high = (T.Shuffle([value], list(range(start, start + half))) for start in (0, half))
        value, lanes = combine(low, high), half
    return name(value)


def transpose(rows: list[Value]) -> list[Value]:
    """As many vectors as they have lanes, a power of two. Interleaving each with the one half of them away, to two vectors, moves the
    highest bit of (row, lane) to the lowest place; done for each bit of a row, it swaps rows and lanes."""
    lanes = len(rows)
    for _ in range(lanes.bit_length() - 1):
        pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
        rows = [name(T.Shuffle([a, b], [i // 2 + i % 2 * lanes for i in range(at, at + lanes)])) for a, b in pairs for at in (0, lanes)]
    return rows


@dataclass(frozen=True)
class Simd:
    """Loads, stores and float32 mathematics for one instruction set."""

    isa: ISA

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    def load(self, buffer: Buffer, index: Sequence[Value | int], lanes: int | None = None) -> Value:
        """The `lanes` elements from `index` on (along the last axis), as float32."""
        *outer, start = index
        lanes = self.lanes if lanes is None else lanes
        return name(self.widen(buffer[(*outer, lane_index(start, lanes))], str(buffer.dtype), lanes))

    def load_from_bytes(self, buffer: Buffer, index: Sequence[Value | int], dtype: str, lanes: int = 0) -> Value:
        """A vector of `dtype`, or `lanes` of them, that lies at `index` of a buffer of uint8, as float32."""
        *outer, start = index
        lanes = lanes or self.lanes
        raw = buffer[(*outer, lane_index(start, lanes * tvm.DataType(dtype).itemsize))]
        return name(self.widen(T.reinterpret(typed(dtype, lanes), raw), dtype, lanes))

    def store(self, buffer: Buffer, value: Value, index: Sequence[Value | int]) -> None:
        """Writes float32 lanes from `index` on, rounded to the buffer's type (to nearest even)."""
        *outer, start = index
        value = self._narrow(value, str(buffer.dtype), lanes_of(value))
        T.buffer_store(buffer, value, [*outer, lane_index(start, lanes_of(value))])

    def widen(self, value: Value, dtype: str, lanes: int) -> Value:
        """Values of `dtype` as float32."""
        if dtype == "float32":
            return value
        if dtype == "float16" and not self.isa.f16_convert:
            return f16_to_f32(value, lanes)
        return bf16_to_f32(value, lanes) if dtype == "bfloat16" else T.cast(value, typed("float32", lanes))

    def _narrow(self, value: Value, dtype: str, lanes: int) -> Value:
        if dtype == "float32":
            return value
        if dtype == "float16" and not self.isa.f16_convert:
            return f32_to_f16(value, lanes)
        if dtype == "bfloat16" and (self.isa.bf16_tiles or self.isa.bf16_dot) and lanes == 16:
            rounded = T.call_llvm_pure_intrin("bfloat16x16", "llvm.x86.avx512bf16.cvtneps2bf16.512", value)
            return T.reinterpret("bfloat16x16", T.reinterpret("uint16x16", rounded))
        return f32_to_bf16(value, lanes) if dtype == "bfloat16" else T.cast(value, typed(dtype, lanes))

    def bf16_bits(self, value: Value) -> Value:
        """float32 lanes rounded to bfloat16 (to nearest even): their bits, uint16."""
        lanes = lanes_of(value)
        return T.reinterpret(typed("uint16", lanes), self._narrow(value, "bfloat16", lanes))

    def rounded(self, value: Value, dtype: str) -> Value:
        """float32 lanes to the nearest integer (to even), which an integer type `dtype` of up to 16 bits must hold; in an int32, other bits
        are above it."""
        lanes = lanes_of(value)
        bits = T.reinterpret(typed("int32", lanes), name(value + splat(ROUND, lanes)))  # the integer stands in the low bits
        return bits if dtype == "int32" else T.cast(bits, typed(dtype, lanes))

    def largest(self, buffer: Buffer, size: int) -> Value:
        """The largest magnitude of a buffer's `size` numbers."""
        found: dict[int, Value] = {}
        for start, lanes in pieces(size, self.lanes):
            value = self.load(buffer, (start,), lanes)
            magnitude = T.max(value, splat(0.0, lanes) - value)
            found[lanes] = name(T.max(found[lanes], magnitude) if lanes in found else magnitude)
        return reduce(T.max, (tree(value, T.max) for value in found.values()))

    def prefetch(self, buffer: Buffer, index: Sequence[Value | int], *, near: int = 3, write: bool = False) -> None:
        """Brings the cache line of an element nearer: into L1 or, for `near` 2, into L2; to `write`, takes it from other cores too."""
        place, data = T.address_of(buffer[tuple(index)]), T.int32(1)
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", place, T.int32(write), T.int32(near), data))

    def prefetch_all(self, buffer: Buffer, index: tuple[Value, ...], *, near: int = 3) -> None:
        """Brings all of a part of a buffer nearer, whose last dimensions have known sizes."""
        sizes = [int(size) for size in buffer.shape[len(index) :]]
        each, columns = self.elements_of_line(buffer), sizes[-1]
        with T.serial(-(-math.prod(sizes) // each)) as line:
            place = name(line * each)
            inner = (place // columns, place % columns) if len(sizes) == 2 else (place,)
            self.prefetch(buffer, (*index, *inner), near=near)

    def elements_of_line(self, buffer: Buffer) -> int:
        """Elements of a buffer in a cache line."""
        return int(CACHE_LINE // tvm.DataType(buffer.dtype).itemsize)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a · b + c, rounded once where the machine can."""
        if not self.isa.fma:
            return a * b + c
        lanes = lanes_of(c)
        return T.call_llvm_pure_intrin(typed("float32", lanes), f"llvm.fma.{f'v{lanes}f32' if lanes > 1 else 'f32'}", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger of each pair; NaN where either is (IEEE 754-2019, 9.6)."""
        lanes = lanes_of(a)
        kind = f"v{lanes}f32" if lanes > 1 else "f32"
        return name(T.call_llvm_pure_intrin(typed("float32", lanes), f"llvm.maximum.{kind}", a, b))

    def polynomial(self, coefficients: Sequence[float], x: Value) -> Value:
        """Horner's scheme; coefficients from the constant up."""
        lanes = lanes_of(x)
        result = splat(coefficients[-1], lanes)
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, splat(coefficient, lanes))
        return name(result)

    def exp(self, x: Value, *, nonpositive: bool = False) -> Value:
        """e^x to 2 ulp; arguments are clamped to [−87, 88.3], so that it neither overflows nor vanishes. Known to be ≤ 0, it is cheaper."""
        lanes = lanes_of(x)
        x = T.max(splat(-87.0, lanes), x)  # this order lets NaN through
        x = name(x if nonpositive else T.min(splat(88.3, lanes), x))
        integer = typed("int32", lanes)
        # Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits; the others are shifted out below.
        shifted = name(self.fma(x, splat(math.log2(math.e), lanes), splat(ROUND, lanes)))
        whole = name(shifted - splat(ROUND, lanes))
        rest = name(self.fma(whole, splat(-_LN2_LOW, lanes), self.fma(whole, splat(-_LN2_HIGH, lanes), x)))
        power = self.polynomial(_EXP, rest)
        bits = T.reinterpret(integer, power) + (T.reinterpret(integer, shifted) << int_splat(23, lanes))
        return name(T.reinterpret(typed("float32", lanes), bits))

    def exp2(self, x: Value) -> Value:
        """2^x for x ≤ 0, to 1.7e-7 of it; arguments are clamped to −125, so that it does not vanish. 2^0 is 1."""
        lanes = lanes_of(x)
        x = name(T.max(splat(-125.0, lanes), x))  # this order lets NaN through
        integer, shifted = typed("int32", lanes), name(x + splat(ROUND, lanes))  # as in `exp`
        power = self.polynomial(_EXP2, name(x - name(shifted - splat(ROUND, lanes))))
        bits = T.reinterpret(integer, power) + (T.reinterpret(integer, shifted) << int_splat(23, lanes))
        return name(T.reinterpret(typed("float32", lanes), bits))

    def exp2_for_bf16(self, x: Value) -> Value:
        """2^x to 1.6e-4, far below what rounding to bfloat16 costs; AVX-512 only."""
        x, zeros, every, rounding = name(x), splat(0.0, 16), T.int16(-1), T.int32(4)
        intrinsic = "llvm.x86.avx512.mask.{}.ps.512".format
        fraction = name(T.call_llvm_pure_intrin("float32x16", intrinsic("reduce"), x, T.int32(1), zeros, every, rounding))  # x − ⌊x⌋
        power = self.polynomial(_ROUGH_EXP2, fraction)
        return name(T.call_llvm_pure_intrin("float32x16", intrinsic("scalef"), power, x, zeros, every, rounding))  # · 2^⌊x⌋

    def sigmoid(self, x: Value, *, for_bf16: bool = False) -> Value:
        """1 / (1 + e^−x). What is rounded to bfloat16 next may be off by a twelfth of that."""
        lanes = lanes_of(x)
        if for_bf16 and self.isa.bf16_tiles and lanes == 16:
            return self._estimated_reciprocal(name(splat(1.0, lanes) + self.exp2_for_bf16(x * splat(-math.log2(math.e), lanes))))
        return self.reciprocal(name(splat(1.0, lanes_of(x)) + self.exp(splat(0.0, lanes_of(x)) - x)))

    def reciprocal(self, x: Value) -> Value:
        """1 / x for x ≥ 1, to 1 ulp. AVX-512 has an estimate to 14 bits, and Newton's step doubles them in a third of a division's time."""
        lanes = lanes_of(x)
        one = splat(1.0, lanes)
        if lanes != 16:
            return name(one / x)
        estimate = self._estimated_reciprocal(x)
        error = self.fma(splat(0.0, lanes) - x, estimate, one)
        return name(self.fma(estimate, error, estimate))

    def _estimated_reciprocal(self, x: Value) -> Value:
        zeros, mask = splat(0.0, 16), T.uint16(0xFFFF)
        return name(T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.rcp14.ps.512", x, zeros, mask))

    def tanh(self, x: Value) -> Value:
        """To 1e-7 absolute."""
        lanes = lanes_of(x)
        return name(splat(1.0, lanes) - splat(2.0, lanes) / (self.exp(x + x) + splat(1.0, lanes)))

    def normal_cdf(self, x: Value) -> Value:
        """Φ(x) = (1 + erf(x / √2)) / 2, relatively accurate in the lower tail too."""
        lanes = lanes_of(x)
        x = name(x)
        z = name(T.min(splat(9.2, lanes), T.Select(x < splat(0.0, lanes), splat(0.0, lanes) - x, x) * splat(math.sqrt(0.5), lanes)))
        t = name(splat(2.0, lanes) / (z + splat(2.0, lanes)))
        # erfc(z) = t · p(t) · exp(−z²), halved
        tail = name(self.polynomial(_ERFC, t) * t * self.exp(splat(0.0, lanes) - z * z) * splat(0.5, lanes))
        return name(T.Select(x < splat(0.0, lanes), tail, splat(1.0, lanes) - tail))

    def activation(self, kind: str, x: Value, *, for_bf16: bool = False) -> Value:
        """One of `ops.ACTIVATIONS`; `for_bf16` as for `sigmoid`."""
        if kind == "":
            return x
        x, lanes = name(x), lanes_of(x)
        if kind == "relu":
            return T.max(splat(0.0, lanes), x)
        if kind == "silu":
            return x * self.sigmoid(x, for_bf16=for_bf16)
        if kind == "gelu":
            return x * self.normal_cdf(x)
        assert kind == "gelu_tanh", kind
        # (1 + tanh(u)) / 2 = sigmoid(2u)
        cubic = self.fma(x * x, splat(2 * math.sqrt(2 / math.pi) * 0.044715, lanes), splat(2 * math.sqrt(2 / math.pi), lanes))
        return x * self.sigmoid(x * cubic, for_bf16=for_bf16)


def _fit(function: Callable[[float], float], degree: int, low: float, high: float) -> tuple[float, ...]:
    """Coefficients of the polynomial that interpolates `function` in the Chebyshev points."""
    fit = np.polynomial.Chebyshev.interpolate(np.vectorize(function), degree, domain=[low, high])
    return tuple(float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef)


ROUND, ROUND_BITS = 1.5 * 2.0**23, 0x4B400000
_LN2_HIGH = 355 / 512  # few bits: times an integer it is exact
_LN2_LOW = math.log(2) - _LN2_HIGH
_EXP = _fit(math.exp, 6, -0.5 * math.log(2), 0.5 * math.log(2))
_EXP2 = (1.0, 0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)  # 2^x on [−0.5, 0.5] to 9.2e-8, exact at 0
_ROUGH_EXP2 = (1.0, 0.69554271, 0.22537159, 0.0790857)  # 2^x on [0, 1], exact at both ends
_ERFC = _fit(lambda t: math.erfc(2 / t - 2) * math.exp((2 / t - 2) ** 2) / t, 11, 2 / 11.3, 1.0)
