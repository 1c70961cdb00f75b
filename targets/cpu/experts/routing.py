"""Which tokens go to which expert: pairs of the two, sorted by expert, so that its weights are read once for all of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import Claims, Threads, between
from cupola.targets.cpu.emit.simd import Buffer, Value, name

RUN = 8  # panels of a run where there are many tokens
EVEN = 4  # tasks of a thread, from which on it matters little if another one has one more
TILE_ROWS = 16  # of a matrix unit


@dataclass(frozen=True)
class Group:
    """Some panels of an expert's weight, one after another, and the pairs that they are multiplied with.

    Attributes:
        routing: of all experts.
        expert: which one.
        first, count: which of the sorted pairs are the expert's.
        first_panel: the expert's first one among those of all experts.
        start, stop: the group's panels, among the same.
        following: the first panel of the next expert that tokens go to; the expert's own if it is the last.
        num_left: panels that a thread has still to do of its share, the group's with them.
    """

    routing: Routing
    expert: Value
    first: Value
    count: Value
    first_panel: Value
    start: Value
    stop: Value
    following: Value
    num_left: Value

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
        tiles: int64 [E + 1], before which of an expert's first tile of 16 pairs; the last is the number of tiles. Experts with too few
            pairs have none.
    """

    choices: int
    ends: Buffer
    active: Buffer
    num_active: Buffer
    order: Buffer
    tiles: Buffer | None

    @property
    def num_tiles(self) -> Value:
        """Tiles of all experts."""
        assert self.tiles is not None
        return self.tiles[self.tiles.shape[0] - 1]

    @staticmethod
    def sort(index: Buffer, num_tokens: Value, num_experts: int, choices: int, tiles_from: int = 0) -> Routing:
        """Of `index` [n, choices]. Before the region: it takes less than waiting for another core. Experts with `tiles_from` pairs or more
        get tiles, if that is not 0."""

        def scratch(size: Value | int) -> Buffer:
            return T.alloc_buffer((size,), "int64", scope="global")

        count = num_tokens * choices  # never named: memory of that size is taken
        tiles = scratch(num_experts + 1) if tiles_from else None
        routing = Routing(choices, scratch(num_experts + 1), scratch(num_experts), scratch(1), scratch(count), tiles)
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
        if tiles is not None:
            T.buffer_store(tiles, T.int64(0), [0])
        with T.serial(num_experts) as e:
            size = name(ends[e + 1])
            T.buffer_store(ends, total[0], [e + 1])
            T.buffer_store(total, total[0] + size, [0])
            if tiles is not None:
                own = T.Select(size < T.int64(tiles_from), T.int64(0), (size + (TILE_ROWS - 1)) // TILE_ROWS)
                T.buffer_store(tiles, tiles[e] + own, [e + 1])
            with T.If(size > T.int64(0)), T.Then():
                T.buffer_store(routing.active, T.cast(e, "int64"), [routing.num_active[0]])
                T.buffer_store(routing.num_active, routing.num_active[0] + T.int64(1), [0])
        with T.serial(count) as pair:
            e = expert_of(pair)
            T.buffer_store(routing.order, T.cast(pair, "int64"), [ends[e]])
            T.buffer_store(ends, ends[e] + T.int64(1), [e])
        return routing

    def runs(self, num_panels: int, few: Value, abreast: int = 1) -> Runs:
        """The panels of all experts that any token goes to, for threads to claim, before the region: for `few` tokens `abreast` at once, or
        one by one where threads would get too few of these to share them evenly."""
        threads, size = Threads.of_region(), T.int64(1)
        if abreast > 1:
            enough = self.num_active[0] * (num_panels // abreast) >= threads.count * EVEN
            size = T.Select(enough, T.int64(abreast), size)
        size = name(T.Select(few, size, T.int64(RUN)))
        runs = name((num_panels + size - 1) // size)
        return Runs(self, num_panels, size, runs, Claims.allocate(threads, name(self.num_active[0] * runs)))


@dataclass(frozen=True)
class Runs:
    """The units that threads claim of an expert: runs of `size` panels, `count` of each expert."""

    routing: Routing
    num_panels: int
    size: Value
    count: Value
    claims: Claims

    @contextmanager
    def each(self, thread: Value) -> Iterator[Group]:
        """Within the region: the runs that a thread claims."""
        with self.claims.each(thread) as task:
            yield self.group(thread, task)

    def first(self, thread: Value) -> Group:
        """The first run of a thread's share; there may be none, and then it has no panels left. Some expert must be picked."""
        return self.group(thread, name(T.min(self.claims.threads.first(thread, self.claims.count), self.claims.count - 1)))

    def group(self, thread: Value, task: Value) -> Group:
        """The run that a task is."""
        routing, num_panels = self.routing, self.num_panels
        at = name(task // self.count)
        expert = name(routing.active[at])
        first, first_panel = name(routing.ends[expert]), name(expert * num_panels)
        offset = name(task % self.count * self.size)
        following = name(routing.active[T.min(at + 1, routing.num_active[0] - 1)] * num_panels)
        return Group(
            routing=routing,
            expert=expert,
            first=first,
            count=name(routing.ends[expert + 1] - first),
            first_panel=first_panel,
            start=name(first_panel + offset),
            stop=name(first_panel + T.min(offset + self.size, T.int64(num_panels))),
            following=following,
            num_left=name(self.claims.left_of(thread, task) * self.size),
        )


@contextmanager
def each_panel(group: Group) -> Iterator[Value]:
    """The panels of a run."""
    with between(group.start, group.stop) as panel:
        yield panel
