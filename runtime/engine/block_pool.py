"""The pool of K/V blocks: reference counts, prefix cache, copy-on-write. Pure Python; knows no tensors."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from cupola.runtime.errors import EngineError

BlockTable: TypeAlias = "array[int]"  # the blocks of one sequence, in order: int32, as the model takes them
HOLE = 0  # stands in a table for a block that was given back; who attends reads nothing there, but it must be some block's number


def empty_table() -> BlockTable:
    """A table without blocks."""
    return array("i")


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full block: its tokens and, through `parent`, every token before them.

    Cryptographic, because a collision would show one user's context to another. The first block's parent is a salt.
    """
    return hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16, key=parent).digest()


class BlockPool:
    """A pool of `num_blocks` blocks of `block_size` tokens.

    A block is free (on `_unused`, or on `_cached`: free, but still findable by its hash until it is taken), or held by
    one or more block tables. Full blocks that were computed are published under their hash and can be shared.

    Attributes:
        on_publish: is told the hash of each block that is published.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks, self.block_size, self.enable_prefix_caching = num_blocks, block_size, enable_prefix_caching
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._num_refs = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.on_publish: Callable[[bytes], None] | None = None

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken at once, cached ones included."""
        return len(self._unused) + len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def num_missing(self, table: BlockTable, end: int) -> int:
        """How many blocks `table` lacks for tokens up to `end`."""
        return max(0, self.num_blocks_for(end) - len(table))

    def knows(self, name: bytes) -> bool:
        """True if a published block of that hash is still there."""
        return name in self._block_of

    def find(self, name: bytes) -> int | None:
        """The published block of that hash; None if there is none."""
        return self._block_of.get(name)

    def is_shared(self, block: int) -> bool:
        """True if more than one table holds the block."""
        return self._num_refs[block] > 1

    def is_published(self, block: int) -> bool:
        """True if later sequences find the block by a hash."""
        return block in self._hash_of

    def unpublish(self, block: int) -> None:
        """Lets nobody find a published block any more."""
        del self._block_of[self._hash_of.pop(block)]
        if block in self._cached:
            del self._cached[block]
            self._unused.append(block)

    def forget(self, name: bytes) -> None:
        """Lets nobody find the block of that hash any more, if it is there and nobody holds it."""
        block = self._block_of.get(name)
        if block is not None and block in self._cached:
            self.unpublish(block)

    def match(self, hashes: Iterable[bytes]) -> BlockTable:
        """The published blocks of the longest known prefix of `hashes`, now held by the caller."""
        table = empty_table()
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            self._hold(block)
            table.append(block)
        return table

    def fork(self, table: BlockTable, first: int = 0) -> BlockTable:
        """A second holder of the blocks from index `first` on; the first one to write to a shared block gets a copy of it."""
        for block in table[first:]:
            self._hold(block)
        return table[:]

    def num_freed(self, blocks: Iterable[int]) -> int:
        """How many of these held blocks would be free if one of their holders let go of them."""
        return sum(self._num_refs[block] == 1 for block in blocks)

    def num_needed(self, table: BlockTable, start: int, end: int) -> int:
        """How many free blocks `reserve` takes."""
        num_refs, num_shared = self._num_refs, 0
        for i in range(start // self.block_size, len(table)):
            num_shared += num_refs[table[i]] > 1
        return num_shared + max(0, -(-end // self.block_size) - len(table))

    def reserve(self, table: BlockTable, start: int, end: int) -> list[tuple[int, int]] | None:
        """Makes `table` ready for writing tokens `start` to `end`: grows it and takes shared blocks apart.

        Returns:
            The (from, to) blocks to copy before writing; None, with nothing changed, if too few blocks are free.
        """
        shared = [i for i in range(start // self.block_size, len(table)) if self._num_refs[table[i]] > 1]
        num_new = self.num_missing(table, end)
        if not num_new and not shared:
            return []
        if num_new + len(shared) > self.num_free_blocks:
            return None
        copies = []
        for i in shared:
            copy = self._take()
            copies.append((table[i], copy))
            self._drop(table[i])
            table[i] = copy
        table.extend(self._take() for _ in range(num_new))
        return copies

    def publish(self, blocks: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Lets later sequences find `blocks`, which are full and computed. The first block of a hash stays."""
        if not self.enable_prefix_caching:
            return
        for block, name in zip(blocks, hashes, strict=True):
            if block not in self._hash_of and name not in self._block_of:
                self._hash_of[block], self._block_of[name] = name, block
                if self.on_publish is not None:
                    self.on_publish(name)

    def drop(self, table: BlockTable, start: int, end: int) -> None:
        """Lets go of blocks `start` to `end` of `table`, in whose places it then has holes: the number of no block of its own."""
        for i in range(start, end):
            self._drop(table[i])
            table[i] = HOLE

    def cut(self, table: BlockTable, num_blocks: int) -> None:
        """Lets go of what `table` holds beyond its first `num_blocks` blocks."""
        while len(table) > num_blocks:
            self._drop(table.pop())

    def release(self, table: BlockTable, first: int = 0) -> None:
        """Lets go of every block of `table`, which has holes up to index `first`, and empties it."""
        self.cut(table, first)  # from the end: the head of a prefix is of use to more requests, so it goes last
        del table[:]

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Checks that exactly `tables`, given without holes, hold blocks. Raises EngineError naming the first block that is wrong."""
        held = Counter(block for table in tables for block in table)
        free = Counter([*self._unused, *self._cached])
        for block in range(self.num_blocks):
            if self._num_refs[block] != held[block] or free[block] != (held[block] == 0):
                found = f"{self._num_refs[block]} references, {held[block]} holders, {free[block]} times free"
                raise EngineError(f"block {block} has {found}")
            if (block in self._cached) > (block in self._hash_of):
                raise EngineError(f"block {block} is cached without a hash")
        if {name: block for block, name in self._hash_of.items()} != self._block_of:
            raise EngineError("the prefix cache names blocks that do not know it")

    def _hold(self, block: int) -> None:
        if self._num_refs[block] == 0:
            del self._cached[block]
        self._num_refs[block] += 1

    def _drop(self, block: int) -> None:
        self._num_refs[block] -= 1
        if self._num_refs[block] == 0:
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._unused.append(block)

    def _take(self) -> int:
        if self._unused:
            block = self._unused.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        self._num_refs[block] = 1
        return block
