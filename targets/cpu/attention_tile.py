"""A tile of attention: some (token, head) rows of one sequence, whose heads share K/V, over the keys in chunks.

A chunk gives each row a state of its own: the highest score, the sum of the weights relative to it, the weighted sum of
the values (arXiv:1805.02867, arXiv:2205.14135). States are folded in the order of the chunks, by the same operations
whether one thread goes over all chunks or each was another's task. Keys that a row does not see add exactly zero to
it, and a chunk of such keys leaves its state as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention_kernel import Kernel, Tensors
from cupola.targets.cpu.loops import between
from cupola.targets.cpu.rotary import rotate
from cupola.targets.cpu.simd import CACHE_LINE, Buffer, Register, Simd, Value, iota, lanes_of, local, name, pieces, splat, tree

HIDDEN = -1e30  # the score of a key that a row does not see; finite, so that no infinities are subtracted


@dataclass(frozen=True)
class State:
    """Where the state of a tile's softmax stands: `Kernel.state_size` floats of `buffer`, from `base` on."""

    buffer: Buffer
    base: Value | int = 0

    def place(self, index: Value | int) -> tuple[Value | int]:
        """The buffer's index of a float of the state."""
        return (index if isinstance(self.base, int) and self.base == 0 else self.base + index,)


@dataclass(frozen=True)
class Ahead:
    """The keys that come after a chunk's, wherever they are: of `group` in `sequence`, from `position` on."""

    sequence: Value
    group: Value
    position: Value


@dataclass(frozen=True)
class Scratch:
    """A task's own memory; `keys` where a chunk's must be copied together, scales of its keys and values where they are quantized."""

    queries: Buffer
    scores: Buffer
    keys: Buffer | None
    key_scales: Buffer | None
    value_scales: Buffer | None

    @staticmethod
    def allocate(kernel: Kernel, num_rows: int) -> Scratch:
        keys = None if kernel.keys_in_vectors else local((kernel.key_dim, kernel.chunk))
        scales = [local(kernel.chunk) if kernel.is_quantized else None for _ in range(2)]
        return Scratch(local((num_rows, kernel.key_dim)), local((num_rows, kernel.chunk)), keys, *scales)


