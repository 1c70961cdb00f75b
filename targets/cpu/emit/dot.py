"""Dot products of integers and of bfloat16: what each instruction set has for `sum += w[0]·x[0] + … + w[3]·x[3]` of bytes, a sum a lane,
and for `sum += w[0]·x[0] + w[1]·x[1]` of 16 bits.

Sums of integers are exact (who multiplies takes care that int32 never overflows), so that every instruction set and every path gives the
same ones. Weights lie as `quantized_packing` packs them; activations are int8, four of a row in every lane.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Value, lanes_of, name, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import QUAD, QUADS, SLICE, Codes, first_byte, integers_of

Dot = Callable[[ISA, Codes, Value, Value, Value], Value]
PairDot = Callable[[Value, Value, Value], Value]  # (sums in int32, pairs of int16, int32 that hold pairs of int16)


@dataclass(frozen=True)
class Weights:
    """The weights of a slice and how to multiply them.

    In a dot product a weight of fewer than 8 bits is its code. One of 8 bits, or an entry of a table, is that number or, where the
    instruction takes unsigned weights, that and 128. `zero` is what then stands for 0; `zero` · Σx is to be taken off the sum.
    """

    isa: ISA
    codes: Codes

    @property
    def unsigned(self) -> bool:
        """True if weights with a sign go in with 128 added."""
        return self.codes.is_signed and self.isa.int8_dot == "vpdpbusd"

    @property
    def zero(self) -> int:
        """The code that stands for 0 in a dot product."""
        return 128 if self.unsigned else self.codes.zero

    @property
    def unit(self) -> float:
        """The number whose multiples weights are in a dot product: entries of a table are such of 1/8, say."""
        found = integers_of(self.codes.format.table) if self.codes.format.table else None
        return 1.0 if found is None else found[1]

    @property
    def columns(self) -> int:
        """Columns of a vector of weights."""
        return self.isa.lanes

    def unpack(self, source: Buffer, panel: Value, at: Value, first: Value) -> list[Value]:
        """The vectors of columns `first` to `first + lanes` of a packed slice, a quad each."""
        group, start = self.codes.place(at, self.codes.slice_step)
        if self.codes.bits == 8:
            return [self._offset(self._bytes(source, panel, group, first_byte(quad, first) + start)) for quad in range(QUADS)]
        quads: list[Value] = [None] * QUADS
        low = 0
        for size in self.codes.planes:
            for block in range(size):
                both = name(self._bytes(source, panel, group, first_byte(block, first) + start))
                for i in range(8 // size):
                    quad, bits = block * (8 // size) + i, name(self._bits(both, size * i - low, ((1 << size) - 1) << low))
                    quads[quad] = bits if quads[quad] is None else name(_words(bits, lambda words, old=quads[quad]: words | _as_words(old)))
            start = start + PANEL * SLICE * size // 8
            low += size
        return [self._looked_up(quad) for quad in quads] if self.codes.format.table else quads

    @staticmethod
    def can_unpack(isa: ISA, codes: Codes) -> bool:
        """True if codes can become bytes: entries of a table if they are such, and the instruction set looks bytes up."""
        table = codes.format.table
        return not table or (integers_of(table) is not None and (isa.architecture, isa.lanes) in _LOOKUPS)

    def dot(self, total: Value, weights: Value, quad: Value) -> Value:
        """`total` (int32, a lane a column) plus the products of a vector of weights and an int32, perhaps in every lane, that holds four
        activations."""
        lanes = self.isa.lanes
        spread = T.reinterpret(f"int8x{4 * lanes}", splat(quad, lanes))
        return _DOTS[self.isa.int8_dot](self.isa, self.codes, total, weights, spread)

    def _bytes(self, source: Buffer, panel: Value, group: Value, start: Value) -> Value:
        lanes = 4 * self.isa.lanes
        return T.reinterpret(f"int8x{lanes}", source[panel, group, T.ramp(start, 1, lanes)])

    def _offset(self, weights: Value) -> Value:
        return name(_words(weights, lambda words: words ^ _splat(-0x7F7F7F80, words)) if self.unsigned else weights)

    def _bits(self, weights: Value, down: int, mask: int) -> Value:
        """Bytes shifted down (or up), of which only `mask` is left."""

        def change(words: Value) -> Value:
            shifted = words >> _splat(down, words) if down > 0 else words << _splat(-down, words) if down else words
            return shifted & _splat(_in_every_byte(mask), words)

        return _words(weights, change)

    def _looked_up(self, codes: Value) -> Value:
        """The integers of the table that codes stand for."""
        found = integers_of(self.codes.format.table)
        assert found is not None
        added, lanes = 128 if self.unsigned else 0, self.isa.lanes
        entries = [*found[0], *[0] * (16 - len(found[0]))]
        words = np.array([entry + added & 255 for entry in entries], np.uint8).view(np.int32).tolist()
        table = T.reinterpret(f"int8x{4 * lanes}", T.Shuffle([T.int32(word) for word in words * (lanes // 4)], list(range(lanes))))
        return name(_intrinsic(f"int8x{4 * lanes}", _LOOKUPS[self.isa.architecture, lanes], table, codes))


def dot_pairs(isa: ISA, total: Value, numbers: Value, pair: Value) -> Value:
    """`total` (int32, a lane or more) plus the products of each lane's two int16 and the two that the int32 `pair` holds."""
    lanes = total.ty.dtype.lanes
    kind = "vpdpwssd" if isa.int8_dot == "vpdpbusd" else isa.architecture
    return _PAIR_DOTS.get((kind, lanes), _pairs_widened)(total, numbers, pair if lanes == 1 else T.broadcast(pair, lanes))


