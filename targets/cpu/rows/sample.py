"""Tokens drawn from logits as the host's sampler draws them, row after row; of a long row's weights threads share the work.

A token's magnitude is |x|, x = (logit - the row's largest) / temperature, and its weight exp(x). Nothing is sorted: the ends of top-k and
top-p are found by searching over the bits of a number. Sums are in float64, in an order that the number of threads has no part in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, LIMIT, MAXIMA_BLOCK, ONE, TEMPERATURE, TOP_K, TOP_P, UNIFORMS
from cupola.targets.cpu.emit.loops import sweep
from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, argument, local, name, pieces, prim_func, splat, tree
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.rows.argmax import any_is_nan, find_largest
from cupola.targets.emit import typed
from cupola.targets.next_step import INFINITY_BITS, magnitude
from cupola.targets.ops import Sample

STRETCHES = 16  # of a row, for threads to share; not their number, which would change the order of sums
FEW_BLOCKS = 64  # below, launching a parallel region costs more than it saves
WEIGHTLESS = 64.0  # a magnitude from which on tokens have no weight


def lower_sample(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Sample`."""
    op = Sample.match(call)
    if op is None:
        return None
    width = int(op.logits.ty.shape[1])
    function = builder.add_func(_build(isa, width), f"sample_{width}")
    return relax.op.call_tir(function, relax.Tuple([op.logits, op.maxima, op.draws]), out_ty=call.ty)


