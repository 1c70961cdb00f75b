"""Tokens drawn from logits, to the same results as the host's sampler: a block of threads for each row.

Nothing is sorted. Three searches over the bits of a number, a few at a time, find where top-k ends, where top-p ends, and the token: each
asks how much all tokens up to a bound have together, tokens or weight, as far as it is in blocks whose largest logit matters. Weights are
rounded to integers of 60 bits, in two halves, so that sums are exact, and the same in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, FRACTION_BITS, LIMIT, MAXIMA_BLOCK, ONE, TEMPERATURE, TOP_K, TOP_P, UNIFORMS
from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, from_lane, keep, over_warp, registers, shared, strided, synchronize
from cupola.targets.ops import Sample

_THREADS = 256
_WARPS = _THREADS // WARP
_DIGIT = 2  # bits that a pass of a search finds
_BOUNDS = (1 << _DIGIT) - 1
_KEY_BITS = 32
_INFINITY, _MAGNITUDE = 0x7F800000, 0x7FFFFFFF  # bits of float32
_ALL = 0xFFFFFFFF
_HALF = ONE - 1  # the bits of a half
_LIGHTEST = int(np.float32(64).view(np.uint32))  # a key from which on tokens have no weight: exp(-64)
_DEGREE = 7  # of exp's series: |r| is at most ln 2 / 2, which leaves 5e-9


class _Pair(NamedTuple):
    """A number of 60 bits in two halves, upper and lower, uint32."""

    upper: Value
    lower: Value

    def __add__(self, other: _Pair) -> _Pair:  # type: ignore[override]
        lower = keep(self.lower + other.lower)
        return _Pair(keep(self.upper + other.upper + (lower >> FRACTION_BITS)), keep(lower & _u32(_HALF)))

    def reaches(self, other: _Pair) -> Value:
        """True if it is at least the other."""
        return T.Or(self.upper > other.upper, T.And(self.upper == other.upper, self.lower >= other.lower))


def lower_sample(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Sample`."""
    op = Sample.match(call)
    if op is None:
        return None
    width = int(op.logits.ty.shape[1])
    function = builder.add_func(_sample(width), f"sample_{width}")
    return relax.op.call_tir(function, relax.Tuple([op.logits, op.maxima, op.draws]), out_ty=call.ty)


