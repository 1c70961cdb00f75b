"""The state that a model keeps from step to step: groups of layers and their pools of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cupola.runtime.artifact.tensors import TensorSpec

NUM_BLOCKS = "num_blocks"  # in a pool's shape: the axis of blocks


@dataclass(frozen=True)
class KVGroup:
    """Layers that share one block table, and pools of memory for their keys and values.

    Attributes:
        layers: of the model.
        num_kv_heads: of each layer, as the dimensions are.
        window: the number of latest tokens that a query sees, itself included; 0 is all of them.
        pools: the group's memory as the target lays it out. Each has one axis of `NUM_BLOCKS`, and all other sizes are known. `forward`
            takes a pool under its name and the group's number, such as k_pages.0.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0
    pools: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class KVSpec:
    """The K/V cache that `forward` expects. `dtype` is what keys and values are rounded to; how they lie is each group's `pools`."""

    groups: tuple[KVGroup, ...]
    dtype: str
    block_size: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block of `block_size` tokens takes over all groups and layers."""
        return sum(pool.num_bytes for pool in self.pools(1))

    def num_bytes(self, num_blocks: Sequence[int]) -> int:
        """Bytes of so many blocks of each group."""
        return sum(self.group_bytes_per_block(group) * count for group, count in enumerate(num_blocks))

    def group_bytes_per_block(self, group: int) -> int:
        """Bytes that one block of a group takes over its layers."""
        return sum(pool.num_bytes for pool in self.pools_of(group, 1))

    def most_held(self, group: int, max_num_new_tokens: int) -> int | None:
        """The most blocks of a group that a sequence holds at a time if a step brings at most so many tokens of it.

        None for as many as its tokens need. Behind a window, these are the blocks that it and a step's tokens lie in, wherever they begin.
        """
        window = self.groups[group].window
        return -(-(window + max_num_new_tokens - 2) // self.block_size) + 1 if window else None

    def most_blocks(self, num_tokens: int, max_num_new_tokens: int) -> tuple[int, ...]:
        """The most blocks of each group that a sequence holds at a time until it has `num_tokens` tokens."""
        num_blocks = -(-num_tokens // self.block_size)
        most = (self.most_held(group, max_num_new_tokens) for group in range(len(self.groups)))
        return tuple(num_blocks if count is None else min(count, num_blocks) for count in most)

    def pools(self, num_blocks: int | str) -> list[TensorSpec]:
        """The pools of all groups for so many blocks, as `forward` takes them."""
        return [pool for i in range(len(self.groups)) for pool in self.pools_of(i, num_blocks)]

    def pools_of(self, group: int, num_blocks: int | str) -> list[TensorSpec]:
        """The pools of one group, by its number."""
        sized = (replace(pool, shape=tuple(num_blocks if s == NUM_BLOCKS else s for s in pool.shape)) for pool in self.groups[group].pools)
        return [replace(pool, name=f"{pool.name}.{group}") for pool in sized]

    def block_axes(self, group: int) -> list[int]:
        """The axis of blocks of each of a group's pools."""
        return [pool.shape.index(NUM_BLOCKS) for pool in self.groups[group].pools]
