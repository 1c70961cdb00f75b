"""The part of the prefix cache that is on disk: blocks that are published are saved, and come back for prompts that begin alike.

Each block is copied out of the pages right after the step that filled it, and written behind. Before sequences are admitted, blocks that
they could begin with and that are not in the pools are read into free ones and published. Of recurrent states those checkpoints are saved
that outlive the next ones: a decoding sequence makes one at each block's end and gives the one before up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from cupola.runtime.device.block_store import BlockStore
from cupola.runtime.device.interface import Executor
from cupola.runtime.engine.block_pool import empty_table
from cupola.runtime.engine.state_manager import StateManager

WARM_SECONDS, WARM_SHARE = 0.5, 0.5  # of the start, and of each pool's blocks, that `warm` may take
SETTLED = 1.0  # seconds after which a checkpoint of a recurrent state is saved although sequences still run


class StoredPrefixes:
    """Moves published blocks between pools and a store.

    Call `fetch` and `save` between steps only, when no copy of blocks is planned that is not made yet.
    """

    def __init__(self, states: StateManager, executor: Executor, store: BlockStore) -> None:
        self._states, self._executor, self.store = states, executor, store
        self._fresh: dict[tuple[int, bytes], float] = {}  # when they were published
        self._pools = states.all_pools
        for group, pool in enumerate(self._pools):
            pool.on_publish = partial(self._note, group)

    def warm(self) -> None:
        """Reads what was of use last, for a moment, so that who goes on with a chat after a restart need not wait for the disk."""
        end, num_read = time.monotonic() + WARM_SECONDS, [0] * len(self._pools)
        for group, name in self.store.newest():
            if time.monotonic() > end:
                break
            if group < len(self._pools) and num_read[group] < self._pools[group].num_blocks * WARM_SHARE:
                num_read[group] += self._read(group, name)

    def fetch(self, hashes: Sequence[bytes]) -> None:
        """Reads what the pools lack of the blocks that a sequence could begin with, as long as there are free ones."""
        wanted = self._states.cached_names(hashes, self.store.has)
        for group, names in enumerate(wanted):
            self._fetch_group(group, names)
        for group, names in enumerate(wanted):
            for name in reversed(names):  # so that a prefix's head is the last to go
                if self._pools[group].knows(name) and not self.store.touch(group, name):
                    self._note(group, name)  # it went from the disk while it was in use here

    def _fetch_group(self, group: int, names: Sequence[bytes]) -> None:
        pool, held = self._pools[group], empty_table()
        for name in names:
            if not pool.knows(name) and not (pool.num_free_blocks and self._read(group, name)):
                break
            held.extend(pool.match([name]))  # so that it isn't taken for the next ones
        pool.release(held)

    def _read(self, group: int, name: bytes) -> bool:
        """Puts a stored block into a free one, which stays free; False if it can't be had."""
        data, pool, table = self.store.load(group, name), self._pools[group], empty_table()
        if data is None:
            return False
        pool.reserve(table, 0, pool.block_size)
        if is_written := self._executor.write_block(group, table[0], data):
            pool.publish(table, [name])
            del self._fresh[group, name]
        pool.release(table)
        return is_written

    def save(self, *, is_idle: bool) -> None:
        """Hands the store what was published since the last call; recurrent states when nothing runs, or when they are settled."""
        settled = time.monotonic() - SETTLED
        for (group, name), published in list(self._fresh.items()):
            is_state = self._states.slots is not None and group == len(self._states.pools)
            if is_state and not is_idle and published > settled:
                continue
            del self._fresh[group, name]
            block = self._pools[group].find(name)
            if block is not None and not self.store.has(group, name):
                self.store.save(group, name, self._executor.read_block(group, block))

    def _note(self, group: int, name: bytes) -> None:
        self._fresh[group, name] = time.monotonic()
