"""Loop nests that several kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Register, Simd, Value, local, name, pieces, tree

PARALLEL_FROM = 1 << 15  # elements; below, launching a parallel region costs more than it saves
UNROLL = 4
LINES = 15  # cache lines that TVM still puts on the stack
MAX_THREADS = LINES * (CACHE_LINE // 8)  # of a region whose loops ask how many there are


def for_each(count: Value, elements_each: int, body: Callable[[Value], None]) -> None:
    """Runs `body(i)` for i < count, in parallel if there is enough to do."""
    with T.If(count * elements_each < T.int64(PARALLEL_FROM)):
        with T.Then(), T.serial(count) as i:
            body(i)
        with T.Else(), T.parallel(count) as i:
            body(i)


@contextmanager
def between(start: Value, stop: Value) -> Iterator[Value]:
    """A loop from start to stop, written from 0: when TVM moves a loop to start there, it forgets the bounds of inner loops."""
    with T.serial(stop - start) as i:
        yield name(start + i)


@contextmanager
def parallel_region() -> Iterator[None]:
    """`shared_loop`s that run in threads which are started once: launching costs more than a barrier.

    What a thread needs for itself is allocated within a loop. Of what stands between loops, all threads get the same one.
    """
    with T.attr(T.int64(0), "pragma_parallel_launch_point", T.int64(1)):
        yield


@contextmanager
def shared_loop(count: Value, *, strided: bool = False, barrier: bool = True) -> Iterator[Value]:
    """A loop whose iterations the threads of a region share: in one piece each, or (strided) in turns.

    With `barrier`, no thread goes on before all are done.
    """
    with ExitStack() as frames:
        for pragma, wanted in (("barrier_when_finish", barrier), ("stride_pattern", strided)):
            if wanted:
                frames.enter_context(T.attr(T.int64(0), f"pragma_parallel_{pragma}", T.int64(1)))
        yield frames.enter_context(T.parallel(count))


@dataclass(frozen=True)
class Threads:
    """The threads of a region, for loops in which each has memory of its own: taking it once a thread is cheaper than once a task."""

    count: Value

    @staticmethod
    def of_region() -> Threads:
        """Asked before the region."""
        return Threads(name(T.cast(T.min(T.call_extern("int32", "cupola_num_threads"), T.int32(MAX_THREADS)), "int64")))

    @contextmanager
    def each(self, *, barrier: bool = True) -> Iterator[Value]:
        """A block that every thread runs once."""
        with shared_loop(self.count, barrier=barrier) as thread:
            yield name(thread)

    @contextmanager
    def share(self, thread: Value, count: Value) -> Iterator[Value]:
        """A thread's share of `count` tasks, in one piece."""
        with between(name(self.first(thread, count)), name(self.first(thread + 1, count))) as task:
            yield task

    def first(self, thread: Value, count: Value) -> Value:
        """Where a thread's share begins."""
        return thread * count // self.count


