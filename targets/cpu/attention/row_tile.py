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

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.shape import Kernel, Tensors
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, iota, lanes_of, local, name, pieces, splat
from cupola.targets.cpu.rows.rotary import rotate

LOG2_E = math.log2(math.e)  # scores are logarithms to base 2
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

    def keys_of(self, chunk: Value) -> tuple[Value, Value]:
        """The keys of a chunk that some row sees, counted from its first: none if the second is not above the first."""
        return self.kernel.part_of(chunk, *self.keys())

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

    def start(self, state: State) -> None:
        """Makes `state` that before the first chunk; a sink counts as a first key whose value is zero."""
        kernel, sinks = self.kernel, self.tensors.sinks
        padded = kernel.padded(self.num_rows)
        self.fill(state, 0, padded, HIDDEN)
        self.fill(state, padded, kernel.state_size(self.num_rows), 0.0)
        if sinks is not None:
            with T.serial(self.num_rows) as row:
                T.buffer_store(state.buffer, sinks[self.token_and_head(row)[1]] * T.float32(LOG2_E), state.place(row))
                T.buffer_store(state.buffer, T.float32(1), state.place(row + padded))

    def fill(self, state: State, start: int, stop: int, value: float) -> None:
        for at, lanes in pieces(stop - start, self.simd.lanes):
            self.simd.store(state.buffer, splat(value, lanes), state.place(start + at))

    def fold(self, running: State, state: State) -> None:
        """Adds the state of the next chunk to the running one."""
        kernel, simd = self.kernel, self.simd
        padded, lanes = kernel.padded(self.num_rows), simd.lanes
        factors = local((2, padded))
        for start in range(0, padded, lanes):
            old, high = (simd.load(s.buffer, s.place(start)) for s in (running, state))
            new = name(T.max(old, high))
            keep, add = simd.exp2(old - new), simd.exp2(high - new)
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
