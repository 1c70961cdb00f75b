"""Linear attention without the delta rule, as of Mamba-2: S ← kept · S + k ⊗ v;  y = q·S.

A row of the state needs no other one. So a few rows stay in registers over a tile of tokens, and each adds its part to the tokens' results.
"""

from __future__ import annotations

import math

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Register, Value, local, name, splat
from cupola.targets.cpu.recurrent.columns import AHEAD, Columns

TILE = 16  # tokens
ROWS = 4  # that stay in registers


def add_up(columns: Columns) -> None:
    """Takes the sequence's tokens in these columns."""
    columns = columns.begin()
    count = columns.span.count
    with T.serial((count + T.int64(TILE - 1)) // T.int64(TILE)) as tile:
        first = name(columns.span.first + tile * TILE)
        slot = name(T.if_then_else(tile == 0, columns.span.source, columns.span.slot))
        _tile(columns, slot, first, name(T.min(T.int64(TILE), count - tile * TILE)))


def _tile(columns: Columns, slot: Value, first: Value, count: Value) -> None:
    simd, size, lanes, rows = columns.simd, columns.blocks.size, columns.lanes, math.gcd(columns.key_dim, ROWS)
    starts = range(0, size, lanes)
    values, sums, kept = local((TILE, size)), local((TILE, size)), local((TILE, columns.num_kept))
    with T.serial(count) as i:
        with T.If(first + TILE + i < columns.span.first + columns.span.count), T.Then():
            columns.prefetch(name(first + TILE + i))
        columns.keep(name(first + i), kept, i)
        for start, value in zip(starts, columns.values(name(first + i)), strict=True):
            simd.store(values, value, (i, start))
            simd.store(sums, splat(0.0, lanes), (i, start))
    with T.serial(columns.key_dim // rows) as block:
        places = [name(block * rows + r) for r in range(rows)]
        for a in places:
            columns.prefetch_row(name(a + AHEAD))
        state = [[Register(lanes, None) for _ in starts] for _ in places]
        for a, row in zip(places, state, strict=True):
            for held_row, value in zip(row, columns.row(a, slot), strict=True):
                held_row.set(value)
        with T.serial(count) as i:
            token = name(first + i)
            totals = [simd.load(sums, (i, start), lanes) for start in starts]
            new = [simd.load(values, (i, start), lanes) for start in starts]
            for a, row in zip(places, state, strict=True):
                held, key, query = (
                    splat(x, lanes) for x in (kept[i, a % columns.num_kept], columns.key(token, a), columns.query(token, a))
                )
                for v, held_row in enumerate(row):
                    held_row.set(simd.fma(key, new[v], name(held_row.get() * held)))
                    totals[v] = name(simd.fma(query, held_row.get(), totals[v]))
            for start, total in zip(starts, totals, strict=True):
                simd.store(sums, total, (i, start))
        for a, row in zip(places, state, strict=True):
            columns.set_row(a, [held_row.get() for held_row in row])
    with T.serial(count) as i:
        columns.write(name(first + i), [simd.load(sums, (i, start), lanes) for start in starts])
