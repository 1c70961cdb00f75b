"""Blocks: none is leaked, none is given out twice, none is written to by two."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cupola.runtime.engine.block_pool import BlockPool, BlockTable, empty_table
from cupola.runtime.errors import EngineError
from tests.runtime.engine.schedules import hashes


def test_reserve_grows_and_refuses_whole():
    pool = BlockPool(4, 4)
    table = empty_table()
    assert pool.reserve(table, 0, 9) == []
    assert len(table) == 3
    assert pool.reserve(table, 9, 12) == []
    assert len(table) == 3
    assert pool.reserve(table, 12, 17) is None
    assert (len(table), pool.num_free_blocks) == (3, 1)
    pool.release(table)
    pool.check_integrity([])
    assert pool.num_free_blocks == 4


def test_only_written_shared_blocks_are_copied():
    pool = BlockPool(6, 4)
    parent: list[int] = []
    pool.reserve(parent, 0, 10)
    child = pool.fork(parent)
    assert pool.num_free_blocks == 3
    copies = pool.reserve(child, 10, 11)
    assert copies == [(parent[2], child[2])]
    assert (parent[:2], parent[2] != child[2]) == (child[:2], True)
    assert pool.reserve(parent, 10, 11) == []  # it is the only one left
    pool.check_integrity([parent, child])


def test_a_prefix_is_found_until_its_blocks_are_taken():
    pool = BlockPool(4, 4)
    tokens = list(range(12))
    table = empty_table()
    pool.reserve(table, 0, 12)
    pool.publish(table, hashes(tokens))
    blocks = list(table)
    pool.release(table)
    assert pool.num_free_blocks == 4
    found = pool.match(hashes([*tokens[:8], 9, 9, 9, 9]))
    assert list(found) == blocks[:2]
    pool.release(found)
    other: list[int] = []
    pool.reserve(other, 0, 8)  # takes the unused block, then the end of the prefix
    found = pool.match(hashes(tokens))
    assert list(found) == blocks[:2]
    pool.check_integrity([other, found])


def test_hashes_name_the_whole_prefix_and_the_salt():
    first, second = hashes([1, 2, 3, 4, 5, 6, 7, 8])
    assert hashes([0, 2, 3, 4, 5, 6, 7, 8])[1] != second
    assert hashes([1, 2, 3, 4], b"salt")[0] != first


def test_without_caching_nothing_is_found():
    pool = BlockPool(4, 4, enable_prefix_caching=False)
    table = empty_table()
    pool.reserve(table, 0, 4)
    pool.publish(table, hashes([1, 2, 3, 4]))
    assert list(pool.match(hashes([1, 2, 3, 4]))) == []


def test_check_integrity_sees_a_leak():
    pool = BlockPool(4, 4)
    table = empty_table()
    pool.reserve(table, 0, 4)
    with pytest.raises(EngineError, match=r"block 0 has 1 references, 0 holders"):
        pool.check_integrity([])


class PoolMachine(RuleBasedStateMachine):
    """Random use of the pool's verbs."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9, 4)
        self.tables: list[tuple[BlockTable, int]] = []  # and how many tokens were written
        self.texts: list[list[int]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def start(self, tokens: list[int]) -> None:
        table = self.pool.match(hashes(tokens))
        if self.pool.reserve(table, 4 * len(table), len(tokens)) is None:
            self.pool.release(table)
        else:
            self.pool.publish(table[: len(tokens) // 4], hashes(tokens))
            self.tables.append((table, len(tokens)))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), count=st.integers(1, 6))
    def grow(self, data: st.DataObject, count: int) -> None:
        i = data.draw(st.integers(0, len(self.tables) - 1))
        table, length = self.tables[i]
        if self.pool.reserve(table, length, length + count) is not None:
            self.tables[i] = (table, length + count)
            others = {block for j, (other, _) in enumerate(self.tables) if j != i for block in other}
            assert not others & set(table[length // 4 :]), "a shared block would be written to"

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table, length = self.tables[data.draw(st.integers(0, len(self.tables) - 1))]
        self.tables.append((self.pool.fork(table), length))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table, _ = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(table for table, _ in self.tables)


TestPool = PoolMachine.TestCase
