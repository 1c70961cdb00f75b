"""Which tokens go to which expert: pairs of the two, sorted by expert, so that its weights are read once for all of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import Claims, Threads
from cupola.targets.cpu.emit.simd import Buffer, Value, name


@dataclass(frozen=True)
class Group:
    """A panel of an expert's weight, and the pairs that it is multiplied with.

    Attributes:
        routing: of all experts.
        first, count: which of the sorted pairs are the expert's.
        first_panel, panel: the expert's first one, and this one, among those of all experts.
    """

    routing: Routing
    first: Value
    count: Value
    first_panel: Value
    panel: Value

    def pair(self, row: Value) -> Value:
        """The pair that row `row` of the group is: token · choices + choice."""
        return name(self.routing.order[self.first + row])


@dataclass(frozen=True)
class Routing:
    """The pairs of a call, by a counting sort.

    Attributes:
        choices: experts of a token.
        ends: int64 [E + 1], at e + 1 where the pairs of expert e end among the sorted ones; those of the next one begin there.
        active: int64 [E], the experts that any token goes to, `num_active` [1] of them, in ascending order.
        order: int64 [n · choices], the pairs, sorted.
    """

    choices: int
    ends: Buffer
    active: Buffer
    num_active: Buffer
    order: Buffer

    @staticmethod
    def sort(index: Buffer, num_tokens: Value, num_experts: int, choices: int) -> Routing:
        """Of `index` [n, choices]. Before the region: it takes less than waiting for another core."""

        def scratch(size: Value | int) -> Buffer:
            return T.alloc_buffer((size,), "int64", scope="global")

        count = num_tokens * choices  # never named: memory of that size is taken
        routing = Routing(choices, scratch(num_experts + 1), scratch(num_experts), scratch(1), scratch(count))
        ends, total = routing.ends, scratch(1)
        with T.serial(num_experts + 1) as e:
            T.buffer_store(ends, T.int64(0), [e])

        def expert_of(pair: Value) -> Value:
            return name(T.cast(index[pair // choices, pair % choices], "int64") + 1)

        with T.serial(count) as pair:
            e = expert_of(pair)
            T.buffer_store(ends, ends[e] + T.int64(1), [e])
        T.buffer_store(total, T.int64(0), [0])
        T.buffer_store(routing.num_active, T.int64(0), [0])
        with T.serial(num_experts) as e:
            size = name(ends[e + 1])
            T.buffer_store(ends, total[0], [e + 1])
            T.buffer_store(total, total[0] + size, [0])
            with T.If(size > T.int64(0)), T.Then():
                T.buffer_store(routing.active, T.cast(e, "int64"), [routing.num_active[0]])
                T.buffer_store(routing.num_active, routing.num_active[0] + T.int64(1), [0])
        with T.serial(count) as pair:
            e = expert_of(pair)
            T.buffer_store(routing.order, T.cast(pair, "int64"), [ends[e]])
            T.buffer_store(ends, ends[e] + T.int64(1), [e])
        return routing

    def claims(self, num_panels: int) -> Claims:
        """The panels of all experts that any token goes to, for threads to claim. Before the region."""
        return Claims.allocate(Threads.of_region(), name(self.num_active[0] * num_panels))

    @contextmanager
    def each_group(self, claims: Claims, thread: Value, num_panels: int) -> Iterator[Group]:
        """Within the region: those that a thread claims."""
        with claims.each(thread) as task:
            expert = name(self.active[task // num_panels])
            first, first_panel = name(self.ends[expert]), name(expert * num_panels)
            yield Group(self, first, name(self.ends[expert + 1] - first), first_panel, name(first_panel + task % num_panels))
