"""Packed weights in the order in which a thread reads them, and how threads share them.

A core has a number of reads under way at most, and what its prefetcher foresees ends with a page. From one place in memory it is given too
few. Few rows are therefore multiplied with several panels abreast, each of which comes from a page of its own: with a block of slices of
each after another, while the next blocks are asked for slice by slice in turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import Claims, Threads
from cupola.targets.cpu.emit.simd import Value, name

ABREAST = 4  # panels
BLOCK = 8  # slices of a panel that rows are multiplied with before the next panel's: what four of them want of rows stays in L1


@dataclass(frozen=True)
class Stream:
    """A panel that comes from memory, and how many slices, its own with them, a thread has still to read from there on."""

    panel: Value
    num_left: Value

    def place(self, at: Value | int) -> tuple[Value, Value | int]:
        """Slice `at` of the stream, as one of the panel and those that follow it in memory."""
        return self.panel, at


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
