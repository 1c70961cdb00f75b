"""A chunk's keys and values, copied out of the pages as they are multiplied: for pages that do not hold vectors of keys, and where several
tiles of rows take turns, so that numbers are found and widened once for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.numbers import Numbers
from cupola.targets.cpu.attention.row_tile import Ahead, Tile
from cupola.targets.cpu.attention.shape import Kernel
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, name, pieces, transpose


def copy_chunk(numbers: Numbers, chunk: Value, keys: tuple[Value, Value], ahead: Ahead) -> None:
    """Copies what of a chunk is among `keys` (the first, the one past the end) to where `numbers` has room, and asks for scales `ahead`."""
    kernel, (begin, end) = numbers.tile.kernel, keys
    at, (low, high) = name(chunk * kernel.chunk), kernel.part_of(chunk, begin, end)
    copies = Copies(numbers, numbers.tile, at, low, high, end)
    if numbers.keys is not None:
        copies.copy_keys(numbers.keys)
    if numbers.values is not None:
        copies.copy_values(numbers.values)
    numbers.gather_scales(at, end, ahead)


@dataclass(frozen=True)
class Copies:
    """The chunk that begins at position `at`, of whose keys some row sees those from `low` to `high`, and none from position `end` on.
    `tile` says whose they are."""

    numbers: Numbers
    tile: Tile
    at: Value
    low: Value
    high: Value
    end: Value

    @property
    def kernel(self) -> Kernel:
        return self.tile.kernel

    @property
    def simd(self) -> Simd:
        return self.tile.simd

    def page(self, key: Value) -> tuple[tuple[Value, ...], Value]:
        """The page, and the place in it, of a key of the chunk; of one past the end, some page."""
        block, offset = self.tile.tensors.place_of(self.tile.sequence, name(self.at + key))
        return (self.tile.tensors.layer, block, self.tile.group), offset

    def copy_keys(self, keys: Buffer) -> None:
        """Whole strips, for a tile multiplies those."""
        copy = self.turn_vector if self.kernel.is_latent else self.copy_vector if self.kernel.keys_in_vectors else self.gather_vector
        width = int(keys.shape[2]) // self.kernel.side
        with between(name(self.low // width), name((self.high + width - 1) // width)) as strip:
            for start in range(0, width, self.simd.lanes):
                copy(keys, strip, start, name(strip * width + start))

    def copy_vector(self, keys: Buffer, strip: Value, start: int, key: Value) -> None:
        """A vector of keys from key `key` of the chunk on, as number `start` of a strip."""
        side, (page, offset) = self.kernel.side, self.page(key)
        with T.serial(self.kernel.key_dim // side) as d:
            vector = self.numbers.load(self.tile.tensors.k_pages, (*page, d, offset * side), self.simd.lanes)
            self.numbers.put(keys, (strip, d, start * side), vector)

    def gather_vector(self, keys: Buffer, strip: Value, start: int, key: Value) -> None:
        """The same, key by key, for pages that do not hold whole vectors."""
        side, last = self.kernel.side, name(self.end - self.at - 1)
        with T.serial(self.simd.lanes) as i:
            page, offset = self.page(name(T.min(key + i, last)))
            with T.serial(self.kernel.key_dim // side) as d:
                number = self.numbers.load(self.tile.tensors.k_pages, (*page, d, offset * side), 1)
                self.numbers.put(keys, (strip, d, (start + i) * side), number)

    def turn_vector(self, keys: Buffer, strip: Value, start: int, key: Value) -> None:
        """The same out of rows, as many of them at a time as a vector has lanes."""
        simd, pages, dim, lanes = self.simd, self.tile.tensors.k_pages, self.kernel.key_dim, self.simd.lanes
        last = name(self.end - self.at - 1)
        rows = [self.page(name(T.min(key + i, last))) for i in range(lanes)]
        whole = dim // lanes * lanes
        with T.serial(whole // lanes) as step:
            columns = transpose([simd.load(pages, (*page, offset, step * lanes)) for page, offset in rows])
            for i, column in enumerate(columns):
                simd.store(keys, column, (strip, step * lanes + i, start))
        for i, (page, offset) in enumerate(rows if whole < dim else []):
            with T.serial(dim - whole) as d:
                simd.store(keys, simd.load(pages, (*page, offset, d + whole), 1), (strip, d + whole, start + i))

    def copy_values(self, values: Buffer) -> None:
        """Runs of keys that lie together in a page, with rows that nobody sees, and perhaps nobody wrote: these are not multiplied."""
        kernel, side = self.kernel, self.kernel.side
        run = math.gcd(kernel.block_size, kernel.chunk)
        with between(name(self.low // run), name((self.high + run - 1) // run)) as index:
            page, offset = self.page(name(index * run))
            with T.serial(run // side) as i:
                for start, lanes in pieces(kernel.value_dim, self.simd.lanes):
                    vector = self.numbers.load(self.tile.tensors.v_pages, (*page, offset // side + i, start * side), lanes)
                    row = name(index * (run // side) + i)
                    self.numbers.put(values, (row, start * side), self.numbers.hide(vector, row, self.high))