def dot_bf16(total: Value, numbers: Value, pair: Value) -> Value:
    """`total` (float32, a lane or more) plus the products of each lane's two bfloat16 and the two of `pair`, perhaps one for all; both
    are int32 that hold pairs. Only in `bf16_dots`."""
    lanes = total.ty.dtype.lanes
    pairs = pair if lanes_of(pair) == lanes else T.broadcast(pair, lanes)
    if lanes in _BF16_LANES:
        return T.call_pure_extern(f"float32x{lanes}", f"cupola_dot_bf16_{lanes}", total, numbers, pairs)
    high = [T.reinterpret(total.ty.dtype, value & _splat(-(1 << 16), value)) for value in (numbers, pairs)]
    low = [T.reinterpret(total.ty.dtype, value << _splat(16, value)) for value in (numbers, pairs)]
    return total + high[0] * high[1] + low[0] * low[1]


def bf16_dots() -> AbstractContextManager[object]:
    """A frame around calls of `dot_bf16`: TVM widens all bfloat16, and so cannot call LLVM's intrinsics that take it."""
    functions = (_BF16_DOT.format(lanes=lanes, bits=32 * lanes, pairs=2 * lanes) for lanes in _BF16_LANES)
    return T.attr(T.int64(0), "pragma_import_llvm", "".join(functions))


def _in_every_byte(mask: int) -> int:
    """Four bytes as an int32."""
    word = mask * 0x01010101
    return word - (1 << 32) if word >> 31 else word


def _as_words(value: Value) -> Value:
    return T.reinterpret(f"int32x{value.ty.dtype.lanes // 4}", value)


def _words(value: Value, change: Callable[[Value], Value]) -> Value:
    """Bytes changed as int32."""
    lanes = value.ty.dtype.lanes
    return T.reinterpret(f"int8x{lanes}", change(T.reinterpret(f"int32x{lanes // 4}", value)))


def _splat(value: int, like: Value) -> Value:
    lanes = like.ty.dtype.lanes
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


def _intrinsic(dtype: str, function: str, *arguments: Value) -> Value:
    return T.call_llvm_pure_intrin(dtype, function, *arguments)


def _vpdpbusd(isa: ISA, codes: Codes, total: Value, weights: Value, x: Value) -> Value:
    bits = 32 * isa.lanes
    return _intrinsic(f"int32x{isa.lanes}", f"llvm.x86.avx512.vpdpbusd.{bits}", total, weights, x)


def _maddubs(isa: ISA, codes: Codes, total: Value, weights: Value, x: Value) -> Value:
    """Pairs in 16 bits, which 2 · 128 · 127 fits; then pairs of those. Signed weights lend their sign to x."""
    if codes.is_signed:
        x, weights = (_signs_copied if isa.lanes == 8 else _signs_masked)(x, weights)
    by_pairs, by_fours = _PAIRS[isa.lanes]
    pairs = _intrinsic(f"int16x{2 * isa.lanes}", by_pairs, weights, x)
    return total + _intrinsic(f"int32x{isa.lanes}", by_fours, pairs, T.broadcast(T.int16(1), 2 * isa.lanes))


def _signs_copied(x: Value, weights: Value) -> tuple[Value, Value]:
    return tuple(name(_intrinsic("int8x32", "llvm.x86.avx2.psign.b", value, weights)) for value in (x, weights))


