"""Writes new tokens' keys, rotated, and values to their slots in the pages."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu import tiles
from cupola.targets.cpu.attention_kernel import Tensors
from cupola.targets.cpu.rotary import rotate
from cupola.targets.cpu.simd import Buffer, Value, iota, lanes_of, local, name, pieces, splat, transpose, tree

LANES = tiles.ROWS


@dataclass(frozen=True)
class Append:
    """Appends to the pages of one layer."""

    tensors: Tensors

    def run(self, token: Value, group: Value) -> None:
        """One head of one token; a negative slot is skipped. The first of a vector of slots that comes whole brings all of them."""
        slot = name(T.cast(self.tensors.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            if not self.in_vectors:
                self.one(token, group, slot)
            else:
                with T.If(self.comes_whole(token, slot)):
                    with T.Then(), T.If(slot % LANES == T.int64(0)), T.Then():
                        self.vector(token, group, slot)
                    with T.Else():
                        self.one(token, group, slot)

    def single(self, token: Value, group: Value) -> None:
        """The same where no slot beside it comes along."""
        slot = name(T.cast(self.tensors.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            self.one(token, group, slot)

    @property
    def in_vectors(self) -> bool:
        """Whether 16 keys that lie side by side in a page are transposed in registers."""
        kernel = self.tensors.kernel
        return kernel.in_tiles and kernel.kv_dtype == "bfloat16" and kernel.key_dim % (2 * LANES) == 0

    def comes_whole(self, token: Value, slot: Value) -> Value:
        """Whether the tokens around this one have the slots around its own, from a multiple of 16 to the next."""
        slots, whole, first = self.tensors.slots, local(1, "bool"), name(token - slot % LANES)
        T.buffer_store(whole, T.bool(False), [0])
        with T.If(T.And(first >= T.int64(0), first + LANES <= self.tensors.sizes[0])), T.Then():
            ahead = slots[iota(first, LANES)] - iota(T.int32(0), LANES)
            wrong = ahead ^ T.broadcast(T.cast(slot // LANES * LANES, "int32"), LANES)
            T.buffer_store(whole, T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.or.v16i32", wrong) == T.int32(0), [0])
        return whole[0]

    def one(self, token: Value, group: Value, slot: Value) -> None:
        t = self.tensors
        block, offset = name(slot // t.kernel.block_size), name(slot % t.kernel.block_size)
        key, k_scale = self.stored(self.key(token, group), t.kernel.key_dim)
        with T.serial(t.kernel.key_dim) as d:
            T.buffer_store(t.k_pages, self.element(key, d), [t.layer, block, group, d, offset])
        value, v_scale = self.stored(self.value(token, group), t.kernel.value_dim)
        with T.serial(t.kernel.value_dim) as d:
            T.buffer_store(t.v_pages, self.element(value, d), [t.layer, block, group, offset, d])
        for scales, scale in ((t.k_scales, k_scale), (t.v_scales, v_scale)):
            if scales is not None:
                T.buffer_store(scales, scale, [t.layer, block, group, offset])

    def vector(self, token: Value, group: Value, slot: Value) -> None:
        """16 tokens from `token` on, whose slots begin with `slot`. A pair of dimensions is moved as an int32."""
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        block, offset = name(slot // kernel.block_size), name(slot % kernel.block_size)
        pairs = local((kernel.key_dim // (2 * LANES), LANES, LANES), "int32")  # [step of 32 dimensions, token, pair]
        with T.serial(LANES) as i:
            key = self.key(name(token + i), group)
            for step in range(kernel.key_dim // (2 * LANES)):
                low, high = (simd.load(key, (2 * LANES * step + at,)) for at in (0, LANES))
                T.buffer_store(pairs, T.reinterpret(f"int32x{LANES}", tiles.to_bf16(low, high)), [step, i, iota(0, LANES)])
            value = self.value(name(token + i), group)
            for at in range(0, kernel.value_dim, LANES):
                simd.store(t.v_pages, simd.load(value, (at,)), (t.layer, block, group, offset + i, at))
        with T.serial(kernel.key_dim // (2 * LANES)) as step:
            for pair, row in enumerate(transpose([name(pairs[step, i, iota(0, LANES)]) for i in range(LANES)])):
                for odd in range(2):
                    bits = T.cast(row >> T.broadcast(T.int32(16 * odd), LANES), f"uint16x{LANES}")
                    place = [t.layer, block, group, step * (2 * LANES) + 2 * pair + odd, iota(offset, LANES)]
                    T.buffer_store(t.k_pages, T.reinterpret(f"bfloat16x{LANES}", bits), place)

    def key(self, token: Value, group: Value) -> Buffer:
        """The rotated key, in float32."""
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        key, start = local(kernel.key_dim), name(kernel.starts[1] + group * kernel.key_dim)
        rotate(simd, kernel.rotation, t.k, (token, start), t.cos, t.sin, token, lambda at, x: simd.store(key, x, (at,)))
        return key

    def value(self, token: Value, group: Value) -> Buffer:
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        value, column = local(kernel.value_dim), name(kernel.starts[2] + group * kernel.value_dim)
        for start, lanes in pieces(kernel.value_dim, simd.lanes):
            simd.store(value, simd.load(t.v, (token, column + start), lanes), (start,))
        return value

    def stored(self, row: Buffer, dim: int) -> tuple[Buffer, Value]:
        """A row as pages hold it, bfloat16 as its bits, and its scale (1 if it has none)."""
        kernel, simd = self.tensors.kernel, self.tensors.simd
        dtype = "uint16" if kernel.kv_dtype == "bfloat16" else kernel.kv_dtype  # TVM holds scratch of bfloat16 in float32
        out, scale, inverse = local(dim, dtype), T.float32(1), T.float32(1)
        if kernel.is_quantized:
            highest = self.highest(row, dim)
            scale = name(highest * T.float32(1 / 127))
            inverse = name(T.Select(highest > T.float32(0), T.float32(127) / highest, T.float32(0)))
        for start, lanes in pieces(dim, simd.lanes):
            value = simd.load(row, (start,), lanes)
            if kernel.is_quantized:
                T.buffer_store(out, simd.to_int8(value * splat(inverse, lanes)), [iota(start, lanes)])
            elif kernel.kv_dtype == "bfloat16":
                T.buffer_store(out, simd.bf16_bits(value), [iota(start, lanes)])
            else:
                simd.store(out, value, (start,))
        return out, scale

    def element(self, row: Buffer, d: Value) -> Value:
        """One number of what `stored` gave."""
        return T.reinterpret("bfloat16", row[d]) if self.tensors.kernel.kv_dtype == "bfloat16" else row[d]

    def highest(self, row: Buffer, dim: int) -> Value:
        """The largest magnitude."""
        simd, found = self.tensors.simd, T.float32(0)
        for start, lanes in pieces(dim, simd.lanes):
            value = simd.load(row, (start,), lanes)
            found = name(T.max(found, tree(T.max(value, splat(0.0, lanes_of(value)) - value), T.max)))
        return found