@cache
def _build(isa: ISA, width: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        draws = argument("draws", (rows, DRAW_COLUMNS), "int32")
        out = argument("out", (rows,), "int32")
        drawing = _Drawing(Simd(isa), logits, maxima, draws)
        with T.serial(rows) as row:
            start = name(find_largest(maxima, row, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            token = name(start + find_largest(logits, row, start, name(T.min(T.int64(width) - start, T.int64(MAXIMA_BLOCK)))))
            T.buffer_store(out, T.Select(any_is_nan(maxima, row, num_blocks), T.int32(-1), T.cast(token, "int32")), [row])
            is_finite = magnitude(logits[row, token]) < T.int32(INFINITY_BITS)
            # Of none but the largest, the first: the likeliest.
            chooses = (draws[row, LIMIT] | draws[row, UNIFORMS] | draws[row, UNIFORMS + 1]) != 0
            with T.If(T.And(T.And(out[row] >= 0, is_finite), chooses)), T.Then():
                T.buffer_store(out, drawing.token(row, logits[row, token]), [row])

    return prim_func(body)


class _Drawing:
    """The code that draws a row's token, and its memory.

    Attributes:
        least: by block of MAXIMA_BLOCK tokens, the least magnitude.
        weights: of tokens, where a block's `sums` are not 0.
        listed: magnitudes that top-k, or weights that top-p may end at; of weights each stretch has a list of `room` and its number
            in `counts`.
    """

    def __init__(self, simd: Simd, logits: Buffer, maxima: Buffer, draws: Buffer) -> None:
        self.simd, self.logits, self.maxima, self.draws = simd, logits, maxima, draws
        self.width, self.num_blocks = int(logits.shape[1]), int(maxima.shape[1])
        self.blocks_each = -(-self.num_blocks // STRETCHES)
        self.room = self.blocks_each * MAXIMA_BLOCK + simd.lanes  # with what fills up the last vector
        self.least = local(-(-self.num_blocks // simd.lanes) * simd.lanes)
        self.weights = local(self.num_blocks * MAXIMA_BLOCK)
        self.sums = local(self.num_blocks, "float64")
        self.listed, self.counts = local(STRETCHES * self.room), local(STRETCHES, "int32")

    def token(self, row: Value, highest: Value) -> Value:
        """The token of a row whose largest logit, `highest`, is finite."""
        self.row, self.highest = row, name(highest)
        self.temperature = name(T.reinterpret("float32", self.draws[row, TEMPERATURE]))
        sweep(
            self.num_blocks,
            self.simd.lanes,
            lambda at, lanes, _: self.simd.store(self.least, self.magnitude(self.maxima, at, lanes), (at,)),
        )
        self.fill_up(self.least, T.int64(0), T.int32(self.num_blocks), math.inf)
        limit, top_k, has_top_p = local(1), name(self.draws[row, TOP_K]), self.draws[row, TOP_P] < ONE
        T.buffer_store(limit, T.reinterpret("float32", self.draws[row, LIMIT]), [0])
        with T.If(T.And(top_k > 0, top_k < self.width)), T.Then():
            T.buffer_store(limit, T.min(limit[0], self.end_of_top_k(top_k)), [0])
        top_p = name(T.Select(has_top_p, self.fraction(TOP_P), T.float64(1)))
        # The largest weight is 1: tokens lighter than this have less than 1 - top_p of the sum together.
        lightest = name(T.cast((T.float64(1) - top_p) / T.float64(self.width), "float32"))
        self.weigh(limit[0], has_top_p, lightest)
        with T.If(has_top_p), T.Then():
            self.leave_out(self.end_of_top_p(name(top_p * self.total())))
        return T.cast(self.at_share(self.fraction(UNIFORMS)), "int32")

    def magnitude(self, x: Buffer, start: Value | int, lanes: int) -> Value:
        """Of logits, by the host's operations."""
        logits = self.simd.load(x, (self.row, start), lanes)
        return name((splat(self.highest, lanes) - logits) / splat(self.temperature, lanes))

    def fraction(self, column: int) -> Value:
        """Exact, as far as a float64 is."""
        upper, lower = (T.cast(self.draws[self.row, column + half], "float64") for half in range(2))
        return name(upper * T.float64(1 / ONE) + lower * T.float64(1 / ONE**2))

    def fill_up(self, buffer: Buffer, start: Value, count: Value, value: float) -> None:
        """Completes the last vector of `count` numbers from `start` on."""
        with T.serial((T.int32(0) - count) & T.int32(self.simd.lanes - 1)) as i:
            T.buffer_store(buffer, T.float32(value), [start + count + i])

    def magnitudes(self, block: Value) -> Buffer:
        """Those of a block's tokens, as if behind the row's end tokens followed that never come."""
        found, (num_whole, rest), start = local(MAXIMA_BLOCK), divmod(self.width, MAXIMA_BLOCK), name(T.cast(block, "int64") * MAXIMA_BLOCK)

        def load(size: int) -> None:
            for at, lanes in pieces(size, self.simd.lanes):
                self.simd.store(found, self.magnitude(self.logits, start + at, lanes), (at,))

        if not rest:
            load(MAXIMA_BLOCK)
            return found
        with T.If(block < num_whole):
            with T.Then():
                load(MAXIMA_BLOCK)
            with T.Else():
                load(rest)
                with T.serial(MAXIMA_BLOCK - rest) as i:
                    T.buffer_store(found, T.float32(math.inf), [rest + i])
        return found

    def end_of_top_k(self, top_k: Value) -> Value:
        """The magnitude of the last of the `top_k` likeliest; infinity if there are not as many."""
        limit, count = local(1), local(1, "int32")
        T.buffer_store(limit, T.float32(math.inf), [0])
        T.buffer_store(count, T.int32(0), [0])
        with T.If(top_k < self.num_blocks), T.Then():  # as many blocks have a token each that is in them
            T.buffer_store(limit, self.nth_least(self.least, T.int32(self.num_blocks), top_k), [0])
        with T.serial(self.num_blocks) as block, T.If(self.least[block] <= limit[0]), T.Then():
            magnitudes = self.magnitudes(block)
            with T.serial(MAXIMA_BLOCK) as i:
                T.buffer_store(self.listed, magnitudes[i], [count[0]])
                T.buffer_store(count, count[0] + T.cast(magnitudes[i] <= limit[0], "int32"), [0])
        self.fill_up(self.listed, T.int32(0), count[0], math.inf)
        return self.nth_least(self.listed, count[0], top_k)

    def nth_least(self, magnitudes: Buffer, count: Value, n: Value) -> Value:
        """The `n`th of `count` magnitudes in ascending order."""
        lanes = self.simd.lanes

        def is_reached(bits: Value) -> Value:
            """True if fewer than `n` are below."""
            below = Register(lanes, 0, "int32")
            with T.serial((count + (lanes - 1)) // lanes) as i:
                found = T.reinterpret(typed("int32", lanes), self.simd.load(magnitudes, (i * lanes,)))
                below.set(below.get() + T.cast(found < splat(bits, lanes), typed("int32", lanes)))
            return tree(below.get(), lambda a, b: a + b) < n

        return name(T.reinterpret("float32", T.min(_largest(is_reached), T.int32(INFINITY_BITS))))

    def weigh(self, limit: Value, lists: Value, lightest: Value) -> None:
        """The weights of tokens whose magnitude is up to `limit`, their blocks' sums, and if it `lists` those from `lightest` on."""
        limit = name(limit)
        stretches, visited = T.int64(STRETCHES), local(1, "int32")
        T.buffer_store(visited, T.int32(0), [0])
        with T.serial(self.num_blocks) as block:
            T.buffer_store(visited, visited[0] + T.cast(self.least[block] <= limit, "int32"), [0])

        def weigh(stretch: Value) -> None:
            count = local(1, "int32")
            T.buffer_store(count, T.int32(0), [0])
            with T.serial(self.blocks_each) as i:
                block = name(T.cast(stretch, "int32") * self.blocks_each + T.cast(i, "int32"))
                with T.If(block < self.num_blocks), T.Then():
                    T.buffer_store(self.sums, T.float64(0), [block])
                    with T.If(self.least[block] <= limit), T.Then():
                        self.weigh_block(block, limit)
                        with T.If(T.And(lists, self.sums[block] >= T.cast(lightest, "float64"))), T.Then():
                            self.list_block(block, stretch, count, lightest)
            T.buffer_store(self.counts, count[0], [stretch])
            self.fill_up(self.listed, T.cast(stretch, "int32") * self.room, count[0], 0.0)

        with T.If(visited[0] < FEW_BLOCKS):
            with T.Then(), T.serial(stretches) as stretch:
                weigh(stretch)
            with T.Else(), T.parallel(stretches) as stretch:
                weigh(stretch)

    def weigh_block(self, block: Value, limit: Value) -> None:
        """A block's weights and their sum."""
        lanes, magnitudes = self.simd.lanes, self.magnitudes(block)
        limit = name(T.min(limit, T.float32(WEIGHTLESS)))

        def weight(at: int) -> Value:
            magnitude = self.simd.load(magnitudes, (at,))
            weight = self.simd.exp(splat(0.0, lanes) - magnitude, nonpositive=True)
            return name(T.Select(magnitude <= splat(limit, lanes), weight, splat(0.0, lanes)))

        self.store_block(block, weight)

    def store_block(self, block: Value, weight: Callable[[int], Value]) -> None:
        """Writes the vectors of a block's weights, and their sum."""
        lanes, total = self.simd.lanes, Register(self.simd.lanes, 0, "float64")
        for at in range(0, MAXIMA_BLOCK, lanes):
            value = weight(at)
            self.simd.store(self.weights, value, (block * MAXIMA_BLOCK + at,))
            total.set(total.get() + T.cast(value, typed("float64", lanes)))
        T.buffer_store(self.sums, tree(total.get(), lambda a, b: a + b), [block])

    def list_block(self, block: Value, stretch: Value, count: Buffer, lightest: Value) -> None:
        """Adds the weights from `lightest` on to the stretch's list."""
        start = name(T.cast(stretch, "int32") * self.room)
        with T.serial(MAXIMA_BLOCK) as i:
            weight = name(self.weights[block * MAXIMA_BLOCK + i])
            T.buffer_store(self.listed, weight, [start + count[0]])
            T.buffer_store(count, count[0] + T.cast(weight >= lightest, "int32"), [0])

    def end_of_top_p(self, wanted: Value) -> Value:
        """The weight of the last of the heaviest that weigh what is `wanted` together: its power of two, then, among few, the rest."""
        heavier = local(1, "float64")  # the sum of weights that are listed no more
        T.buffer_store(heavier, T.float64(0), [0])
        power = _largest(lambda bits: heavier[0] + self.listed_from(bits) >= wanted, range(29, 22, -1))
        T.buffer_store(heavier, self.listed_from(name(power + T.int32(1 << 23))), [0])
        self.list_power(power)
        return name(
            T.reinterpret("float32", _largest(lambda bits: heavier[0] + self.listed_from(bits) >= wanted, range(22, -1, -1), power))
        )

    def listed_from(self, bits: Value) -> Value:
        """The sum of listed weights whose bits are at least these."""
        lanes = self.simd.lanes
        total = Register(lanes, 0, "float64")
        with T.serial(STRETCHES) as stretch, T.serial((self.counts[stretch] + (lanes - 1)) // lanes) as i:
            weight = self.simd.load(self.listed, (stretch * self.room + i * lanes,))
            is_in = T.reinterpret(typed("int32", lanes), weight) >= splat(bits, lanes)
            total.set(total.get() + T.cast(T.Select(is_in, weight, splat(0.0, lanes)), typed("float64", lanes)))
        return tree(total.get(), lambda a, b: a + b)

    def list_power(self, power: Value) -> None:
        """Makes one list of all, of the weights from a power of two to the next."""
        count = local(1, "int32")
        T.buffer_store(count, T.int32(0), [0])
        with T.serial(STRETCHES) as stretch, T.serial(self.counts[stretch]) as i:
            weight = name(self.listed[stretch * self.room + i])
            T.buffer_store(self.listed, weight, [count[0]])  # where all was read
            is_in = (T.reinterpret("int32", weight) ^ power) < T.int32(1 << 23)
            T.buffer_store(count, count[0] + T.cast(is_in, "int32"), [0])
        with T.serial(STRETCHES) as stretch:
            T.buffer_store(self.counts, T.Select(stretch == 0, count[0], T.int32(0)), [stretch])
        self.fill_up(self.listed, T.int32(0), count[0], 0.0)

    def leave_out(self, lightest: Value) -> None:
        """Takes their weight from tokens that are lighter."""
        lanes = self.simd.lanes

        def weight(block: Value, at: int) -> Value:
            value = self.simd.load(self.weights, (block * MAXIMA_BLOCK + at,))
            return name(T.Select(value >= splat(lightest, lanes), value, splat(0.0, lanes)))

        with T.serial(self.num_blocks) as block, T.If(self.sums[block] > T.float64(0)), T.Then():
            with T.If(self.sums[block] >= T.cast(lightest, "float64")):
                with T.Then():
                    self.store_block(block, lambda at: weight(block, at))
                with T.Else():
                    T.buffer_store(self.sums, T.float64(0), [block])

    def total(self) -> Value:
        """The sum of all weights."""
        total = local(1, "float64")
        T.buffer_store(total, T.float64(0), [0])
        with T.serial(self.num_blocks) as block:
            T.buffer_store(total, total[0] + self.sums[block], [0])
        return total[0]

    def at_share(self, share: Value) -> Value:
        """The first token up to which weights sum to more than a share of all."""
        wanted = name(share * self.total())
        block, before = _first_past(lambda i: self.sums[i], self.num_blocks, T.float64(0), wanted)
        start = name(block * MAXIMA_BLOCK)
        within, _ = _first_past(lambda i: T.cast(self.weights[start + i], "float64"), MAXIMA_BLOCK, before, wanted)
        return name(start + within)


def _largest(holds: Callable[[Value], Value], bits: range = range(30, -1, -1), start: Value | int = 0) -> Value:
    """The largest int32 that a condition holds of, if it does of `start` and all up to it; those are tried that differ in `bits` alone."""
    found = local(1, "int32")
    T.buffer_store(found, T.int32(start) if isinstance(start, int) else start, [0])
    with T.serial(len(bits)) as i:
        candidate = name(found[0] | (T.int32(1 << bits[0]) >> T.cast(i, "int32")))
        with T.If(holds(candidate)), T.Then():
            T.buffer_store(found, candidate, [0])
    return found[0]


def _first_past(value: Callable[[Value], Value], count: int, before: Value, wanted: Value) -> tuple[Value, Value]:
    """The first place up to which values and `before` are more than is `wanted`, else the last that is not 0; and the sum before it."""
    found, start, total, is_past = local(1, "int32"), local(1, "float64"), local(1, "float64"), local(1, "int32")
    for buffer, initial in ((found, T.int32(0)), (start, before), (total, before), (is_past, T.int32(0))):
        T.buffer_store(buffer, initial, [0])
    with T.serial(count) as i, T.If(T.And(is_past[0] == 0, value(i) > T.float64(0))), T.Then():
        T.buffer_store(found, T.cast(i, "int32"), [0])
        T.buffer_store(start, total[0], [0])
        T.buffer_store(total, total[0] + value(i), [0])
        T.buffer_store(is_past, T.cast(total[0] > wanted, "int32"), [0])
    return found[0], start[0]
