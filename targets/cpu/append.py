"""Writes new tokens' keys, rotated, and values to their slots in the pages."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention_kernel import Tensors
from cupola.targets.cpu.rotary import rotate
from cupola.targets.cpu.simd import Buffer, Value, lanes_of, local, name, pieces, splat, tree


@dataclass(frozen=True)
class Append:
    """Appends to the pages of one layer."""

    tensors: Tensors

    def run(self, token: Value, group: Value) -> None:
        """One head of one token; a negative slot is skipped."""
        t = self.tensors
        slot = name(T.cast(t.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            block, offset = name(slot // t.kernel.block_size), name(slot % t.kernel.block_size)
            key, k_scale = self.stored(self.key(token, group), t.kernel.key_dim)
            with T.serial(t.kernel.key_dim) as d:
                T.buffer_store(t.k_pages, key[d], [t.layer, block, group, d, offset])
            value, v_scale = self.stored(self.value(token, group), t.kernel.value_dim)
            with T.serial(t.kernel.value_dim) as d:
                T.buffer_store(t.v_pages, value[d], [t.layer, block, group, offset, d])
            for scales, scale in ((t.k_scales, k_scale), (t.v_scales, v_scale)):
                if scales is not None:
                    T.buffer_store(scales, scale, [t.layer, block, group, offset])

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
        """A row as pages hold it, and its scale (1 if it has none)."""
        kernel, simd = self.tensors.kernel, self.tensors.simd
        out, scale, inverse = local(dim, kernel.kv_dtype), T.float32(1), T.float32(1)
        if kernel.is_quantized:
            highest = self.highest(row, dim)
            scale = name(highest * T.float32(1 / 127))
            inverse = name(T.Select(highest > T.float32(0), T.float32(127) / highest, T.float32(0)))
        for start, lanes in pieces(dim, simd.lanes):
            value = simd.load(row, (start,), lanes)
            if kernel.is_quantized:
                T.buffer_store(out, simd.to_int8(value * splat(inverse, lanes)), [start if lanes == 1 else T.ramp(start, 1, lanes)])
            else:
                simd.store(out, value, (start,))
        return out, scale

    def highest(self, row: Buffer, dim: int) -> Value:
        """The largest magnitude."""
        simd, found = self.tensors.simd, T.float32(0)
        for start, lanes in pieces(dim, simd.lanes):
            value = simd.load(row, (start,), lanes)
            found = name(T.max(found, tree(T.max(value, splat(0.0, lanes_of(value)) - value), T.max)))
        return found
