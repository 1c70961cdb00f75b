"""The state that a model keeps from step to step: groups of layers and their pools of memory."""

from __future__ import annotations

from dataclasses import dataclass

from cupola.runtime.artifact.tensors import TensorSpec


@dataclass(frozen=True)
class KVGroup:
    """Layers that share one block table and one page pool.

    Pages: keys `[layers, blocks, num_kv_heads, key_dim, block_size]` (transposed, so that scores vectorize over
    tokens), values `[layers, blocks, num_kv_heads, block_size, value_dim]`. `window` is the number of latest tokens
    that a query sees, itself included; 0 is all of them. Stored as int8, pages hold pairs: keys
    `[layers, blocks, num_kv_heads, key_dim / 2, block_size · 2]`, each token's dimensions 2i and 2i + 1 side by side, values
    `[layers, blocks, num_kv_heads, block_size / 2, value_dim · 2]`, each dimension's of tokens 2i and 2i + 1 side by side; and
    each token's key and value of a head have a scale, float32 `[layers, blocks, num_kv_heads, block_size]`, in pools of their own.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0


@dataclass(frozen=True)
class KVSpec:
    """The K/V cache that `forward` expects: the page pools of each group."""

    groups: tuple[KVGroup, ...]
    dtype: str
    block_size: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block of `block_size` tokens takes over all groups and layers."""
        return sum(pool.num_bytes for pool in self.pools(1))

    def pools(self, num_blocks: int | str) -> list[TensorSpec]:
        """The pools of all groups; group 0 has `k_pages.0`, `v_pages.0` and, of int8, `k_scales.0` and `v_scales.0`."""
        pools, side = [], 2 if self.dtype == "int8" else 1
        for i, g in enumerate(self.groups):
            heads: tuple[int | str, ...] = (len(g.layers), num_blocks, g.num_kv_heads)
            pools.append(TensorSpec(f"k_pages.{i}", self.dtype, (*heads, g.key_dim // side, self.block_size * side)))
            pools.append(TensorSpec(f"v_pages.{i}", self.dtype, (*heads, self.block_size // side, g.value_dim * side)))
            if self.dtype == "int8":
                pools += [TensorSpec(f"{name}.{i}", "float32", (*heads, self.block_size)) for name in ("k_scales", "v_scales")]
        return pools
