"""Columns of a head's state, of linear attention, and the rows of a token that go with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, name, pieces, splat
from cupola.targets.cpu.recurrent.blocks import Blocks, prefetch_part
from cupola.targets.generic.recurrent import RecurrentShape, RecurrentTensors, Span

AHEAD = 16  # rows of the pool that are asked for before they are needed


@dataclass(frozen=True)
class Columns:
    """The columns from `start` on of a head's state, as many as a block has, and the sequence that it is of.

    Attributes:
        group: the head of q and k that serves it.
        places: where the vectors of a row begin.
    """

    simd: Simd
    blocks: Blocks
    t: RecurrentTensors
    shape: RecurrentShape
    span: Span
    head: Value
    group: Value
    places: list[Value]

    @staticmethod
    def of_task(simd: Simd, blocks: Blocks, t: RecurrentTensors, shape: RecurrentShape, span: Span, block: Value) -> Columns:
        """Those of block number `block` of a state."""
        heads, _, value_dim = shape.state
        of_head = value_dim // blocks.size
        head = name(block // of_head)
        group = name(head // (heads // int(t.given["k"].shape[1])))
        return Columns(simd, blocks, t, shape, span, head, group, blocks.places(name(block % of_head * blocks.size)))

    @property
    def start(self) -> Value:
        """The first column."""
        return self.places[0]

    @property
    def key_dim(self) -> int:
        """Rows of the state."""
        return self.shape.state[1]

    @property
    def lanes(self) -> int:
        """Of each vector."""
        return self.blocks.lanes

    @property
    def decays_each(self) -> bool:
        """True if each row has a decay of its own."""
        return len(self.t.given["decay"].shape) == 3

    @property
    def num_kept(self) -> int:
        """The shares of the state that are kept at a token."""
        return self.key_dim if self.decays_each else 1

    def key(self, token: Value, a: Value) -> Value:
        """Dimension `a` of a token's key."""
        return self.t.given["k"][token, self.group, a]

    def keys(self, token: Value, start: int, lanes: int) -> Value:
        """Dimensions of a token's key."""
        return self.simd.load(self.t.given["k"], (token, self.group, start), lanes)

    def query(self, token: Value, a: Value) -> Value:
        """Dimension `a` of a token's query."""
        return self.t.given["q"][token, self.group, a]

    def values(self, token: Value) -> list[Value]:
        """A token's value in these columns."""
        return [self.simd.load(self.t.given["v"], (token, self.head, place), self.lanes) for place in self.places]

    def write(self, token: Value, results: list[Value]) -> None:
        """A token's result in these columns."""
        for result, place in zip(results, self.places, strict=True):
            self.simd.store(self.t.out, result, (token, self.head, place))

    def row(self, a: Value, slot: Value | None = None) -> list[Value]:
        """Row `a` of the state, as the pool has it before the call; or that of a slot."""
        slot = self.span.source if slot is None else slot
        return [self.simd.load(self.t.pool, (self.t.layer, slot, self.head, a, place), self.lanes) for place in self.places]

    def set_row(self, a: Value, values: list[Value]) -> None:
        """Writes row `a` of the state to the pool."""
        for value, place in zip(values, self.places, strict=True):
            self.simd.store(self.t.pool, value, (self.t.layer, self.span.slot, self.head, a, place))

    def begin(self) -> Columns:
        """Writes zeros if all of the sequence's tokens are new, which then are what the state is before the call."""
        span = self.span
        with T.If(span.goes_on == T.int32(0)), T.Then(), T.serial(self.key_dim) as a:
            self.set_row(a, [splat(0.0, self.lanes) for _ in self.places])
        return replace(self, span=replace(span, source=name(T.if_then_else(span.goes_on != T.int32(0), span.source, span.slot))))

    def keep(self, token: Value, kept: Buffer, *index: Value) -> None:
        """Writes to `kept` from `index` on what a token keeps of the state: one share, or one of each row."""
        decay = self.t.given["decay"]
        for start, lanes in pieces(self.num_kept, self.simd.lanes):
            place = (token, self.head, start) if self.decays_each else (token, self.head)
            self.simd.store(kept, self.simd.exp(self.simd.load(decay, place, lanes), nonpositive=True), (*index, start))

    def prefetch(self, token: Value) -> None:
        """Brings what a token has nearer."""
        columns = (self.start, self.blocks.size)
        parts = [(self.t.given[label], self.group, 0, self.key_dim) for label in ("q", "k")] + [(self.t.given["v"], self.head, *columns)]
        parts += [(self.t.given["decay"], self.head, 0, self.key_dim)] * self.decays_each
        for buffer, head, start, size in parts:
            prefetch_part(self.simd, buffer, (token, head), start, size)
        prefetch_part(self.simd, self.t.out, (token, self.head), *columns, write=True)

    def prefetch_row(self, a: Value) -> None:
        """Brings a row of the state nearer, as the pool has it before the call."""
        prefetch_part(self.simd, self.t.pool, (self.t.layer, self.span.source, self.head, a), self.start, self.blocks.size)
