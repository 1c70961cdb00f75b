"""Loop nests that several kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.simd import Buffer, Register, Simd, Value, name, pieces, tree

PARALLEL_FROM = 1 << 15  # elements; below, launching a parallel region costs more than it saves
UNROLL = 4


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
        return Threads(name(T.cast(T.call_packed("runtime.NumThreads"), "int64")))

    @contextmanager
    def each(self, *, barrier: bool = True) -> Iterator[Value]:
        """What every thread does once."""
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
        taken: by task, whether some thread has it.
    """

    threads: Threads
    count: Value
    taken: Buffer

    @staticmethod
    def allocate(threads: Threads, count: Value, most: Value) -> Claims:
        """Before the region; `most` is what `count` can be by the shapes of the arguments."""
        taken = T.alloc_buffer((most,), "uint8", scope="global")
        with T.serial(count) as i:
            T.buffer_store(taken, T.uint8(0), [i])
        return Claims(threads, count, taken)

    @contextmanager
    def each(self, thread: Value) -> Iterator[Value]:
        """The tasks that `thread` is the first to ask for. It begins with what would be its share, where it finds in its cache what it
        touched before, and then goes round."""
        start = name(self.threads.first(thread, self.count))
        with T.attr(T.int64(0), "pragma_import_llvm", _TAKE), T.serial(self.count) as i:
            task = name((start + i) % self.count)
            with T.If(T.call_extern("uint8", "cupola_take", T.address_of(self.taken[task])) == T.uint8(0)), T.Then():
                yield task


# What a byte was before it becomes 1, for one thread alone 0. TVM has no atomic operations on CPUs.
_TAKE = """
define linkonce_odr i8 @cupola_take(ptr %byte) alwaysinline nounwind {
  %seen = load atomic i8, ptr %byte monotonic, align 1
  %free = icmp eq i8 %seen, 0
  br i1 %free, label %take, label %end
take:
  %old = atomicrmw xchg ptr %byte, i8 1 monotonic
  br label %end
end:
  %result = phi i8 [ %seen, %0 ], [ %old, %take ]
  ret i8 %result
}
"""


def in_tiles(count: Value, sizes: tuple[int, ...], tile: Callable[[Value, int], None]) -> None:
    """Covers `count` rows by tiles of `sizes`: the largest as often as it fits, then powers of two."""
    largest, *smaller = sizes
    with T.serial(count // largest) as index:
        tile(name(index * largest), largest)
    rest, start = name(count % largest), name(count // largest * largest)
    for size in smaller:
        with T.If((rest & T.int64(size)) != T.int64(0)), T.Then():
            tile(name(start + (rest & T.int64(-2 * size))), size)


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
