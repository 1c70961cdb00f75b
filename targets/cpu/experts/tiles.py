"""Experts of many tokens in bfloat16 tiles, as `linear.amx` multiplies the rows of a layer.

Each pair of a token and an expert that has many is rounded once, by all threads, to the place where it stands among its expert's, whose
tiles begin with its first one. A run of an expert's panels is then multiplied with all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Value, name
from cupola.targets.cpu.experts.routing import Group, Routing, each_panel
from cupola.targets.cpu.experts.shape import GroupEpilogue
from cupola.targets.cpu.linear.amx import ROW_BLOCK, Scratch, Slices, TileProduct, TileRows
from cupola.targets.cpu.linear.quantized_packing import SLICE


@dataclass(frozen=True)
class GroupRows(TileRows):
    """The rows of an expert; `first_tile` is where they begin among those of all experts."""

    first_tile: Value

    def load(self, register: int, tile: Value, at: Value) -> None:
        """A tile's inputs of a slice."""
        super().load(register, name(self.first_tile + tile), at)


@dataclass(frozen=True)
class GroupProduct(TileProduct):
    """A run's panels. `source` has the pairs, one after another or a token's at the same place; `divisor` of them share one."""

    divisor: int

    @staticmethod
    def allocate_rows(num_pairs: Value, slices: int) -> Buffer:
        """Room for the rounded pairs: experts begin with a tile, and have at least MANY pairs."""
        tile_count = num_pairs // tiles.ROWS + num_pairs // tiles.MANY + 1
        return T.alloc_buffer((tile_count, slices, tiles.ROWS, SLICE), "uint16", scope="global")

    def round_pair(self, routing: Routing, index: Buffer, rounded: Buffer, at: Value) -> None:
        """The pair that is number `at` among the sorted ones, if its expert has many."""
        pair = name(routing.order[at])
        expert = name(T.cast(index[pair // routing.choices, pair % routing.choices], "int64"))
        assert routing.tiles is not None
        first_tile = name(routing.tiles[expert])
        with T.If(routing.tiles[expert + 1] > first_tile), T.Then():
            row = name(at - routing.ends[expert])
            tile, r = name(first_tile + row // tiles.ROWS), name(row % tiles.ROWS)

            def store(group: Value | int, low: Value, high: Value) -> None:
                T.buffer_store(rounded, tiles.to_bf16(low, high), [tile, group, r, T.ramp(0, 1, SLICE)])

            self.source.for_each_group(name(pair // self.divisor), store)

    def multiply_group(self, group: Group, rounded: Buffer, scratch: Scratch) -> None:
        """All panels of a run, by blocks of rows."""
        assert group.routing.tiles is not None
        rows = GroupRows(self.source, group.count, rounded, name(group.routing.tiles[group.expert]))
        known = replace(self, num_rows=group.count, epilogue=GroupEpilogue.of(self.epilogue, group))
        num_blocks = name((group.count + ROW_BLOCK - 1) // ROW_BLOCK)
        with each_panel(group) as panel, between(T.int64(0), num_blocks) as block:
            is_last = block >= num_blocks - 1
            after = name(T.Select(is_last, panel + 1, panel))
            following = Slices(after, 0, self.block_slices, after < group.stop)
            known.block(rows, scratch, panel, name(block * ROW_BLOCK), following)

    def fetch_beside(self, slices: Slices, at: Value, pair: Value, num_tiles: Value) -> None:
        """All of what comes next, shared by the pairs of tiles, which may be one."""
        lines, pairs = self.codes.stride // CACHE_LINE, name((num_tiles + 1) // 2)
        group, first = self.codes.place(name(slices.start + slices.count + at), self.codes.stride)
        with between(name(pair * lines // pairs), name((pair + 1) * lines // pairs)) as line:
            self.simd.prefetch(self.weight, (slices.panel, group, first + line * CACHE_LINE), near=2)
