"""Many rows of a linear layer where no copy goes to shared memory by itself, as on AMD's GPUs: threads load a chunk while another one is
multiplied, and then write it. Two stages take turns, so that threads wait for each other once a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import call, gpu, registers, synchronize
from cupola.targets.gpu.linear.fragments import WARPS
from cupola.targets.gpu.linear.stages import Stage
from cupola.targets.gpu.linear.tiles import COLUMNS


@dataclass(frozen=True)
class _Work:
    """A thread's registers for what it loads, and of which tiles and rows."""

    held: Buffer
    tile: Value
    row: Value
    count: Value
    thread: Value


@dataclass(frozen=True)
class RegisterStage(Stage):
    """As `Stage`. Of a row the 16 bytes at an index lie at it, but for the bits of the row's number.

    Attributes:
        works: the block's, once it has begun.
    """

    count: ClassVar[int] = 2
    works: list[_Work] = field(default_factory=list, compare=False)

    def fetch(self, memory: Buffer, chunk: Value, end: int, tile: Value, row: Value, count: Value, thread: Value) -> None:
        """As `Stage`: loads a chunk."""
        if not self.works:
            self.works.append(_Work(registers(4 * self._pieces, "int32"), tile, row, count, thread))
        with T.If(chunk < T.int64(end)), T.Then():
            self._each_piece(memory, chunk, lambda held, _, source: call("load_16", held, source))

    def wait(self, memory: Buffer, chunk: Value, fetch: Callable[[], None]) -> None:
        """As `Stage`: writes what was loaded, in place of what nobody has needed since the last wait."""
        self._each_piece(memory, chunk, lambda held, place, _: call("store_16", place, held))
        synchronize()
        fetch()

    def _each_piece(self, memory: Buffer, chunk: Value, do: Callable[[Value, Value, Value], None]) -> None:
        """Does something for each 16 bytes: where they are held, their place, and where they come from."""
        [work], numbers = self.works, iter(range(self._pieces))

        def of_piece(place: Value, source: Buffer, *index: Value) -> None:
            do(T.address_of(work.held[4 * next(numbers)]), T.address_of(memory[place]), T.address_of(source[index]))

        self._each(chunk, work.tile, work.row, work.count, work.thread, of_piece)

    @property
    def _pieces(self) -> int:
        """Of 16 bytes that a thread loads, at most."""
        threads, scales = WARPS * gpu().matrix.lanes, [self.weight.scales, self.weight.mins]
        return -(-self.tiles * self._tile_loads // threads) + -(-self.rows * (COLUMNS // 8) // threads) + sum(s is not None for s in scales)

    @staticmethod
    def _turned(piece: Value, row: Value) -> Value:
        return T.bitwise_xor(piece, row % (COLUMNS // 8))
