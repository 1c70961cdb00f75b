"""Which blocks hold the state of which sequence, over all state groups. Pure Python; knows no tensors.

Layers that keep the same of the past form a group, and each group has a pool of blocks of its own. A sequence has one table a group.
Blocks that lie wholly behind a group's window are given back while the sequence runs; its table has holes in their places, so that a
token's index still says where it is. A prefix is in the cache as far as every group still has what its window sees there. Of a recurrent
group a sequence has one slot (`state_slots.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.engine.attention_sinks import SinkWindow
from cupola.runtime.engine.block_pool import HOLE, BlockPool, BlockTable, empty_table
from cupola.runtime.engine.state_slots import StateSlots
from cupola.runtime.engine.swap_pool import SwapPool
from cupola.runtime.errors import EngineError

MAX_COUNT = 2**31 - 1
CHECKPOINT_INTERVAL = 512  # tokens
Copies: TypeAlias = list[tuple[int, int, int]]  # (group, from block, to block), in order


class State:
    """The blocks of one sequence. Without tables it has none.

    Attributes:
        num_dropped: tokens that are forgotten, of a sequence with sinks; tables have no room for them.
        runs_sinks: whether the next step must run the sinks again, whose blocks are new.
        tables: of each group; entry i holds the tokens from i · block size on, of those that are not forgotten.
        starts: of each group, the index of the first block that is held; before it are holes.
        num_published: blocks that the prefix cache was told of.
        num_reserved: tokens up to which it can write as it is; 0 if it must be looked into.
        swap_tables: of each group, the swap blocks that hold what it had when `num_swapped_tokens` were computed and `num_swap_dropped`
            forgotten; none if that is nothing.
        source: the slot that the next step reads a recurrent state from, if that is not its own; -1 otherwise.
        slot, swap_slot, checkpoint: as `SlotHolder` has them.
    """

    __slots__ = (
        "checkpoint", "num_dropped", "num_published", "num_reserved", "num_swap_dropped", "num_swapped_tokens", "runs_sinks", "slot",
        "source", "starts", "swap_slot", "swap_tables", "tables",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tables: tuple[BlockTable, ...] = ()
        self.starts: list[int] = []
        self.num_dropped = self.num_published = self.num_reserved = 0
        self.runs_sinks = False
        self.swap_tables: tuple[BlockTable, ...] = ()
        self.num_swapped_tokens = self.num_swap_dropped = 0
        self.slot, self.swap_slot, self.source = empty_table(), empty_table(), -1
        self.checkpoint: bytes | None = None

    def held(self, group: int) -> BlockTable:
        """The blocks of a group that it holds."""
        return self.tables[group][self.starts[group] :] if self.tables else empty_table()


class StateManager:
    """Gives the blocks of all groups to sequences. A verb changes all groups, or none if one of them lacks blocks.

    Args:
        kv: the groups.
        num_blocks: blocks of each group.
        num_swap_blocks: swap blocks of each group; their numbers go on where those of its blocks end.
        provide_swap: makes sure that the first so many swap blocks of a group have their memory; False if it can't be had.
        max_num_new_tokens: the most tokens of one sequence in a step.
        sinks: what sequences keep if they forget; groups have no windows then.
        checkpoint_interval: tokens of a prompt from one checkpoint of a recurrent state to the next.
    """

    def __init__(
        self,
        kv: KVSpec,
        num_blocks: Sequence[int],
        num_swap_blocks: Sequence[int],
        provide_swap: Callable[[int, int], bool],
        *,
        max_num_new_tokens: int,
        enable_prefix_caching: bool = True,
        sinks: SinkWindow | None = None,
        checkpoint_interval: int = CHECKPOINT_INTERVAL,
    ) -> None:
        self.sinks, self.num_sinks = sinks, sinks.num_sinks if sinks else 0
        self.block_size, self.enable_prefix_caching = kv.block_size, enable_prefix_caching
        paged = len(kv.paged)
        self.pools = tuple(BlockPool(count, kv.block_size, enable_prefix_caching=enable_prefix_caching) for count in num_blocks[:paged])
        swap_pools = tuple(
            SwapPool(num_swap, count, lambda num_blocks, group=group: provide_swap(group, num_blocks))  # type: ignore[misc]
            for group, (num_swap, count) in enumerate(zip(num_swap_blocks, num_blocks, strict=True))
        )
        self.swap_pools, self.slots = swap_pools[:paged], None
        if kv.recurrent is not None:
            settings = (kv.block_size, checkpoint_interval)
            self.slots = StateSlots(num_blocks[-1], swap_pools[-1], *settings, enable_prefix_caching=enable_prefix_caching)
        self.all_pools = (*self.pools, *([self.slots.pool] if self.slots else []))
        self._windows = tuple((i, group.window) for i, group in enumerate(kv.groups) if group.window)
        self._most_held = [sinks.num_kept // kv.block_size if sinks else kv.most_held(i, max_num_new_tokens) for i in range(paged)]
        self._bytes = [kv.group_bytes_per_block(i) for i in range(len(kv.groups))]

    @property
    def max_length(self) -> int | None:
        """The most tokens of a sequence that its groups can hold; None if all of them hold any number."""
        sizes = zip(self.pools, self._most_held, strict=True)
        return min((pool.num_blocks * self.block_size for pool, most in sizes if most is None or most > pool.num_blocks), default=None)

    @property
    def usage(self) -> float:
        """The part of the memory for K/V that sequences hold."""
        total = sum(pool.num_blocks * size for pool, size in zip(self.all_pools, self._bytes, strict=True))
        return 1 - sum(pool.num_free_blocks * size for pool, size in zip(self.all_pools, self._bytes, strict=True)) / total

    def begin(self, state: State, hashes: Sequence[bytes]) -> int:
        """Gives a state tables, with what the prefix cache has of blocks of these hashes. Returns how many blocks that are."""
        length = self._longest_hit(hashes, self._knows) if hashes and not (self.sinks and state.num_swapped_tokens) else 0
        if self.sinks and (num_dropped := self.sinks.num_dropped(length * self.block_size)):
            return self._begin_after_sinks(state, self.sinks, num_dropped, hashes[:length])
        state.starts = [0] * len(self.pools)
        for i, window in self._windows:
            state.starts[i] = self._first_seen(window, length)
        found = [pool.match(hashes[start:length]) for pool, start in zip(self.pools, state.starts, strict=True)]
        state.tables = tuple(_holes(start) + table for start, table in zip(state.starts, found, strict=True))
        state.num_published = length
        if self.slots:
            self.slots.begin(state, hashes[:length])
        return length

    def _begin_after_sinks(self, state: State, sinks: SinkWindow, num_dropped: int, hashes: Sequence[bytes]) -> int:
        """`begin` where only the end of what the cache has of a sequence is seen, and the sinks must run again."""
        num_sinks, first = sinks.num_sinks, (sinks.num_sinks + num_dropped) // self.block_size
        state.tables = tuple(pool.match(hashes[first:]) for pool in self.pools)
        state.starts = [0] * len(self.pools)
        if any(pool.num_free_blocks * self.block_size < num_sinks for pool in self.pools):
            self.release(state)
            return self.begin(state, ())
        self._place_sinks(state, num_sinks, 0)
        state.num_dropped, state.num_published = num_dropped, len(hashes)
        return len(hashes)

    def has_room(self, state: State, num_tokens: int, num_spare: int) -> bool:
        """True if a state can grow to `num_tokens` with `num_spare` blocks left in each group."""
        num_blocks = -(-num_tokens // self.block_size)
        for pool, table, start, most in zip(self.pools, state.tables, state.starts, self._most_held, strict=True):
            num_needed = num_blocks - len(table)
            if most is not None:  # blocks behind the window come back meanwhile
                num_needed = min(num_needed, most - len(table) + start)
            if num_needed + num_spare > pool.num_free_blocks:
                return False
        return not self.slots or self.slots.num_needed(state) <= self.slots.pool.num_free_blocks

    def could_begin(self, num_tokens: int, num_spare: int) -> bool:
        """True if `has_room` would be for a sequence that finds nothing in the prefix cache."""
        state = State()
        self.begin(state, ())
        has_room = self.has_room(state, num_tokens, num_spare)
        self.release(state)
        return has_room

    def most_new_tokens(self, num_tokens: int, num_known: int) -> int:
        """How many tokens may follow after `num_tokens`, of `num_known`, in one step."""
        if self.slots:
            return self.slots.most_new_tokens(num_tokens, num_known)
        return self.sinks.num_alike(num_tokens) if self.sinks else MAX_COUNT

    def reserve(self, state: State, start: int, end: int) -> Copies | None:
        """Makes tables ready for writing tokens `start` to `end`: they grow, and shared blocks are taken apart.

        Returns:
            The copies to make before writing; None, with nothing changed, if a group has too few free blocks.
        """
        if end <= state.num_reserved:  # as in most steps
            return []
        if self.sinks and not self._move_on(state, self.sinks, start):
            return None
        first, last = start - state.num_dropped, end - state.num_dropped
        needed = [pool.num_needed(table, first, last) for pool, table in zip(self.pools, state.tables, strict=True)]
        if any(count > pool.num_free_blocks for count, pool in zip(needed, self.pools, strict=True)):
            return None
        if self.slots and self.slots.num_needed(state) > self.slots.pool.num_free_blocks:
            return None
        reserved = [pool.reserve(table, first, last) for pool, table in zip(self.pools, state.tables, strict=True)]
        reserved += [self.slots.reserve(state)] if self.slots else []
        state.num_reserved = -(-end // self.block_size) * self.block_size
        return [(group, *copy) for group, copies in enumerate(reserved) for copy in copies or ()]

    def _move_on(self, state: State, sinks: SinkWindow, start: int) -> bool:
        """Forgets what the token at `start` does not see. The sinks get new blocks, to run again; False if too few are free."""
        num_more = sinks.num_dropped(start) - state.num_dropped
        if num_more <= 0:
            return True
        num_sinks, end = sinks.num_sinks // self.block_size, (sinks.num_sinks + num_more) // self.block_size
        for pool, table in zip(self.pools, state.tables, strict=True):
            if pool.num_free_blocks + pool.num_freed(table[:end]) < num_sinks:
                return False
        for pool, table in zip(self.pools, state.tables, strict=True):
            pool.release(table[:end])
        self._place_sinks(state, sinks.num_sinks, end)
        state.num_dropped += num_more
        return True

    def _place_sinks(self, state: State, num_sinks: int, end: int) -> None:
        """Puts new blocks for the sinks in the place of blocks 0 to `end` of the tables."""
        for pool, table in zip(self.pools, state.tables, strict=True):
            blocks = empty_table()
            pool.reserve(blocks, 0, num_sinks)
            table[:end] = blocks
        state.runs_sinks = True

    def reserve_all(self, states: Sequence[tuple[State, int]], num_tokens: int) -> bool:
        """Lets every state, whose last blocks are its own, grow by `num_tokens` from its length on; False if not all can."""
        growing = [(state, length, length + num_tokens) for state, length in states if length + num_tokens > state.num_reserved]
        for group, pool in enumerate(self.pools if growing else ()):
            if sum(pool.num_missing(state.tables[group], end - state.num_dropped) for state, _, end in growing) > pool.num_free_blocks:
                return False
        for state, length, end in growing:
            self.reserve(state, length, end)
        return True

    def publish(self, state: State, num_blocks: int, hashes: Sequence[bytes]) -> None:
        """Lets later sequences find the first `num_blocks` blocks, which are full and computed, by their hashes."""
        old, state.num_published, num_dropped = state.num_published, num_blocks, state.num_dropped // self.block_size
        for pool, table, start in zip(self.pools, state.tables, state.starts, strict=True):
            first = max(old, start)  # what came back from the swap space has holes that were never published
            if num_dropped and self.sinks:  # neither are sinks that ran again
                first = max(first, num_dropped + self.sinks.num_sinks // self.block_size)
            pool.publish(table[first - num_dropped : num_blocks - num_dropped], hashes[first:num_blocks])

    def keep(self, state: State, num_tokens: int, num_known: int, hashes: Sequence[bytes]) -> None:
        """Makes a checkpoint of a recurrent state after `num_tokens`, of `num_known`, if one is wanted there."""
        if self.slots and num_tokens and self.enable_prefix_caching:
            self.slots.keep(state, num_tokens, num_known, hashes)

    def advance(self, state: State, num_tokens: int) -> None:
        """Takes note that so many tokens are computed, and gives back the blocks that no query after them sees."""
        state.runs_sinks = False
        if self._windows:
            self._drop_unseen(state, num_tokens)

    def _drop_unseen(self, state: State, num_tokens: int) -> None:
        for i, window in self._windows:
            first, start = (num_tokens - window + 1) // self.block_size, state.starts[i]
            if first > start:
                table, state.starts[i] = state.tables[i], first
                self.pools[i].drop(table, start, min(first, len(table)))
                table.extend(_holes(first - len(table)))  # of tokens that are in the swap space

    def cut(self, state: State, num_tokens: int) -> None:
        """Gives back the blocks that lie wholly behind the first `num_tokens` tokens."""
        num_blocks = -(-(num_tokens - state.num_dropped) // self.block_size)
        for pool, table in zip(self.pools, state.tables, strict=bool(state.tables)):
            pool.cut(table, num_blocks)
        state.num_reserved = min(state.num_reserved, num_blocks * self.block_size + state.num_dropped)

    def fork(self, state: State) -> State:
        """A second holder of the same blocks; the first one to write to a shared block gets a copy of it."""
        child = State()
        held = zip(self.pools, state.tables, state.starts, strict=True)
        child.tables = tuple(pool.fork(table, start) for pool, table, start in held)
        child.starts, child.num_published, child.num_dropped = list(state.starts), state.num_published, state.num_dropped
        state.num_reserved = 0
        if self.slots:
            self.slots.fork(state, child)
        return child

    def set_aside(self, state: State) -> State | None:
        """Gives a recurrent state another slot, which the next step writes to, reading from its own. None if no slot is free.

        Returns what holds its own slot, for `go_back` or `release`.
        """
        if self.slots is None or not self.slots.pool.num_free_blocks:
            return None
        kept = State()
        kept.slot, state.slot, state.source = state.slot, empty_table(), state.slot[0]
        self.slots.reserve(state)
        return kept

    def go_back(self, state: State, kept: State) -> None:
        """Gives a state the slot back that was set aside, in place of its own."""
        assert self.slots is not None
        self.slots.pool.release(state.slot)
        state.slot, kept.slot = kept.slot, empty_table()
        state.num_reserved = 0  # the slot may be a checkpoint

    def release(self, state: State) -> None:
        """Lets go of every block."""
        for pool, table, start in zip(self.pools, state.tables, state.starts, strict=bool(state.tables)):
            pool.release(table, start)
        state.tables, state.starts, state.runs_sinks = (), [], False
        state.num_dropped = state.num_published = state.num_reserved = 0
        if self.slots:
            self.slots.release(state)

    def swap_out(self, state: State, num_tokens: int) -> Copies:
        """The copies that put what is computed of `num_tokens` tokens into swap blocks; none if there is no room."""
        end = -(-(num_tokens - state.num_dropped) // self.block_size)
        held = [table[start:end] for table, start in zip(state.tables, state.starts, strict=True)]
        state.swap_tables = tuple(empty_table() for _ in held)
        wanted = zip(self.swap_pools, state.swap_tables, held, strict=True)
        if not num_tokens or state.runs_sinks or not all(not blocks or pool.take(table, len(blocks)) for pool, table, blocks in wanted):
            self.forget_swapped(state)
            return []
        slots = self.slots.swap_out(state) if self.slots else []
        if slots is None:
            self.forget_swapped(state)
            return []
        state.num_swapped_tokens, state.num_swap_dropped = num_tokens, state.num_dropped
        copies = [list(zip(blocks, swapped, strict=True)) for blocks, swapped in zip(held, state.swap_tables, strict=True)] + [slots]
        return [(group, *copy) for group, pairs in enumerate(copies) for copy in pairs]

    def swap_in(self, state: State) -> Copies:
        """Takes blocks for what swap blocks hold beyond the cached prefix; `has_room` was asked. Returns the copies that fill them."""
        num_tokens, copies = state.num_swapped_tokens, []
        if num_tokens and self.slots and state.num_published * self.block_size > num_tokens:
            self.forget_swapped(state)  # which is behind the checkpoint
        elif num_tokens:
            self._drop_unseen(state, num_tokens)
            state.num_dropped = num_dropped = state.num_swap_dropped
            lengths = [len(table) for table in state.tables]
            self.reserve(state, max(lengths) * self.block_size + num_dropped, num_tokens)
            for group, (table, length, swapped) in enumerate(zip(state.tables, lengths, state.swap_tables, strict=True)):
                first = -(-(num_tokens - num_dropped) // self.block_size) - len(swapped)  # the index of the first swapped block
                copies += [(group, *copy) for copy in zip(swapped[length - first :], table[length:], strict=True)]
            copies += [(len(self.pools), *copy) for copy in self.slots.swap_in(state)] if self.slots else []
            self.forget_swapped(state)
        return copies

    def forget_swapped(self, state: State) -> None:
        """Lets go of every swap block."""
        for pool, table in zip(self.swap_pools, state.swap_tables, strict=bool(state.swap_tables)):
            pool.release(table)
        if self.slots:
            self.slots.forget_swapped(state)
        state.swap_tables, state.num_swapped_tokens, state.num_swap_dropped = (), 0, 0

    def check_integrity(self, running: Sequence[State], waiting: Sequence[State]) -> None:
        """Checks that `running` states, and nothing else, hold blocks, and `waiting` ones swap blocks. Raises EngineError."""
        for group, (pool, swap) in enumerate(zip(self.pools, self.swap_pools, strict=True)):
            pool.check_integrity(state.held(group) for state in running)
            swap.check_integrity(state.swap_tables[group] for state in waiting if state.swap_tables)
        if self.slots:
            self.slots.pool.check_integrity(state.slot for state in running)
            self.slots.swap_pool.check_integrity(state.swap_slot for state in waiting)

    def check_idle(self) -> None:
        """Checks that every block is free. Raises EngineError."""
        swap_pools = (*self.swap_pools, *([self.slots.swap_pool] if self.slots else []))
        for name, pools in (("blocks", self.all_pools), ("swap blocks", swap_pools)):
            num_held = sum(pool.num_blocks - pool.num_free_blocks for pool in pools)
            if num_held:
                raise EngineError(f"{num_held} {name} are still held")

    def cached_names(self, hashes: Sequence[bytes], stored: Callable[[int, bytes], bool]) -> list[list[bytes]]:
        """The blocks of each group, by their hashes, that a sequence would begin with if its pool also had what `stored` says."""
        length = self._longest_hit(hashes, lambda group, name: self._knows(group, name) or stored(group, name))
        windows = dict(self._windows)
        starts = [self._first_seen(windows.get(i, 0), length) if self.sinks or i in windows else 0 for i in range(len(self.pools))]
        names = [list(hashes[start:length]) for start in starts]
        return names + [list(hashes[length - 1 : length])] * (self.slots is not None)

    def _knows(self, group: int, name: bytes) -> bool:
        return self.all_pools[group].knows(name)

    def _longest_hit(self, hashes: Sequence[bytes], knows: Callable[[int, bytes], bool]) -> int:
        """The most leading blocks of these hashes that every group can go on from, by what `knows` says of its blocks."""
        length, windows, of_group = len(hashes), dict(self._windows), [partial(knows, group) for group in range(len(self.all_pools))]
        while True:
            fitting = min(
                (self._longest_seen(of_group[i], windows.get(i, 0), hashes, length) for i in range(len(self.pools))), default=length
            )
            fitting = self.slots.longest_hit(hashes, fitting, of_group[-1]) if self.slots else fitting
            if fitting == length:
                return length
            length = fitting

    def _longest_seen(self, knows: Callable[[bytes], bool], window: int, hashes: Sequence[bytes], length: int) -> int:
        """At most `length` leading blocks, of which a group knows all that the token after them sees."""
        if not window and not self.sinks:
            return next((i for i in range(length) if not knows(hashes[i])), length)
        i = length - 1
        while i >= self._first_seen(window, length):
            if not knows(hashes[i]):
                length = i
            i -= 1
        return length

    def _first_seen(self, window: int, num_blocks: int) -> int:
        """The index of the first block that the token after `num_blocks` blocks sees; sinks that run again are none."""
        if self.sinks:
            num_dropped = self.sinks.num_dropped(num_blocks * self.block_size)
            return (self.sinks.num_sinks + num_dropped) // self.block_size if num_dropped else 0
        return max(0, (num_blocks * self.block_size - window + 1) // self.block_size)


def _holes(count: int) -> BlockTable:
    return array("i", [HOLE]) * count
