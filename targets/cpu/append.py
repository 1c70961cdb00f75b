"""Writes new tokens' keys, rotated, and values to their slots in the pages."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention_kernel import Tensors
from cupola.targets.cpu.rotary import rotate
from cupola.targets.cpu.simd import Value, local, name, pieces


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
            self.append_key(token, group, block, offset)
            self.append_value(token, group, block, offset)

    def append_key(self, token: Value, group: Value, block: Value, offset: Value) -> None:
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        key = local(kernel.key_dim, kernel.kv_dtype)
        start = name(kernel.starts[1] + group * kernel.key_dim)
        rotate(simd, t.k, (token, start), t.cos, t.sin, token, (kernel.key_dim, kernel.rotary_dim), lambda at, x: simd.store(key, x, (at,)))
        with T.serial(kernel.key_dim) as d:
            T.buffer_store(t.k_pages, key[d], [t.layer, block, group, d, offset])

    def append_value(self, token: Value, group: Value, block: Value, offset: Value) -> None:
        t, kernel, simd = self.tensors, self.tensors.kernel, self.tensors.simd
        column = name(kernel.starts[2] + group * kernel.value_dim)
        for start, lanes in pieces(kernel.value_dim, simd.lanes):
            simd.store(t.v_pages, simd.load(t.v, (token, column + start), lanes), (t.layer, block, group, offset, start))
