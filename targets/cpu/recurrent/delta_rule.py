"""Linear attention with the delta rule: S ← kept · S;  u = beta · (v − k·S);  S ← S + k ⊗ u;  y = q·S.

A token must know k·S before it changes a row. That is added up while the token before changes the rows, so that each of several tokens goes
through the state once. They do so in a copy of it: neighbouring rows of the pool would want the same places of the nearest cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Register, Value, local, name, pieces, splat
from cupola.targets.cpu.recurrent.columns import AHEAD, Columns

_Row = Callable[[Value], list[Value]]
_SetRow = Callable[[Value, list[Value]], None]


def correct(columns: Columns) -> None:
    """Takes the sequence's tokens in these columns."""
    columns = columns.begin()
    count, first = columns.span.count, columns.span.first
    with T.If(count == T.int64(1)), T.Then():
        alone = _Delta.allocate(columns)
        alone.meet(first, columns.row, None)
        alone.change(first, columns.row, columns.set_row, None)
    with T.If(count > T.int64(1)), T.Then():
        several, copy = _Delta.allocate(columns), local((columns.key_dim, columns.blocks.size))
        starts = range(0, columns.blocks.size, columns.lanes)

        def row(a: Value) -> list[Value]:
            return [columns.simd.load(copy, (a, start), columns.lanes) for start in starts]

        def set_row(a: Value, values: list[Value]) -> None:
            for start, value in zip(starts, values, strict=True):
                columns.simd.store(copy, value, (a, start))

        several.meet(first, columns.row, set_row)
        with T.serial(count - T.int64(1)) as i:
            columns.prefetch(name(first + i + 2))
            several.change(name(first + i), row, set_row, name(first + i + 1))
        several.change(name(first + count - 1), row, columns.set_row, None)


@dataclass(frozen=True)
class _Delta:
    """The token that comes next.

    Attributes:
        kept: what it keeps of the state, [1] or [K].
        factors: its key times that, [K].
        known: k·S, of the state that it keeps.
    """

    columns: Columns
    kept: Buffer
    factors: Buffer
    known: list[Register]

    @staticmethod
    def allocate(columns: Columns) -> _Delta:
        """Of no token yet."""
        return _Delta(columns, local(columns.num_kept), local(columns.key_dim), [Register(columns.lanes) for _ in columns.places])

    def meet(self, token: Value, row: _Row, set_row: _SetRow | None) -> None:
        """Begins with a token, for which the state's rows are read, and copied if they can be set."""
        columns, simd = self.columns, self.columns.simd
        self._prepare(token, self.kept)
        with T.serial(columns.key_dim) as a:
            columns.prefetch_row(name(a + AHEAD))
            factor, olds = splat(self.factors[a], columns.lanes), row(a)
            for known, old in zip(self.known, olds, strict=True):
                known.set(simd.fma(factor, old, known.get()))
            if set_row is not None:
                set_row(a, olds)

    def change(self, token: Value, row: _Row, set_row: _SetRow, following: Value | None) -> None:
        """Takes the token, and finds what the one that follows, if there is one, must know."""
        columns, simd, lanes = self.columns, self.columns.simd, self.columns.lanes
        updates, sums = self._updates(token), [Register(lanes) for _ in columns.places]
        kept = local(columns.num_kept)
        if following is not None:
            self._prepare(following, kept)
        for known in self.known:
            known.set(splat(0.0, lanes))
        with T.serial(columns.key_dim) as a:
            held = splat(self.kept[a if columns.decays_each else 0], lanes)
            key, query, factor = (splat(x, lanes) for x in (columns.key(token, a), columns.query(token, a), self.factors[a]))
            rows = [name(simd.fma(key, update, name(old * held))) for update, old in zip(updates, row(a), strict=True)]
            for new, total, known in zip(rows, sums, self.known, strict=True):
                total.set(simd.fma(query, new, total.get()))
                if following is not None:
                    known.set(simd.fma(factor, new, known.get()))
            set_row(a, rows)
        columns.write(token, [total.get() for total in sums])
        if following is not None:
            for start, width in pieces(columns.num_kept, simd.lanes):
                simd.store(self.kept, simd.load(kept, (start,), width), (start,))

    def _updates(self, token: Value) -> list[Value]:
        columns = self.columns
        rate = splat(columns.t.given["beta"][token, columns.head], columns.lanes)
        return [name((value - known.get()) * rate) for value, known in zip(columns.values(token), self.known, strict=True)]

    def _prepare(self, token: Value, kept: Buffer) -> None:
        columns, simd = self.columns, self.columns.simd
        columns.keep(token, kept)
        for start, lanes in pieces(columns.key_dim, simd.lanes):
            share = simd.load(kept, (start,), lanes) if columns.decays_each else splat(kept[0], lanes)
            simd.store(self.factors, name(columns.keys(token, start, lanes) * share), (start,))
