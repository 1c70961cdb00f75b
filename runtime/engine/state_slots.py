"""Which slots of a recurrent group hold the state of which sequence, and which hold checkpoints. Pure Python; knows no tensors.

A recurrent state can't be cut: it is known only where computing stopped. So a prefix is in the cache as far as a slot holds the state at
its end, a checkpoint, published under the hash of the prefix's last block. Who goes on from a checkpoint copies it into a slot of its own.
Checkpoints are made at ends of blocks: every `interval` tokens of a prompt, at its last whole block, and while a sequence decodes at each,
where the one before is given up. So of a turn remain its prompt and its end. Checkpoints nobody needs go as slots are wanted, the least
recently used first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cupola.runtime.engine.block_pool import BlockPool, BlockTable, empty_table
from cupola.runtime.engine.swap_pool import SwapPool

MAX_COUNT = 2**31 - 1


class SlotHolder(Protocol):
    """A sequence's part.

    Attributes:
        slot: its slot; empty if it has none.
        swap_slot: the swap block that holds its state; empty if there is none.
        checkpoint: the name of the checkpoint that its next one takes the place of.
    """

    slot: BlockTable
    swap_slot: BlockTable
    checkpoint: bytes | None


class StateSlots:
    """Gives slots to sequences.

    Args:
        num_slots: of all sequences and checkpoints.
        swap: the swap blocks that slots can be put aside in.
        block_size: tokens whose hash names a checkpoint.
        interval: tokens of a prompt from one checkpoint to the next, rounded up to whole blocks.
    """

    def __init__(self, num_slots: int, swap: SwapPool, block_size: int, interval: int, *, enable_prefix_caching: bool) -> None:
        self.pool, self.swap_pool = BlockPool(num_slots, 1, enable_prefix_caching=enable_prefix_caching), swap
        self._block_size, self._interval = block_size, -(-interval // block_size) * block_size

    def longest_hit(self, hashes: Sequence[bytes], length: int, knows: Callable[[bytes], bool]) -> int:
        """The most leading blocks, at most `length`, at whose end there is a checkpoint, by what `knows` says."""
        return next((count for count in range(length, 0, -1) if knows(hashes[count - 1])), 0)

    def begin(self, holder: SlotHolder, hashes: Sequence[bytes]) -> None:
        """Lets a sequence hold the checkpoint at the end of these blocks, if there are any."""
        holder.slot, holder.checkpoint = self.pool.match(hashes[-1:]), None

    def num_needed(self, holder: SlotHolder) -> int:
        """How many free slots `reserve` must have."""
        return not holder.slot or self.pool.is_shared(holder.slot[0])

    def reserve(self, holder: SlotHolder) -> list[tuple[int, int]]:
        """Makes a sequence's slot ready to be written: its own, and no checkpoint. There must be as many free as `num_needed` says.

        Returns:
            The (from, to) slots to copy before writing.
        """
        slot = holder.slot
        if slot and not self.pool.is_shared(slot[0]) and self.pool.is_published(slot[0]):
            if not self.pool.num_free_blocks:
                self.pool.unpublish(slot[0])
                return []
            own = empty_table()
            self.pool.reserve(own, 0, 1)
            copy = slot[0], own[0]
            self.pool.release(slot)
            holder.slot = own
            return [copy]
        return self.pool.reserve(slot, 0, 1) or []

    def most_new_tokens(self, num_tokens: int, num_known: int) -> int:
        """How many tokens may follow after `num_tokens`, of `num_known`, up to where the next checkpoint is wanted."""
        if not self.pool.enable_prefix_caching:
            return MAX_COUNT
        last = self._last(num_known)
        if last <= num_tokens:
            return self._block_size - num_tokens % self._block_size
        return min(self._interval - num_tokens % self._interval, last - num_tokens)

    def keep(self, holder: SlotHolder, num_tokens: int, num_known: int, hashes: Sequence[bytes]) -> None:
        """Makes a checkpoint of a state after `num_tokens`, of `num_known`, if one is wanted there; `hashes` are those of whole blocks."""
        decodes, on_grid = num_tokens >= num_known, num_tokens % self._interval == 0
        if num_tokens % self._block_size or not (decodes or on_grid or num_tokens == self._last(num_known)):
            return
        if holder.checkpoint is not None:
            self.pool.forget(holder.checkpoint)
        name = hashes[num_tokens // self._block_size - 1]
        holder.checkpoint = name if decodes and not on_grid and not self.pool.knows(name) else None
        self.pool.publish(holder.slot, [name])

    def fork(self, holder: SlotHolder, child: SlotHolder) -> None:
        """Lets `child` hold the same slot; the first one to write to it gets a copy."""
        child.slot = self.pool.fork(holder.slot)

    def release(self, holder: SlotHolder) -> None:
        """Lets go of the slot; the last checkpoint stays."""
        self.pool.release(holder.slot)
        holder.checkpoint = None

    def swap_out(self, holder: SlotHolder) -> list[tuple[int, int]] | None:
        """The copy that puts a state into a swap block; None if there is no room."""
        if not self.swap_pool.take(holder.swap_slot, 1):
            return None
        return [(holder.slot[0], holder.swap_slot[0])]

    def swap_in(self, holder: SlotHolder) -> list[tuple[int, int]]:
        """The copy that brings a swapped state back into a slot of the sequence's own; `forget_swapped` may come at once."""
        if holder.slot and (self.pool.is_shared(holder.slot[0]) or self.pool.is_published(holder.slot[0])):
            self.pool.release(holder.slot)  # a checkpoint of less
        self.pool.reserve(holder.slot, 0, 1)
        return [(holder.swap_slot[0], holder.slot[0])]

    def forget_swapped(self, holder: SlotHolder) -> None:
        """Lets go of the swap block."""
        self.swap_pool.release(holder.swap_slot)

    def _last(self, num_known: int) -> int:
        """Where the last whole block ends before the last known token, which is always computed."""
        return (num_known - 1) // self._block_size * self._block_size
