"""Blocks of channels that recurrences are divided into: a channel's state depends on no other's, so blocks run side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, name
from cupola.targets.cpu.isa import ISA
from cupola.targets.generic.recurrent import RecurrentTensors, Span, span_of

MAX_VECTORS = 4  # of a block
AHEAD = 4  # tokens whose rows are asked for before they are needed: they lie further apart than processors look ahead


@dataclass(frozen=True)
class Blocks:
    """Equal blocks that cover so many channels: `vectors` of `lanes` each."""

    lanes: int
    vectors: int

    @staticmethod
    def of(isa: ISA, channels: int, max_vectors: int = MAX_VECTORS) -> Blocks:
        """As many lanes as the machine has, where channels divide into them."""
        lanes = math.gcd(channels, isa.lanes)
        return Blocks(lanes, math.gcd(channels // lanes, 1 << (max_vectors.bit_length() - 1)))

    @property
    def size(self) -> int:
        """Channels of a block."""
        return self.lanes * self.vectors

    def places(self, first: Value) -> list[Value]:
        """Where the vectors of the block begin that begins at `first`."""
        return [name(first + i * self.lanes) for i in range(self.vectors)]


def for_each_block(t: RecurrentTensors, num_blocks: int, work: int, body: Callable[[Span, Value], None]) -> None:
    """Runs `body(span, block)` for each sequence and block, in parallel if there is enough to do; a token of all blocks is so much work."""
    n = t.out.shape[0]
    with T.If(t.batch > T.int64(0)), T.Then():
        each = name(n * work // (t.batch * num_blocks) + 1)

        def task(index: Value) -> None:
            body(span_of(t, name(index // num_blocks)), name(index % num_blocks))

        for_each(name(t.batch * num_blocks), each, task)


def prefetch_part(simd: Simd, buffer: Buffer, index: tuple[Value, ...], start: Value | int, size: int, *, write: bool = False) -> None:
    """Brings `size` elements of a row nearer."""
    for i in range(0, size, simd.elements_of_line(buffer)):
        simd.prefetch(buffer, (*index, start + i), write=write)