@dataclass(frozen=True)
class Tile:
    """The rows of a sequence from row `first` on, `num_rows` of them. Those past the end repeat the last one and are not written."""

    tensors: Tensors
    num_rows: int
    sequence: Value
    group: Value
    num_tokens: Value
    first: Value

    @property
    def kernel(self) -> Kernel:
        return self.tensors.kernel

    @property
    def simd(self) -> Simd:
        return self.tensors.simd

    def row(self, row: Value | int) -> Value:
        """The row of the sequence that a row of the tile is."""
        return T.min(self.first + row, self.num_tokens * self.kernel.heads_per_group - 1)

    def position(self, row: Value | int) -> Value:
        """Where in its sequence a row of the tile stands."""
        return name(self.tensors.context(self.sequence) - self.num_tokens + self.row(row) // self.kernel.heads_per_group)

    def token_and_head(self, row: Value | int) -> tuple[Value, Value]:
        """Where a row of the tile stands in q and out."""
        heads, index = self.kernel.heads_per_group, name(self.row(row))
        token = T.cast(self.tensors.query_starts[self.sequence], "int64") + index // heads
        return name(token), name(self.group * heads + index % heads)

    def keys(self) -> tuple[Value, Value]:
        """The keys that some row sees: the first, and the one after the last."""
        window = self.kernel.window
        begin = name(T.max(T.int64(0), self.position(0) + 1 - window)) if window else T.int64(0)
        return begin, name(self.position(self.num_rows - 1) + 1)

    def load_queries(self) -> Scratch:
        """Scratch memory with the rotated and scaled queries."""
        scratch = Scratch.allocate(self.kernel, self.num_rows)
        with T.serial(self.num_rows) as row:
            self.rotate_query(*self.token_and_head(row), 1.0, lambda at, value: self.simd.store(scratch.queries, value, (row, at)))
        return scratch

    def rotate_query(self, token: Value, head: Value, unit: float, store: Callable[[int, Value], None]) -> None:
        """A head of a token's query, rotated and scaled, by `unit` besides."""
        t, kernel = self.tensors, self.kernel
        start = name(kernel.starts[0] + head * kernel.key_dim)

        def scale(at: int, value: Value) -> None:
            store(at, value * splat(kernel.scale * unit, lanes_of(value)))

        rotate(self.simd, kernel.rotation, t.q, (token, start), t.cos, t.sin, token, scale)

    def shape(self, score: Value, row: Value | int, position: Value, unit: float, *, masked: bool) -> Value:
        """Soft cap, ALiBi (arXiv:2108.12409) and, where asked for, the causal window, on a row's scores of the keys from `position` on.

        A score is one logit times `unit`.
        """
        kernel, simd, slopes, lanes = self.kernel, self.simd, self.tensors.slopes, self.simd.lanes
        if kernel.softcap:
            score = simd.tanh(score * splat(1 / (kernel.softcap * unit), lanes)) * splat(kernel.softcap * unit, lanes)
        if not masked and slopes is None:
            return name(score)
        distance = name(iota(T.cast(position - self.position(row), "int32"), lanes))
        if slopes is not None:
            slope = splat(slopes[self.token_and_head(row)[1]] * T.float32(unit), lanes)
            score = simd.fma(slope, T.cast(distance, f"float32x{lanes}"), score)
        if masked:
            score = T.Select(distance <= T.broadcast(T.int32(0), lanes), name(score), splat(HIDDEN, lanes))
        if masked and kernel.window:
            score = T.Select(distance > T.broadcast(T.int32(-kernel.window), lanes), score, splat(HIDDEN, lanes))
        return name(score)

    def start(self) -> State:
        """The state before the first chunk; a sink counts as a first key whose value is zero."""
        kernel, sinks = self.kernel, self.tensors.sinks
        state, padded = State(local(kernel.state_size(self.num_rows))), kernel.padded(self.num_rows)
        self.fill(state, 0, padded, HIDDEN)
        self.fill(state, padded, kernel.state_size(self.num_rows), 0.0)
        if sinks is not None:
            with T.serial(self.num_rows) as row:
                T.buffer_store(state.buffer, sinks[self.token_and_head(row)[1]], [row])
                T.buffer_store(state.buffer, T.float32(1), [row + padded])
        return state

    def fill(self, state: State, start: int, stop: int, value: float) -> None:
        for at, lanes in pieces(stop - start, self.simd.lanes):
            self.simd.store(state.buffer, splat(value, lanes), state.place(start + at))

    def run_chunk(self, chunk: Value, scratch: Scratch, state: State, ahead: Ahead) -> None:
        """Makes `state` that of one chunk, and asks for the first of the keys, values and scales `ahead`."""
        kernel = self.kernel
        at, (begin, end) = name(chunk * kernel.chunk), self.keys()
        low, high = name(T.max(begin - at, T.int64(0))), name(T.min(end - at, T.int64(kernel.chunk)))
        self.fill(state, 0, 2 * kernel.padded(self.num_rows), 0.0)
        if scratch.keys is not None:
            self.gather_keys(at, end, scratch.keys)
        for pool, copy in ((self.tensors.k_scales, scratch.key_scales), (self.tensors.v_scales, scratch.value_scales)):
            if pool is not None and copy is not None:
                self.gather_scales(at, end, pool, copy, ahead)
        strip = kernel.vectors_beside(self.num_rows, kernel.chunk // self.simd.lanes) * self.simd.lanes
        begin = name(low // strip)
        strips = _Strips(self, scratch, state, at, strip, begin, name((high + strip - 1) // strip), ahead)
        strips.score()
        strips.weigh()
        strips.add_values(low, high)

    def gather_keys(self, at: Value, end: Value, keys: Buffer) -> None:
        """Copies a chunk's keys together, for pages that do not hold whole vectors."""
        t, kernel = self.tensors, self.kernel
        with T.serial(kernel.chunk) as i:
            position = name(T.min(at + i, end - 1))
            block, offset = t.place_of(self.sequence, position)
            with T.serial(kernel.key_dim) as d:
                self.simd.store(keys, self.simd.load(t.k_pages, (t.layer, block, self.group, d, offset), 1), (d, i))

    def gather_scales(self, at: Value, end: Value, pool: Buffer, scales: Buffer, ahead: Ahead) -> None:
        """Copies the scales of a chunk's keys or values together, and asks for those of the next."""
        t, kernel, last = self.tensors, self.kernel, name(self.tensors.context(ahead.sequence) - 1)
        lanes = self.simd.lanes if kernel.keys_in_vectors else 1
        with T.serial(kernel.chunk // lanes) as i:
            position = name(at + i * lanes if kernel.keys_in_vectors else T.min(at + i, end - 1))
            block, offset = t.place_of(self.sequence, position)
            self.simd.store(scales, self.simd.load(pool, (t.layer, block, self.group, offset), lanes), (i * lanes,))
            later = name(T.min(ahead.position + i * lanes, last))
            block, offset = t.place_of(ahead.sequence, later)
            self.simd.prefetch(pool, (t.layer, block, ahead.group, offset))

    def fold(self, running: State, state: State) -> None:
        """Adds the state of the next chunk to the running one."""
        kernel, simd = self.kernel, self.simd
        padded, lanes = kernel.padded(self.num_rows), simd.lanes
        factors = local((2, padded))
        for start in range(0, padded, lanes):
            old, high = (simd.load(s.buffer, s.place(start)) for s in (running, state))
            new = name(T.max(old, high))
            keep, add = simd.exp(old - new, nonpositive=True), simd.exp(high - new, nonpositive=True)
            simd.store(factors, keep, (0, start))
            simd.store(factors, add, (1, start))
            kept, added = (simd.load(s.buffer, s.place(padded + start)) for s in (running, state))
            simd.store(running.buffer, new, running.place(start))
            simd.store(running.buffer, simd.fma(added, add, kept * keep), running.place(padded + start))
        with T.serial(self.num_rows) as row:
            keep, add = name(factors[0, row]), name(factors[1, row])
            place = name(2 * padded + row * kernel.value_dim)
            for start, width in pieces(kernel.value_dim, lanes):
                kept, added = (simd.load(s.buffer, s.place(place + start), width) for s in (running, state))
                simd.store(running.buffer, simd.fma(added, splat(add, width), kept * splat(keep, width)), running.place(place + start))

    def finish(self, state: State) -> None:
        """Divides by the totals and writes the rows."""
        kernel, simd = self.kernel, self.simd
        padded, rows = kernel.padded(self.num_rows), name(self.num_tokens * kernel.heads_per_group)
        with T.serial(self.num_rows) as row, T.If(self.first + row < rows), T.Then():
            token, head = self.token_and_head(row)
            inverse = name(T.float32(1) / state.buffer[state.place(padded + row)])
            place = name(2 * padded + row * kernel.value_dim)
            for start, lanes in pieces(kernel.value_dim, simd.lanes):
                value = simd.load(state.buffer, state.place(place + start), lanes) * splat(inverse, lanes)
                simd.store(self.tensors.out, value, (token, head * kernel.value_dim + start))


@dataclass(frozen=True)
class _Strips:
    """The keys of a chunk in strips of a few vectors, from strip `begin` to `end`; the chunk begins at position `at`.

    While a strip is worked on, the next one's keys or values are fetched: memory then is busy all the time. The last one asks for
    what is `ahead`.
    """

    tile: Tile
    scratch: Scratch
    state: State
    at: Value
    width: int
    begin: Value
    end: Value
    ahead: Ahead

    def vectors(self, strip: Value) -> list[tuple[Value, Value]]:
        """The block, and the offset in it, of each vector of a strip."""
        return [self.place(self.at + strip * self.width + start) for start in range(0, self.width, self.tile.simd.lanes)]

    def after(self, strip: Value) -> tuple[Value, list[tuple[Value, Value]]]:
        """The group, and the places of the vectors, of the strip after `strip`; past the context, of what is read anyway."""
        is_last, ahead, t = strip + 1 >= self.end, self.ahead, self.tile.tensors
        sequence, group = (name(T.Select(is_last, a, b)) for a, b in ((ahead.sequence, self.tile.sequence), (ahead.group, self.tile.group)))
        first, last = name(T.Select(is_last, ahead.position, self.at + (strip + 1) * self.width)), name(t.context(sequence) - 1)
        positions = [name(T.min(first + start, last)) for start in range(0, self.width, self.tile.simd.lanes)]
        return group, [t.place_of(sequence, position) for position in positions]

    def place(self, position: Value) -> tuple[Value, Value]:
        return self.tile.tensors.place_of(self.tile.sequence, name(position))

    def all_seen(self, strip: Value) -> Value:
        """Whether every row sees every key of the strip."""
        first = self.at + strip * self.width
        seen = first + (self.width - 1) <= self.tile.position(0)
        window = self.tile.kernel.window
        return T.And(seen, first > self.tile.position(self.tile.num_rows - 1) - window) if window else seen

    def score(self) -> None:
        """queries · keys, soft-capped, with ALiBi, masked; the highest of each row into the state."""
        tile, lanes = self.tile, self.tile.simd.lanes
        highest = local((tile.num_rows, lanes))
        for row in range(tile.num_rows):
            tile.simd.store(highest, splat(HIDDEN, lanes), (row, 0))
        with between(self.begin, self.end) as strip:
            starts = [name(strip * self.width + start) for start in range(0, self.width, lanes)]
            dots = self.multiply(strip, starts)
            with T.If(self.all_seen(strip)):
                with T.Then():
                    self.store(starts, dots, highest, masked=False)
                with T.Else():
                    self.store(starts, dots, highest, masked=True)
        for row in range(tile.num_rows):
            T.buffer_store(self.state.buffer, tree(tile.simd.load(highest, (row, 0)), T.max), self.state.place(row))

    def multiply(self, strip: Value, starts: list[Value]) -> list[list[Register]]:
        tile, t, simd, keys = self.tile, self.tile.tensors, self.tile.simd, self.scratch.keys
        places, (group, ahead) = (self.vectors(strip), self.after(strip)) if keys is None else ([], (tile.group, []))
        dots = [[Register(simd.lanes) for _ in starts] for _ in range(tile.num_rows)]
        dims = math.gcd(tile.kernel.key_dim, max(1, self.elements_of_line // tile.kernel.block_size))  # that lie in one line
        with T.serial(tile.kernel.key_dim // dims) as step:
            for block, offset in ahead:
                simd.prefetch(t.k_pages, (t.layer, block, group, step * dims, offset))
            for d in (name(step * dims + i) for i in range(dims)):
                if keys is None:
                    loaded = [simd.load(t.k_pages, (t.layer, block, tile.group, d, offset)) for block, offset in places]
                else:
                    loaded = [simd.load(keys, (d, start)) for start in starts]
                for row in range(tile.num_rows):
                    query = name(splat(self.scratch.queries[row, d], simd.lanes))
                    for dot, key in zip(dots[row], loaded, strict=True):
                        dot.set(simd.fma(query, key, dot.get()))
        return dots

    @property
    def elements_of_line(self) -> int:
        """Elements of the pages in a cache line."""
        return int(CACHE_LINE // tvm.DataType(self.tile.kernel.kv_dtype).itemsize)

    def store(self, starts: list[Value], dots: list[list[Register]], highest: Buffer, *, masked: bool) -> None:
        simd = self.tile.simd
        for row, registers in enumerate(dots):
            high = simd.load(highest, (row, 0))
            for start, register in zip(starts, registers, strict=True):
                dot = register.get()
                if self.scratch.key_scales is not None:
                    dot = dot * simd.load(self.scratch.key_scales, (start,))
                score = self.tile.shape(dot, row, self.at + start, 1.0, masked=masked)
                simd.store(self.scratch.scores, score, (row, start))
                high = name(T.max(high, score))
            simd.store(highest, high, (row, 0))

    def weigh(self) -> None:
        """Scores become weights relative to the row's highest, and their sum goes into the state."""
        tile, lanes = self.tile, self.tile.simd.lanes
        with T.serial(tile.num_rows) as row:
            high, total = name(splat(self.state.buffer[self.state.place(row)], lanes)), Register(lanes)
            with between(self.begin, self.end) as strip, T.If(self.all_seen(strip)):
                with T.Then():
                    self.weigh_strip(row, strip, high, total, masked=False)
                with T.Else():
                    self.weigh_strip(row, strip, high, total, masked=True)
            place = self.state.place(tile.kernel.padded(tile.num_rows) + row)
            T.buffer_store(self.state.buffer, tree(total.get(), lambda x, y: x + y), place)

    def weigh_strip(self, row: Value, strip: Value, high: Value, total: Register, *, masked: bool) -> None:
        simd, scores = self.tile.simd, self.scratch.scores
        for start in range(0, self.width, simd.lanes):
            place = (row, strip * self.width + start)
            score = simd.load(scores, place)
            weight = simd.exp(score - high, nonpositive=True)
            if masked:
                weight = name(T.Select(score <= splat(HIDDEN / 2, simd.lanes), splat(0.0, simd.lanes), weight))
            total.set(total.get() + weight)
            if self.scratch.value_scales is not None:
                weight = weight * simd.load(self.scratch.value_scales, (place[1],))
            simd.store(scores, weight, place)

    def add_values(self, low: Value, high: Value) -> None:
        """weights @ values into the state, over the keys `low` to `high` of the chunk: others were perhaps never written."""
        tile = self.tile
        columns = pieces(tile.kernel.value_dim, tile.simd.lanes)
        beside = min(4, len(columns))
        while (tile.num_rows + 1) * beside + 1 > tile.kernel.isa.num_registers and beside > 1:
            beside //= 2
        for first in range(0, len(columns), beside):
            self.add_value_columns(columns[first : first + beside], low, high)

    def add_value_columns(self, columns: list[tuple[int, int]], low: Value, high: Value) -> None:
        tile, t, kernel, simd = self.tile, self.tile.tensors, self.tile.kernel, self.tile.simd
        totals = [[Register(lanes) for _, lanes in columns] for _ in range(tile.num_rows)]
        run = math.gcd(kernel.block_size, self.width)  # keys that lie side by side in a page
        fetches = columns[0][0] == 0 and kernel.keys_in_vectors
        with between(self.begin, self.end) as strip:
            first = name(T.max(low - strip * self.width, T.int64(0)))
            fetch = self.value_fetcher(strip) if fetches else lambda key: None
            with T.serial(self.width // run) as part:
                start = name(strip * self.width + part * run)
                block, offset = self.place(self.at + start)
                with between(T.max(low - start, T.int64(0)), T.min(high - start, T.int64(run))) as i:
                    fetch(name(part * run + i - first))
                    values = [simd.load(t.v_pages, (t.layer, block, tile.group, offset + i, at), lanes) for at, lanes in columns]
                    for row in range(tile.num_rows):
                        weight = name(self.scratch.scores[row, start + i])
                        for total, value in zip(totals[row], values, strict=True):
                            total.set(simd.fma(splat(weight, total.lanes), value, total.get()))
            if fetches:  # the share of keys that no row sees
                with between(T.min(high - strip * self.width, T.int64(self.width)) - first, T.int64(self.width)) as i:
                    fetch(i)
        for row in range(tile.num_rows):
            place = 2 * kernel.padded(tile.num_rows) + row * kernel.value_dim
            for total, (first, _) in zip(totals[row], columns, strict=True):
                simd.store(self.state.buffer, total.get(), self.state.place(place + first))

    def value_fetcher(self, strip: Value) -> Callable[[Value], None]:
        """Fetches the share of the values after `strip` that falls to one of its keys: lines of all vectors in turns, which keeps more of
        memory busy."""
        t, simd, (group, vectors) = self.tile.tensors, self.tile.simd, self.after(strip)
        count, lines = len(vectors), -(-self.tile.kernel.value_dim // self.elements_of_line)  # of a value
        places = local((2, count), "int64")
        for vector, place in enumerate(vectors):
            for which, part in enumerate(place):
                T.buffer_store(places, part, [which, vector])

        def fetch(key: Value) -> None:
            for line in (name(key * lines + i) for i in range(lines)):
                (block, offset), mine = (name(places[which, line % count]) for which in range(2)), name(line // count)
                simd.prefetch(t.v_pages, (t.layer, block, group, offset + mine // lines, mine % lines * self.elements_of_line))

        return fetch
