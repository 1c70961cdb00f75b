"""Rows of several tokens without tiles of bfloat16: tiles of a sequence's rows take turns over each chunk, whose keys and values are copied
out of the pages once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.chunk import numbers_of, run_chunk
from cupola.targets.cpu.attention.copies import copy_chunk
from cupola.targets.cpu.attention.row_tile import Ahead, State, Tile
from cupola.targets.cpu.attention.shape import BLOCK_TILES, Kernel, Tensors
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Value, local, name


@dataclass(frozen=True)
class TileBlock:
    """A task: rows of a sequence from row `first` on, `task_rows` of them: whole tiles, up to `BLOCK_TILES`."""

    tensors: Tensors
    sequence: Value
    group: Value
    num_tokens: Value
    first: Value
    task_rows: Value

    @property
    def kernel(self) -> Kernel:
        return self.tensors.kernel

    def tile(self, index: Value) -> Tile:
        """One of the task's tiles."""
        rows = self.kernel.tile_rows
        return Tile(self.tensors, rows, self.sequence, self.group, self.num_tokens, name(self.first + index * rows))

    def run(self) -> None:
        """Attends and writes the results."""
        kernel = self.kernel
        left = name(self.num_tokens * kernel.heads_per_group - self.first)
        count = name((T.min(left, self.task_rows) + kernel.tile_rows - 1) // kernel.tile_rows)
        numbers, size = numbers_of(self.tile(T.int64(0)), BLOCK_TILES), kernel.state_size(kernel.tile_rows)
        running, state = local(BLOCK_TILES * size), State(local(size))
        with T.serial(count) as index:
            self.tile(index).start(State(running, name(index * size)))
            numbers.of(self.tile(index), index).load_queries()
        begin, end = self.tile(T.int64(0)).keys()[0], self.tile(count - 1).keys()[1]
        with between(name(begin // kernel.chunk), name((end + kernel.chunk - 1) // kernel.chunk)) as chunk:
            ahead = Ahead(self.sequence, self.group, name((chunk + 1) * kernel.chunk))
            copy_chunk(numbers, chunk, (begin, end), ahead)
            with T.serial(count) as index:
                tile = self.tile(index)
                low, high = tile.keys_of(chunk)
                with T.If(low < high), T.Then():
                    run_chunk(numbers.of(tile, index), chunk, state, ahead)
                    tile.fold(State(running, name(index * size)), state)
        with T.serial(count) as index:
            self.tile(index).finish(State(running, name(index * size)))
