"""The state that a model keeps from step to step: groups of layers and their pools of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cupola.runtime.artifact.tensors import TensorSpec

NUM_BLOCKS = "num_blocks"  # in a pool's shape: the axis of blocks, or of slots
ATTENTION, LATENT, RECURRENT = "attention", "latent", "recurrent"  # kinds of groups
SLOTS_OF_SEQUENCE = 2  # of a recurrent group: a sequence's state, and a checkpoint of it


@dataclass(frozen=True)
class KVGroup:
    """Layers that share one block table, and pools of memory for their keys and values; or layers that carry a state from token to token.

    Of a group of the kind `LATENT`, all heads of a layer share one key, whose first numbers are the value (arXiv:2405.04434): a token is
    one row of `key_dim` numbers a layer.

    Layers that carry a state are a group of the kind `RECURRENT`, which stands behind all others. A sequence has one of its blocks,
    called a slot, which holds the state of every layer after the tokens that are computed; slots of nobody hold checkpoints, states at
    the end of cached prefixes.

    Attributes:
        layers: of the model; of a recurrent group by pools, each of which has as many of them as its first axis says.
        num_kv_heads: of each layer, as the dimensions are; 1 of a latent group; all 0 of a recurrent one.
        window: the number of latest tokens that a query sees, itself included; 0 is all of them.
        pools: the group's memory as the target lays it out. Each has one axis of `NUM_BLOCKS`, and all other sizes are known. `forward`
            takes a pool under its name and the group's number, such as k_pages.0.
        kind: `ATTENTION`, `LATENT` or `RECURRENT`.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0
    pools: tuple[TensorSpec, ...] = ()
    kind: str = ATTENTION

    @property
    def numbers_per_token(self) -> int:
        """Numbers that the pages of one layer hold of a token."""
        return self.key_dim if self.kind == LATENT else self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class KVSpec:
    """The K/V cache that `forward` expects. `dtype` is what keys and values are rounded to; how they lie is each group's `pools`."""

    groups: tuple[KVGroup, ...]
    dtype: str
    block_size: int

    @property
    def paged(self) -> tuple[KVGroup, ...]:
        """The groups whose sequences have block tables: all but a recurrent one."""
        return tuple(group for group in self.groups if group.kind != RECURRENT)

    @property
    def recurrent(self) -> int | None:
        """The number of the recurrent group, None if there is none."""
        return len(self.groups) - 1 if self.groups and self.groups[-1].kind == RECURRENT else None

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
        """The most blocks of a paged group that a sequence holds at a time if a step brings at most so many tokens of it.

        None for as many as its tokens need. Behind a window, these are the blocks that it and a step's tokens lie in, wherever they begin.
        """
        window = self.groups[group].window
        return -(-(window + max_num_new_tokens - 2) // self.block_size) + 1 if window else None

    def most_blocks(self, num_tokens: int, max_num_new_tokens: int) -> tuple[int, ...]:
        """The most blocks of each group that a sequence holds at a time until it has `num_tokens` tokens."""
        num_blocks = -(-num_tokens // self.block_size)
        most = (self.most_held(group, max_num_new_tokens) for group in range(len(self.paged)))
        paged = [num_blocks if count is None else min(count, num_blocks) for count in most]
        return tuple(paged + [SLOTS_OF_SEQUENCE] * (self.recurrent is not None))

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
