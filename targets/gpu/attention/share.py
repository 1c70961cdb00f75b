"""The rows that a block of threads has, of a step's sequences that bring several tokens: tokens, and the query heads of a K/V head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Value
from cupola.targets.generic.attention import AttentionTensors
from cupola.targets.gpu.attention.plain import some_bring_more
from cupola.targets.gpu.emit import keep, registers


def first_seen(kernel: AttentionShape, position: Value) -> Value:
    """The first key that a token at a position sees."""
    return T.max(T.int64(0), position + T.int64(1 - kernel.window)) if kernel.window else T.int64(0)


def most_shares(t: AttentionTensors, size: int) -> Value:
    """Blocks of so many rows of a K/V head that a step may want; 0 where every sequence brings one token."""
    return (t.n * (t.kernel.num_heads // t.kernel.num_kv_heads) // T.int64(size) + t.batch) * some_bring_more(t)


@dataclass(frozen=True)
class Share:
    """A block's rows, all of one sequence.

    Attributes:
        group: the K/V head.
        start, before: the sequence's first new token, and how many stand before it.
        first, last: of the block's rows among the sequence's.
        begin, end: the first and the last key that one of them sees.
    """

    t: AttentionTensors
    sequence: Value
    group: Value
    start: Value
    before: Value
    first: Value
    last: Value
    begin: Value
    end: Value

    def row(self, row: Value) -> tuple[Value, Value]:
        """The token, counted from the sequence's first new one, and the query head, of a row; of one that there is not, the last one's."""
        per_group, x = self.t.kernel.num_heads // self.t.kernel.num_kv_heads, T.min(self.first + row, self.last)
        return x // per_group, self.group * per_group + x % per_group

    def place(self, key: Value) -> tuple[Value, ...]:
        """Where a key lies in pages; instead of one that nobody sees, another one."""
        kernel, seen = self.t.kernel, keep(T.min(T.max(key, self.begin), self.end))
        held = keep(T.cast(self.t.block_tables[self.sequence, seen // kernel.block_size], "int64"))
        return self.t.layer, held, seen % kernel.block_size, self.group


@contextmanager
def share_of(t: AttentionTensors, index: Value, group: Value, size: int) -> Iterator[Share]:
    """Runs its body if there is a block of so many rows at an index."""
    kernel, per_group = t.kernel, t.kernel.num_heads // t.kernel.num_kv_heads
    found = registers(3, "int64")  # blocks before, the sequence, its first block
    for i, value in enumerate((0, -1, 0)):
        T.buffer_store(found, T.int64(value), [i])
    with T.serial(t.batch) as i:
        count = keep(T.cast(t.query_starts[i + 1] - t.query_starts[i], "int64"))
        with T.If(count > T.int64(1)), T.Then():
            num_blocks = (count * per_group + T.int64(size - 1)) // T.int64(size)
            with T.If(tvm.tirx.all(index >= found[0], index < found[0] + num_blocks)), T.Then():
                T.buffer_store(found, T.cast(i, "int64"), [1])
                T.buffer_store(found, found[0], [2])
            T.buffer_store(found, found[0] + num_blocks, [0])
    with T.If(found[1] >= T.int64(0)), T.Then():
        sequence, first = found[1], keep((index - found[2]) * size)
        start = keep(T.cast(t.query_starts[sequence], "int64"))
        count = keep(T.cast(t.query_starts[sequence + T.int64(1)], "int64") - start)
        before = keep(T.cast(t.context_lens[sequence], "int64") - count)
        last = keep(T.min(first + T.int64(size), count * per_group) - T.int64(1))
        begin = keep(first_seen(kernel, before + first // per_group))
        yield Share(t, sequence, group, start, before, first, last, begin, keep(before + last // per_group))