@cache
def _sample(width: int) -> tvm.tirx.PrimFunc:
    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, -(-width // MAXIMA_BLOCK)), "float32")
        draws = argument("draws", (rows, DRAW_COLUMNS), "int32")
        out = argument("out", (rows,), "int32")
        with blocks(rows, threads=_THREADS) as (row, thread):
            given = shared(UNIFORMS + 2, "uint32")  # where they take no registers
            with T.If(thread < T.int64(UNIFORMS + 2)), T.Then():
                T.buffer_store(given, T.reinterpret("uint32", draws[row, thread]), [thread])
            top_k, top_p, uniform = given[TOP_K], _Pair(given[TOP_P], given[TOP_P + 1]), _Pair(given[UNIFORMS], given[UNIFORMS + 1])
            tokens = _Row(logits, maxima, T.reinterpret("float32", draws[row, TEMPERATURE]), row, thread)
            limit, least, found = registers(1, "uint32"), registers(), registers(1, "uint32")
            T.buffer_store(limit, T.if_then_else(tokens.is_finite, given[LIMIT], _u32(0)), [0])
            T.buffer_store(least, T.float32(0), [0])
            with T.serial(3) as phase:  # one after the other in the same code: top_k, top_p, the token
                counts, draws_now = phase == 0, phase == 2
                is_wanted = T.Or(draws_now, T.if_then_else(counts, draws[row, TOP_K] > 0, draws[row, TOP_P] < ONE))
                with T.If(is_wanted), T.Then():  # the same for all threads, as every condition around barriers

                    def order(key: Value, column: Value) -> Value:
                        return T.if_then_else(draws_now, T.cast(column, "uint32"), key)

                    def amount(key: Value) -> _Pair:
                        weight = keep(_weight(key))
                        fixed = _fixed(keep(T.if_then_else(weight >= least[0], weight, T.float32(0))), width)
                        return _Pair(*(T.if_then_else(counts, _u32(one), half) for one, half in zip((0, 1), fixed, strict=True)))

                    def wanted(total: _Pair) -> _Pair:
                        """A number of tokens; a share of the weight; more than a share, or than nothing where logits are infinite."""
                        fraction = _Pair(*(keep(T.if_then_else(draws_now, u, p)) for u, p in zip(uniform, top_p, strict=True)))
                        share = _share(total, fraction)
                        upper, lower = (T.if_then_else(tokens.is_finite, half, _u32(0)) for half in share)
                        lower = lower + T.if_then_else(draws_now, _u32(1), _u32(0))
                        return _Pair(T.if_then_else(counts, _u32(0), upper), T.if_then_else(counts, top_k, lower))

                    num_bits = T.if_then_else(draws_now, T.int32((width - 1).bit_length()), T.int32(_KEY_BITS))
                    T.buffer_store(found, tokens.search(num_bits, limit[0], order, amount, wanted), [0])
                    with T.If(counts), T.Then():
                        T.buffer_store(limit, T.min(limit[0], found[0]), [0])
                    with T.If(phase == 1), T.Then():
                        T.buffer_store(least, _weight(found[0]), [0])
            with T.If(thread == T.int64(0)), T.Then():
                T.buffer_store(out, T.if_then_else(tokens.is_nan, T.int32(-1), T.cast(found[0], "int32")), [row])

    return prim_func(body)


class _Row:
    """A row of logits, as the threads of a block go over it: a warp takes 32 blocks of it, then the 32 that follow those of all warps.

    A token's key is the bits of x, without the sign; the least ones of blocks, and of 32 blocks, are in shared memory.
    """

    def __init__(self, logits: Buffer, maxima: Buffer, temperature: Value, row: Value, thread: Value) -> None:
        self.logits, self.temperature, self.row = logits, keep(temperature), row
        thread = keep(T.cast(thread, "int32"))
        self.lane, self.warp = keep(thread % WARP), keep(thread // WARP)
        self.width, self.num_blocks = int(logits.shape[1]), int(maxima.shape[1])
        self.rounds = -(-self.num_blocks // _THREADS)
        largest, magnitude = registers(), registers(1, "int32")
        T.buffer_store(largest, T.float32(-math.inf), [0])
        T.buffer_store(magnitude, T.int32(0), [0])
        with strided(self.num_blocks, self.lane, WARP) as block:
            value = keep(maxima[row, block])
            T.buffer_store(largest, T.max(largest[0], value), [0])
            T.buffer_store(magnitude, T.max(magnitude[0], T.reinterpret("int32", value) & _MAGNITUDE), [0])
        highest, found = over_warp(largest[0], T.max), over_warp(magnitude[0], T.max)
        self.highest = keep(T.if_then_else(found > T.int32(_INFINITY), T.reinterpret("float32", found), highest))
        size = T.reinterpret("int32", self.highest) & _MAGNITUDE
        self.is_finite, self.is_nan = size < T.int32(_INFINITY), size > T.int32(_INFINITY)
        self.block_keys, self.warp_keys = shared(self.rounds * _THREADS, "uint32"), shared(self.rounds * _WARPS, "uint32")
        self.parts = shared(2 * _BOUNDS * _WARPS, "uint32")
        with strided(self.rounds * _THREADS, T.cast(thread, "int64"), _THREADS) as block:
            T.buffer_store(self.block_keys, _u32(_ALL), [block])
            with T.If(block < T.int64(self.num_blocks)), T.Then():
                T.buffer_store(self.block_keys, self.key(maxima[row, block]), [block])
        synchronize()
        with strided(self.rounds * _WARPS, T.cast(thread, "int64"), _THREADS) as i:
            least = registers(1, "uint32")
            T.buffer_store(least, _u32(_ALL), [0])
            with T.serial(WARP) as j:  # each thread begins elsewhere, so that they read other banks
                T.buffer_store(least, T.min(least[0], self.block_keys[i * WARP + (j + self.lane) % WARP]), [0])
            T.buffer_store(self.warp_keys, least[0], [i])
        synchronize()

    def key(self, logit: Value) -> Value:
        """By the host's operations. The largest logit has 0, infinite ones too."""
        value = keep(logit)
        bits = T.reinterpret("uint32", (value - self.highest) / self.temperature) & _u32(_MAGNITUDE)
        return keep(T.if_then_else(value == self.highest, _u32(0), bits))

    def search(
        self,
        num_bits: Value,
        limit: Value,
        order: Callable[[Value, Value], Value],
        amount: Callable[[Value], _Pair],
        wanted: Callable[[_Pair], _Pair],
    ) -> Value:
        """The smallest number at which tokens whose order, made of key and column, is up to it have what is wanted of all tokens' total.

        Of tokens whose keys are up to `limit`. All ones if no number does.
        """
        goal, found, digits = registers(2, "uint32"), registers(1, "uint32"), keep((num_bits + (_DIGIT - 1)) // _DIGIT)
        T.buffer_store(found, _u32(0), [0])
        with T.serial(digits + 1) as i:
            shift = keep(T.cast(T.max(digits - i, 0), "uint32") * _u32(_DIGIT))
            ends = [found[0] + (_u32(digit) << shift) - _u32(1) for digit in range(1, _BOUNDS + 1)]
            sums = self.sums([keep(T.if_then_else(i == 0, _u32(_ALL), end)) for end in ends], limit, order, amount)
            with T.If(i == 0):
                with T.Then():
                    for half, value in enumerate(wanted(sums[0])):
                        T.buffer_store(goal, value, [half])
                with T.Else():
                    for total in sums:
                        step = T.if_then_else(total.reaches(_Pair(goal[0], goal[1])), _u32(0), _u32(1) << shift)
                        T.buffer_store(found, found[0] + step, [0])
        return found[0]

    def sums(
        self, bounds: list[Value], limit: Value, order: Callable[[Value, Value], Value], amount: Callable[[Value], _Pair]
    ) -> list[_Pair]:
        """The amounts of tokens whose keys are up to `limit`, summed up to each of the bounds, the last of which is the highest."""
        sums = registers(2 * len(bounds), "uint32")
        for i in range(2 * len(bounds)):
            T.buffer_store(sums, _u32(0), [i])

        def add(i: int, other: _Pair) -> None:
            total = _Pair(sums[2 * i], sums[2 * i + 1]) + other
            T.buffer_store(sums, total.upper, [2 * i])
            T.buffer_store(sums, total.lower, [2 * i + 1])

        def visit(column: Value) -> None:
            key = self.key(self.logits[self.row, column])
            place = keep(order(key, T.cast(column, "uint32")))
            with T.If(T.And(key <= limit, place <= bounds[-1])), T.Then():
                summand = amount(key)
                for i, bound in enumerate(bounds):
                    with T.If(place <= bound), T.Then():
                        add(i, summand)

        def matter(least: Value, first: Value) -> Value:
            """True if the tokens from `first` on, whose keys are no less than `least`, may count."""
            return T.And(least <= limit, order(least, first * MAXIMA_BLOCK) <= bounds[-1])

        with strided(self.rounds * _WARPS, T.cast(self.warp, "int64"), _WARPS) as i:
            group = keep(T.cast(i, "int32"))
            with T.If(matter(self.warp_keys[group], group * WARP)), T.Then(), T.serial(WARP) as j:
                block = keep(group * WARP + j)
                with T.If(matter(self.block_keys[block], block)), T.Then():
                    for half in range(MAXIMA_BLOCK // WARP):
                        column = keep(block * MAXIMA_BLOCK + half * WARP + self.lane)
                        with T.If(column < self.width), T.Then():
                            visit(column)
        for i in range(len(bounds)):
            for distance in (16, 8, 4, 2, 1):
                add(i, _Pair(*(keep(from_lane(sums[2 * i + part], distance)) for part in range(2))))
        with T.If(self.lane == 0), T.Then():
            for i in range(2 * len(bounds)):
                T.buffer_store(self.parts, sums[i], [self.warp * (2 * len(bounds)) + i])
        synchronize()
        for i in range(2 * len(bounds)):
            T.buffer_store(sums, _u32(0), [i])
        with T.serial(_WARPS) as warp:
            for i in range(len(bounds)):
                add(i, _Pair(*(self.parts[warp * (2 * len(bounds)) + 2 * i + part] for part in range(2))))
        synchronize()  # before the next sums are written
        return [_Pair(keep(sums[2 * i]), keep(sums[2 * i + 1])) for i in range(len(bounds))]


def _weight(key: Value) -> Value:
    """exp of x, by its key, to about an ulp: 2^-n · exp(r), with r near 0 by its series."""
    x = keep(T.reinterpret("float32", T.min(key, _u32(_LIGHTEST))))
    n = keep(T.cast(x * T.float32(1 / math.log(2)) + T.float32(0.5), "int32"))
    upper = 355 / 512  # of ln 2, in so few bits that its multiples are exact (Cody and Waite, 1980)
    r = keep((T.cast(n, "float32") * T.float32(upper) - x) + T.cast(n, "float32") * T.float32(math.log(2) - upper))
    series = T.float32(1 / math.factorial(_DEGREE))
    for degree in reversed(range(_DEGREE)):
        series = series * r + T.float32(1 / math.factorial(degree))
    return series * T.reinterpret("float32", (127 - n) << 23)


def _fixed(weight: Value, width: int) -> _Pair:
    """A weight, at most 1, as an integer: so that those of all tokens sum to less than 60 bits hold."""
    scaled = keep(weight * T.float32(1 << (FRACTION_BITS - width.bit_length())))
    upper = keep(T.cast(scaled, "int32"))
    lower = T.cast((scaled - T.cast(upper, "float32")) * T.float32(ONE), "int32")
    return _Pair(keep(T.cast(upper, "uint32")), keep(T.cast(lower, "uint32")))


def _share(total: _Pair, fraction: _Pair) -> _Pair:
    """A fraction of a total, rounded down: a product by digits of 15 bits."""
    bits, mask = FRACTION_BITS // 2, (1 << FRACTION_BITS // 2) - 1
    a, b = ([keep(half >> shift & _u32(mask)) for half in reversed(pair) for shift in (0, bits)] for pair in (total, fraction))
    digits, carry = [], _u32(0)
    for place in range(2 * len(a)):
        for i in range(len(a)):
            carry = carry + a[i] * b[place - i] if 0 <= place - i < len(b) else carry
        carry = keep(carry)
        digits.append(keep(carry & _u32(mask)))
        carry = carry >> bits
    return _Pair(*(keep(digits[i] | digits[i + 1] << bits) for i in (6, 4)))


def _u32(value: int) -> Value:
    return T.uint32(value)
