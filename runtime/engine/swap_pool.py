"""The swap blocks, outside the model's reach, that keep the K/V of preempted sequences. Pure Python; knows no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from cupola.runtime.engine.block_pool import BlockTable
from cupola.runtime.errors import EngineError


class SwapPool:
    """A pool of `num_blocks` blocks, each of one holder. Their ids go on where the block pool's end, so that copies may go either way.

    Args:
        first_block: the lowest id.
        provide: makes sure that the first so many blocks have their memory; False if it can't be had, as on a full disk.
    """

    def __init__(self, num_blocks: int, first_block: int, provide: Callable[[int], bool]) -> None:
        self.num_blocks, self._first_block, self._provide = num_blocks, first_block, provide
        self._free = list(
            range(first_block + num_blocks - 1, first_block - 1, -1)
        )  # the last one is taken first: the lowest, or lately used

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, table: BlockTable, num_blocks: int) -> bool:
        """Adds `num_blocks` blocks to `table`; False, with nothing changed, if so many are not to be had."""
        if not 0 < num_blocks <= len(self._free):
            return False
        taken = self._free[: -num_blocks - 1 : -1]
        if not self._provide(max(taken) + 1 - self._first_block):
            return False
        del self._free[-num_blocks:]
        table.extend(taken)
        return True

    def release(self, table: BlockTable) -> None:
        """Lets go of every block of `table` and empties it."""
        while table:
            self._free.append(table.pop())

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Checks that exactly `tables` hold blocks, each one of them. Raises EngineError naming the first block that is wrong."""
        held, free = Counter(block for table in tables for block in table), Counter(self._free)
        for block in range(self._first_block, self._first_block + self.num_blocks):
            if held[block] + free[block] != 1:
                raise EngineError(f"swap block {block} has {held[block]} holders, and is {free[block]} times free")