@dataclass(frozen=True)
class Claims:
    """Tasks that the threads of a region claim one at a time: whoever is faster, or had smaller ones, does more of them.

    Attributes:
        claimed: by thread, how many of its share were asked for, up to LINES of them in cache lines of their own: what two cores write
            to goes back and forth. It stands on the stack, for TVM's pool takes longer than a small kernel's work.
    """

    threads: Threads
    count: Value
    claimed: Buffer

    @staticmethod
    def allocate(threads: Threads, count: Value) -> Claims:
        """Before the region."""
        claims = Claims(threads, count, local(MAX_THREADS, "int64"))
        with T.serial(threads.count) as thread:
            T.buffer_store(claims.claimed, T.int64(0), [claims.place(thread)])
        return claims

    def left_of(self, thread: Value, task: Value) -> Value:
        """How many tasks of a thread's own share there are from `task` on; none if that is of a later thread's."""
        return name(T.max(self.threads.first(thread + 1, self.count) - task, T.int64(0)))

    def place(self, thread: Value) -> Value:
        """Where a thread's counter stands."""
        return thread % LINES * (CACHE_LINE // 8) + thread // LINES

    @contextmanager
    def each(self, thread: Value) -> Iterator[Value]:
        """The tasks that `thread` is the first to ask for. It begins with its share, where it finds in its cache what it touched before,
        and then goes round the others'."""
        task = local(1, "int64")
        with T.serial(self.threads.count) as i:
            owner = name((thread + i) % self.threads.count)
            start, stop = (name(self.threads.first(owner + end, self.count)) for end in range(2))

            def claim() -> None:
                T.buffer_store(task, start + _count(self.claimed, self.place(owner)), [0])

            claim()
            with T.While(task[0] < stop):
                yield name(task[0])
                claim()


@dataclass(frozen=True)
class Parts:
    """Counts the finished parts of several wholes, so that who finishes the last part can go on with the whole, and nobody waits."""

    finished: Buffer

    @staticmethod
    def allocate(count: Value, most: Value) -> Parts:
        """Of `count` wholes, before the region; `most` is what `count` can be by the shapes of the arguments."""
        finished = T.alloc_buffer((most,), "int64", scope="global")
        with T.serial(count) as i:
            T.buffer_store(finished, T.int64(0), [i])
        return Parts(finished)

    @contextmanager
    def last(self, whole: Value, num_parts: Value) -> Iterator[None]:
        """A block that only the thread runs that finishes the last of a whole's parts: it sees what all have written."""
        with T.If(T.Or(num_parts == T.int64(1), name(_count(self.finished, whole)) == num_parts - 1)), T.Then():
            yield


def _count(counters: Buffer, *index: Value | int) -> Value:
    """Adds 1 to a counter and gives what it was before. Who comes later sees what was written before."""
    with T.attr(T.int64(0), "pragma_import_llvm", _COUNT):
        before = local(1, "int64")
        T.buffer_store(before, T.call_extern("int64", "cupola_count", T.address_of(counters[tuple(index)])), [0])
    return before[0]


_COUNT = """
define linkonce_odr i64 @cupola_count(ptr %counter) alwaysinline nounwind {
  %old = atomicrmw add ptr %counter, i64 1 acq_rel
  ret i64 %old
}
"""  # TVM has no atomic operations on CPUs


def in_tiles(count: Value, sizes: tuple[int, ...], tile: Callable[[Value, int], None]) -> None:
    """Covers `count` rows by tiles of `sizes`: the largest as often as it fits, then powers of two."""
    largest, *smaller = sizes
    with T.serial(count // largest) as index:
        tile(name(index * largest), largest)
    rest, start = name(count % largest), name(count // largest * largest)
    for size in smaller:
        with T.If((rest & T.int64(size)) != T.int64(0)), T.Then():
            tile(name(start + (rest & T.int64(-2 * size))), size)


def in_even_tiles(count: Value, sizes: tuple[int, ...], tile: Callable[[Value, int], None]) -> None:
    """Covers `count` rows by the fewest tiles there can be, all of one of `sizes`, which are the even numbers up to the first: a last tile
    of a row or two would take as long as its weights do. The tiles go over `padded(count, sizes[0])` rows."""
    size = name(padded(count, sizes[0]) // _num_tiles(count, sizes[0]))
    for each in sizes:
        with T.If(size == T.int64(each)), T.Then(), T.serial(_num_tiles(count, sizes[0])) as index:
            tile(name(index * each), each)


def padded(count: Value, largest: int) -> Value:
    """The rows of even tiles of up to `largest` rows that cover `count` of them."""
    num_tiles = _num_tiles(count, largest)
    return name(((count + num_tiles - 1) // num_tiles + 1) // 2 * 2 * num_tiles)


def _num_tiles(count: Value, largest: int) -> Value:
    return name(T.max((count + largest - 1) // largest, T.int64(1)))  # without rows one tile of none: it is divided by


def sweep(extent: int, lanes: int, body: Callable[[Value | int, int, int], None]) -> None:
    """Covers `extent` elements with `body(start, lanes, slot)`, four vectors an iteration, the rest unrolled.

    Slots count the vectors of an iteration, then those of the rest.
    """
    block = UNROLL * lanes
    if extent >= block:
        with T.serial(extent // block) as i:
            for slot in range(UNROLL):
                body(i * block + slot * lanes, lanes, slot)
    for slot, (start, width) in enumerate(pieces(extent % block, lanes)):
        body(extent // block * block + start, width, UNROLL + slot)


def reduce_sum(simd: Simd, extent: int, add: Callable[[Value | int, int, Value], Value]) -> Value:
    """The sum of what `add(start, lanes, total)` adds to totals, over `extent` elements and in one fixed order."""
    block = UNROLL * simd.lanes
    totals = [Register(simd.lanes) for _ in range(UNROLL if extent >= block else 0)]
    totals += [Register(lanes) for _, lanes in pieces(extent % block, simd.lanes)]
    first_rest = UNROLL if extent >= block else 0

    def step(start: Value | int, lanes: int, slot: int) -> None:
        total = totals[slot if slot < UNROLL else first_rest + slot - UNROLL]
        total.set(add(start, lanes, total.get()))

    sweep(extent, simd.lanes, step)
    sums = [tree(total.get(), lambda a, b: a + b) for total in totals]
    result = sums[0]
    for value in sums[1:]:
        result = name(result + value)
    return result
