"""Packed weights in the order in which a thread reads them, and how threads share them.

A core has a number of reads under way at most, and what its prefetcher foresees ends with a page. From one place in memory it is given too
few. Few rows are therefore multiplied with several panels abreast, each of which comes from a page of its own: a single one with a slice of
each after another, several, whose sums registers don't hold, with a block of slices of each, while the next blocks are asked for slice by
slice in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import Claims, Threads
from cupola.targets.cpu.emit.simd import Value, name
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.packing import PANEL

ABREAST = 4  # panels
ABREAST_AHEAD = 3  # slices of each that are asked for before those that are multiplied: they go to L1, which holds no more
BLOCK = 8  # slices of a panel that several rows are multiplied with before the next panel's: what four of them want of rows stays in L1


def panels_abreast(isa: ISA) -> int:
    """Panels that one row is multiplied with at once: as many as leave half of the registers to a slice, or one."""
    return ABREAST if 2 * ABREAST * PANEL // isa.lanes <= isa.num_registers else 1


@dataclass(frozen=True)
class Stream:
    """A panel that comes from memory, and how many slices, its own with them, a thread has still to read from there on."""

    panel: Value
    num_left: Value

    def place(self, at: Value | int) -> tuple[Value, Value | int]:
        """Slice `at` of the stream, as one of the panel and those that follow it in memory."""
        return self.panel, at


@dataclass(frozen=True)
class AbreastStream(Stream):
    """Panels that come from memory abreast if they are `wide`, else one after the other."""

    wide: Value

    def place(self, at: Value | int) -> tuple[Value, Value | int]:
        """As of others; of panels abreast one slice each in turns."""
        at = name(T.cast(at, "int64"))
        turn, down = (T.Select(self.wide, T.int64(value), T.int64(0)) for value in (ABREAST - 1, ABREAST.bit_length() - 1))
        return name(self.panel + (at & turn)), name(at >> down)


@dataclass(frozen=True)
class Shares:
    """A layer's panels for threads to claim: `size` at once, as often as all threads can have equally many of these; then the others."""

    size: int
    wide: Claims
    single: Claims

    @staticmethod
    def allocate(num_panels: int, size: int) -> Shares:
        """Before the region."""
        threads = Threads.of_region()
        num_wide = name(num_panels // (threads.count * size) * threads.count) if size > 1 else T.int64(0)
        return Shares(size, Claims.allocate(threads, num_wide), Claims.allocate(threads, name(num_panels - num_wide * size)))

    @property
    def first_single(self) -> Value:
        """The first panel that is claimed alone."""
        return self.wide.count * self.size

    def stream(self, thread: Value, slices: int) -> AbreastStream:
        """The beginning of a thread's share, whose panels have so many slices."""
        threads, is_wide = self.wide.threads, self.wide.count > 0
        task = name(threads.first(thread, T.Select(is_wide, self.wide.count, self.single.count)))
        num_left = T.Select(is_wide, self.wide.left_of(thread, task) * self.size, self.single.left_of(thread, task))
        return AbreastStream(name(T.Select(is_wide, task * self.size, task)), name(num_left * slices), is_wide)

    def after(self, thread: Value, task: Value) -> Value:
        """The panels that a thread probably reads after `size` of them: the next of its share, or the same if there are none."""
        return name(T.Select(self.wide.left_of(thread, task) > 1, task + 1, task) * self.size)


@dataclass(frozen=True)
class Run:
    """Panels side by side, up to ABREAST: `count` of them from `first` on, or none."""

    first: Value
    count: Value

    def or_else(self, condition: Value, other: Run) -> Run:
        """This one, or if a condition holds another one."""
        return Run(name(T.Select(condition, other.first, self.first)), name(T.Select(condition, other.count, self.count)))

    def turn(self, at: Value) -> tuple[Value, Value]:
        """A panel and which of its slices comes as number `at`, below 2^14, if each panel's first comes before each panel's second."""
        down = name(at * (T.int64(65535) // T.max(self.count, T.int64(1)) + 1) >> 16)  # at // count
        return name(self.first + at - down * self.count), down


@dataclass(frozen=True)
class Runs:
    """A layer's panels for threads to claim as runs, of which there are as many for each thread."""

    claims: Claims
    num_panels: int

    @staticmethod
    def allocate(num_panels: int) -> Runs:
        """Before the region."""
        threads = Threads.of_region()
        most = threads.count * ABREAST
        return Runs(Claims.allocate(threads, name((num_panels + most - 1) // most * threads.count)), num_panels)

    def run(self, index: Value) -> Run:
        """A run by its number."""
        first, stop = (name((index + end) * self.num_panels // self.claims.count) for end in range(2))
        return Run(first, name(stop - first))

    def first(self, thread: Value) -> Run:
        """The run that a thread begins with."""
        return self.run(name(self.claims.threads.first(thread, self.claims.count)))

    @contextmanager
    def each(self, thread: Value) -> Iterator[tuple[Run, Run]]:
        """The runs that a thread claims, each with the one that it probably reads next: the same if there is none."""
        with self.claims.each(thread) as task:
            yield self.run(task), self.run(name(T.Select(self.claims.left_of(thread, task) > 1, task + 1, task)))
