"""Writes new tokens' keys, rotated, and values to their slots in the pages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.shape import Tensors
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.simd import Buffer, Value, iota, local, name, pieces, splat, transpose
from cupola.targets.cpu.rows.rotary import rotate

LANES = tiles.ROWS


@dataclass(frozen=True)
class Append:
    """Appends to the pages of one layer. `words` are a thread's own memory for vectors of keys, [step, token, word], if `run` has any."""

    tensors: Tensors
    words: Buffer | None = None

    @staticmethod
    def of_thread(tensors: Tensors) -> Append:
        """With memory of its own, which is taken once for all that a thread appends."""
        append = Append(tensors)
        return replace(append, words=local((tensors.kernel.key_dim // append.step, LANES, LANES), "int32")) if append.in_vectors else append

    def run(self, token: Value, group: Value) -> None:
        """One head of one token; a negative slot is skipped. The first of a vector of slots that comes whole brings all of them."""
        slot = name(T.cast(self.tensors.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            if self.words is None:
                self.one(token, group, slot)
            else:
                with T.If(self.comes_whole(token, slot)):
                    with T.Then(), T.If(slot % LANES == T.int64(0)), T.Then():
                        self.vector(token, group, slot, self.words)
                    with T.Else():
                        self.one(token, group, slot)

    def single(self, token: Value, group: Value) -> None:
        """The same where no slot beside it comes along."""
        slot = name(T.cast(self.tensors.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            self.one(token, group, slot)

    @property
    def in_vectors(self) -> bool:
        """True if 16 keys side by side in a page are transposed in registers: words of two dimensions of bfloat16, four of int8."""
        kernel = self.tensors.kernel
        fits = kernel.isa.lanes == LANES and kernel.keys_in_vectors and kernel.key_dim % self.step == 0 and not kernel.is_latent
        return fits and (kernel.is_quantized or kernel.pairs_bf16 or (kernel.in_tiles and kernel.kv_dtype == "bfloat16"))

    @property
    def step(self) -> int:
        """Dimensions of a key in 16 words."""
        return LANES * (4 if self.tensors.kernel.is_quantized else 2)

    def comes_whole(self, token: Value, slot: Value) -> Value:
        """True if the tokens around this one have the slots around its own, from a multiple of 16 to the next."""
        slots, whole, first = self.tensors.slots, local(1, "bool"), name(token - slot % LANES)
        T.buffer_store(whole, T.bool(False), [0])
        with T.If(T.And(first >= T.int64(0), first + LANES <= self.tensors.sizes[0])), T.Then():
            ahead = slots[iota(first, LANES)] - iota(T.int32(0), LANES)
            wrong = ahead ^ T.broadcast(T.cast(slot // LANES * LANES, "int32"), LANES)
            T.buffer_store(whole, T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.or.v16i32", wrong) == T.int32(0), [0])
        return whole[0]

    def one(self, token: Value, group: Value, slot: Value) -> None:
        t, side = self.tensors, self.tensors.kernel.side
        block, offset = name(slot // t.kernel.block_size), name(slot % t.kernel.block_size)
        key, k_scale = self.stored(self.key(token, group), t.kernel.key_dim)
        if t.kernel.is_latent:
            with T.serial(t.kernel.key_dim) as d:
                T.buffer_store(t.k_pages, self.element(key, d), [t.layer, block, group, offset, d])
            if t.k_scales is not None:
                T.buffer_store(t.k_scales, k_scale, [t.layer, block, group, offset])
            return
        with T.serial(t.kernel.key_dim // side) as row:
            for i in range(side):
                T.buffer_store(t.k_pages, self.element(key, row * side + i), [t.layer, block, group, row, offset * side + i])
        value, v_scale = self.stored(self.value(token, group), t.kernel.value_dim)
        with T.serial(t.kernel.value_dim) as d:
            T.buffer_store(t.v_pages, self.element(value, d), [t.layer, block, group, offset // side, d * side + offset % side])
        for scales, scale in ((t.k_scales, k_scale), (t.v_scales, v_scale)):
            if scales is not None:
                T.buffer_store(scales, scale, [t.layer, block, group, offset])

    def vector(self, token: Value, group: Value, slot: Value, words: Buffer) -> None:
        """16 tokens from `token` on, whose slots begin with `slot`. A word of each makes a row or two of a page of keys."""
        t, kernel = self.tensors, self.tensors.kernel
        page, offset = (t.layer, name(slot // kernel.block_size), group), name(slot % kernel.block_size)
        count, rows = LANES * kernel.side, self.step // LANES // kernel.side
        (self.quantize if kernel.is_quantized else self.round)(token, page, offset, words)
        with T.serial(kernel.key_dim // self.step) as step:
            for word, keys in enumerate(transpose([name(words[step, i, iota(0, LANES)]) for i in range(LANES)])):
                for part in range(rows):
                    bits = keys if rows == 1 else T.cast(keys >> T.broadcast(T.int32(16 * part), LANES), f"uint16x{LANES}")
                    place = [*page, (step * LANES + word) * rows + part, iota(offset * kernel.side, count)]
                    T.buffer_store(t.k_pages, T.reinterpret(f"{kernel.kv_dtype}x{count}", bits), place)

    def round(self, token: Value, page: tuple[Value, Value, Value], offset: Value, words: Buffer) -> None:
        """Keys of 16 tokens to words of bfloat16, values to the page."""
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        side = kernel.side
        with T.serial(LANES // side) as row:
            values = []
            for i in (name(row * side + odd) for odd in range(side)):
                key = self.key(name(token + i), page[2])
                values.append(self.value(name(token + i), page[2]))
                for step in range(kernel.key_dim // self.step):
                    low, high = (simd.load(key, (2 * LANES * step + at,)) for at in (0, LANES))
                    T.buffer_store(words, T.reinterpret(f"int32x{LANES}", tiles.to_bf16(low, high)), [step, i, iota(0, LANES)])
            for at, lanes in pieces(kernel.value_dim, LANES):
                bits = [simd.bf16_bits(simd.load(value, (at,), lanes)) for value in values]
                mixed = bits[0] if side == 1 else T.Shuffle(bits, [i // 2 + i % 2 * lanes for i in range(2 * lanes)])
                place = [*page, offset // side + row, iota(at * side, lanes * side)]
                T.buffer_store(t.v_pages, T.reinterpret(f"bfloat16x{lanes * side}", mixed), place)

    def quantize(self, token: Value, page: tuple[Value, Value, Value], offset: Value, words: Buffer) -> None:
        """Keys of 16 tokens to words of int8; values, by pairs of tokens, and scales to the page."""
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        with T.serial(LANES // 2) as pair:
            values = []
            for i in (name(pair * 2 + odd) for odd in range(2)):
                key, value = self.key(name(token + i), page[2]), self.value(name(token + i), page[2])
                (k_scale, k_inverse), (v_scale, v_inverse) = self.scale(key, kernel.key_dim), self.scale(value, kernel.value_dim)
                for at in range(0, kernel.key_dim, LANES):
                    codes = simd.rounded(simd.load(key, (at,)) * splat(k_inverse, LANES), "int8")
                    place = [at // self.step, i, iota(at % self.step // 4, LANES // 4)]
                    T.buffer_store(words, T.reinterpret(f"int32x{LANES // 4}", codes), place)
                T.buffer_store(t.k_scales, k_scale, [*page, offset + i])
                T.buffer_store(t.v_scales, v_scale, [*page, offset + i])
                values.append((value, v_inverse))
            for at, lanes in pieces(kernel.value_dim, LANES):
                low, high = (simd.rounded(simd.load(value, (at,), lanes) * splat(inverse, lanes), "int16") for value, inverse in values)
                both = (low & splat(T.int16(255), lanes)) | (high << splat(T.int16(8), lanes))
                place = [*page, offset // 2 + pair, iota(at * 2, lanes * 2)]
                T.buffer_store(t.v_pages, T.reinterpret(f"int8x{lanes * 2}", both), place)

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

    def scale(self, row: Buffer, dim: int) -> tuple[Value, Value]:
        """The step between a row's codes, and the factor that makes codes of its values."""
        largest = self.tensors.simd.largest(row, dim)
        inverse = T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0))
        return name(largest * T.float32(1 / 127)), name(inverse)

    def stored(self, row: Buffer, dim: int) -> tuple[Buffer, Value]:
        """A row as pages hold it, bfloat16 as its bits, and its scale (1 if it has none)."""
        kernel, simd = self.tensors.kernel, self.tensors.simd
        dtype = "uint16" if kernel.kv_dtype == "bfloat16" else kernel.kv_dtype  # TVM holds scratch of bfloat16 in float32
        out = local(dim, dtype)
        scale, inverse = self.scale(row, dim) if kernel.is_quantized else (T.float32(1), T.float32(1))
        for start, lanes in pieces(dim, simd.lanes):
            value = simd.load(row, (start,), lanes)
            if kernel.is_quantized:
                T.buffer_store(out, simd.rounded(value * splat(inverse, lanes), "int8"), [iota(start, lanes)])
            elif kernel.kv_dtype == "bfloat16":
                T.buffer_store(out, simd.bf16_bits(value), [iota(start, lanes)])
            else:
                simd.store(out, value, (start,))
        return out, scale

    def element(self, row: Buffer, d: Value) -> Value:
        """One number of what `stored` gave."""
        return T.reinterpret("bfloat16", row[d]) if self.tensors.kernel.kv_dtype == "bfloat16" else row[d]
