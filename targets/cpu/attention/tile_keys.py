"""Keys and values as right-hand tiles of bfloat16, which attention of many rows multiplies by (`amx.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.shape import Kernel, Tensors
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.simd import Buffer, Value, iota, name, splat, transpose

LANES = tiles.ROWS
STRIP = 32  # keys that a tile of weights holds


@dataclass(frozen=True)
class TileKeys:
    """Keys and values of sequences with many rows as right-hand tiles, from the first strip that a row of the sequence sees.

    Attributes:
        first_strips: strips of the sequences before.
        keys: int32, pairs of dimensions, [strip, head, half of the strip, pair, key].
        values: int32, pairs of keys, [strip, head, pair, value dimension].
        key_scales, value_scales: where they are quantized, [strip, head, key].
    """

    tensors: Tensors
    first_strips: Buffer
    keys: Buffer
    values: Buffer
    key_scales: Buffer | None
    value_scales: Buffer | None

    @staticmethod
    def allocate(t: Tensors) -> TileKeys:
        """Room for as many sequences as may have many rows. Only what is used of it takes memory."""
        first_strips = T.alloc_buffer((t.sizes[1] + 1,), "int64")
        T.buffer_store(first_strips, T.int64(0), [T.int64(0)])
        kernel, (n, batch, _, max_blocks) = t.kernel, t.sizes
        strips = T.min(batch, n // tiles.MANY) * (max_blocks * kernel.block_size // STRIP + 1) + 1
        rows = (strips, kernel.num_kv_heads)
        keys = T.alloc_buffer((*rows, 2, LANES * steps_of(kernel), LANES), "int32")
        values = T.alloc_buffer((*rows, STRIP // 2, kernel.value_dim), "int32")
        scales = [T.alloc_buffer((*rows, STRIP), "float32") if kernel.is_quantized else None for _ in range(2)]
        return TileKeys(t, first_strips, keys, values, *scales)

    def count(self, sequence: Value, has_few_rows: Value, begin: Value) -> None:
        """Counts the strips of the next sequence, whose rows see the keys from position `begin` on."""
        strips = name((self.tensors.context(sequence) + STRIP - 1) // STRIP - begin // STRIP)
        T.buffer_store(self.first_strips, self.first_strips[sequence] + T.Select(has_few_rows, T.int64(0), strips), [sequence + 1])

    def load(self, sequence: Value, group: Value, strip: Value, begin: Value) -> None:
        """Fills a strip of a sequence whose rows see the keys from position `begin` on."""
        first = name((begin // STRIP + strip - self.first_strips[sequence]) * STRIP)
        for half in range(2):
            self.load_half(sequence, group, strip, half, name(first + LANES * half), begin)

    def load_half(self, sequence: Value, group: Value, strip: Value, half: int, position: Value, begin: Value) -> None:
        """A vector of keys from `position` on, with their values: zeros for those outside, which perhaps were never written."""
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        block, offset = t.place_of(sequence, position)
        place, page = (strip, group), (t.layer, block, group)
        low, high = (name(T.cast(bound - position, "int32")) for bound in (begin, t.context(sequence)))
        (self.turn_keys if kernel.is_latent else self.copy_keys)(place, page, half, offset)
        with T.serial(LANES // 2) as pair:
            masks = [T.Select(within(T.cast(pair * 2 + i, "int32"), low, high), T.int32(0xFFFF), T.int32(0)) for i in range(2)]
            mask = name(T.broadcast(masks[0] | (masks[1] << T.int32(16)), LANES))
            for start in range(0, kernel.value_dim, LANES):
                both = self.pairs(t.v_pages, page, offset + pair * 2, start)
                T.buffer_store(self.values, both & mask, [*place, pair + LANES // 2 * half, iota(start, LANES)])
        for pool, copy in ((t.k_scales, self.key_scales), (t.v_scales, self.value_scales)):
            if pool is not None and copy is not None:
                seen = within(iota(T.int32(0), LANES), *(T.broadcast(bound, LANES) for bound in (low, high)))
                simd.store(copy, T.Select(seen, simd.load(pool, (*page, offset)), splat(0.0, LANES)), (*place, LANES * half))

    def copy_keys(self, place: tuple[Value, Value], page: tuple[Value, ...], half: int, offset: Value) -> None:
        """A vector of keys as pages have them, zeros past the last dimension."""
        t, kernel = self.tensors, self.tensors.kernel
        with T.serial(kernel.key_dim // 2) as pair:
            T.buffer_store(self.keys, self.pairs(t.k_pages, page, pair * 2, offset), [*place, half, pair, iota(0, LANES)])
        for pair in range(kernel.key_dim // 2, LANES * steps_of(kernel)):
            T.buffer_store(self.keys, T.broadcast(T.int32(0), LANES), [*place, half, pair, iota(0, LANES)])

    def turn_keys(self, place: tuple[Value, Value], page: tuple[Value, ...], half: int, offset: Value) -> None:
        """A vector of keys out of rows, words of two dimensions turned in registers."""
        t, simd = self.tensors, self.tensors.simd
        with T.serial(steps_of(t.kernel)) as step:
            words = []
            for i in range(LANES):
                low, high = (simd.load(t.k_pages, (*page, offset + i, 2 * LANES * step + at)) for at in (0, LANES))
                words.append(name(T.reinterpret(f"int32x{LANES}", tiles.to_bf16(low, high))))
            for word, keys in enumerate(transpose(words)):
                T.buffer_store(self.keys, keys, [*place, half, step * LANES + word, iota(0, LANES)])

    def pairs(self, pool: Buffer, page: tuple[Value, ...], row: Value, column: Value | int) -> Value:
        """Pairs of bfloat16 of 16 columns: from rows `row` and the next or, where pages hold pairs, from the row that is both."""
        simd = self.tensors.simd
        if self.tensors.kernel.side == 1:
            return pairs_of(*(simd.load(pool, (*page, row + i, column)) for i in range(2)))
        halves = (simd.load(pool, (*page, row // 2, column * 2 + at)) for at in (0, LANES))
        return T.reinterpret(f"int32x{LANES}", tiles.to_bf16(*halves))


def steps_of(kernel: Kernel) -> int:
    """Tiles, of 32 dimensions, that a query or key takes."""
    return -(-kernel.key_dim // (2 * LANES))


def within(x: Value, low: Value, high: Value) -> Value:
    """True if low <= x < high."""
    return T.And(low <= x, x < high)


def pairs_of(even: Value, odd: Value) -> Value:
    """Two vectors of float32 that bfloat16 holds exactly, as pairs of it."""
    low, high = (T.reinterpret(f"uint32x{LANES}", value) for value in (even, odd))
    return T.reinterpret(f"int32x{LANES}", (low >> T.broadcast(T.uint32(16), LANES)) | high)