def _signs_masked(x: Value, weights: Value) -> tuple[Value, Value]:
    """The same where no instruction copies signs of a vector this wide: bytes under a mask are taken off 0."""
    zero = T.broadcast(T.int8(0), lanes_of(weights))
    is_negative = name(weights < zero)
    return tuple(name(T.Select(is_negative, zero - value, value)) for value in (x, weights))


def _sdot(isa: ISA, codes: Codes, total: Value, weights: Value, x: Value) -> Value:
    return _intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, weights, x)


def _smulls(isa: ISA, codes: Codes, total: Value, weights: Value, x: Value) -> Value:
    """Products of two columns' bytes in 16 bits, neighbours added in 16 bits, which 2 · 128 · 127 fits, and those in 32."""
    halves = [[T.Shuffle([value], list(range(first, first + 8))) for value in (weights, x)] for first in (0, 8)]
    products = [_intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", *half) for half in halves]
    pairs = _intrinsic("int16x8", "llvm.aarch64.neon.addp.v8i16", *products)
    return total + _intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs)


def _widened(isa: ISA, codes: Codes, total: Value, weights: Value, x: Value) -> Value:
    """Without an instruction: every fourth byte at a time, in 32 bits."""
    words, others = (T.reinterpret(f"int32x{isa.lanes}", value) for value in (weights, x))
    for byte in range(QUAD):
        parts = [(value << _splat(24 - 8 * byte, value)) >> _splat(24, value) for value in (words, others)]
        total = total + parts[0] * parts[1]
    return name(total)


# By architecture and lanes: bytes of a table of 16, looked up by bytes.
_LOOKUPS = {
    ("x86_64", 16): "llvm.x86.avx512.pshuf.b.512",
    ("x86_64", 8): "llvm.x86.avx2.pshuf.b",
    ("aarch64", 4): "llvm.aarch64.neon.tbl1.v16i8",
}
_PAIRS = {
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
}
_DOTS: dict[str, Dot] = {"vpdpbusd": _vpdpbusd, "maddubs": _maddubs, "sdot": _sdot, "smull": _smulls, "": _widened}


def _fused(function: str) -> PairDot:
    return lambda total, numbers, pairs: _intrinsic(str(total.ty.dtype), function, total, numbers, T.reinterpret(numbers.ty.dtype, pairs))


def _multiplied(function: str) -> PairDot:
    return lambda total, numbers, pairs: total + _intrinsic(str(total.ty.dtype), function, numbers, T.reinterpret(numbers.ty.dtype, pairs))


def _smull(total: Value, numbers: Value, pairs: Value) -> Value:
    """First numbers, then second ones: each product joins its sum in one instruction, and numbers are told apart once for all rows."""
    for first in range(2):
        half = [T.Shuffle([value], list(range(first, 8, 2))) for value in (numbers, T.reinterpret("int16x8", pairs))]
        total = total + _intrinsic("int32x4", "llvm.aarch64.neon.smull.v4i32", *half)
    return total


def _pairs_widened(total: Value, numbers: Value, pairs: Value) -> Value:
    """Without an instruction: the low and the high number of each pair in 32 bits."""
    words = name(T.reinterpret(total.ty.dtype, numbers))
    high = [value >> _splat(16, value) for value in (words, pairs)]
    low = [(value << _splat(16, value)) >> _splat(16, value) for value in (words, pairs)]
    return total + low[0] * low[1] + high[0] * high[1]


_PAIR_DOTS: dict[tuple[str, int], PairDot] = {
    **{("vpdpwssd", lanes): _fused(f"llvm.x86.avx512.vpdpwssd.{32 * lanes}") for lanes in (4, 8, 16)},
    ("x86_64", 16): _multiplied("llvm.x86.avx512.pmaddw.d.512"),
    ("x86_64", 8): _multiplied("llvm.x86.avx2.pmadd.wd"),
    ("x86_64", 4): _multiplied("llvm.x86.sse2.pmadd.wd"),
    ("aarch64", 4): _smull,
}
_BF16_LANES = (4, 8, 16)
_BF16_DOT = """
declare <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{lanes} x float>, <{pairs} x bfloat>, <{pairs} x bfloat>)
define linkonce_odr <{lanes} x float> @cupola_dot_bf16_{lanes}(<{lanes} x float> %sum, <{lanes} x i32> %x, <{lanes} x i32> %y)
    alwaysinline nounwind {{
  %a = bitcast <{lanes} x i32> %x to <{pairs} x bfloat>
  %b = bitcast <{lanes} x i32> %y to <{pairs} x bfloat>
  %new = call <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{lanes} x float> %sum, <{pairs} x bfloat> %a, <{pairs} x bfloat> %b)
  ret <{lanes} x float> %new
}}
"""
