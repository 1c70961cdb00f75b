"""Matrix units: which lane of a warp has what of an instruction's matrices. The functions in C that multiply are those of `matrix.cuh` and
of `targets/rocm/matrix.h`.

An instruction multiplies 16 columns of some rows of a weight with the same columns of rows of x. Columns may come in any order, if both
matrices have the same. So a lane that shares a row with three others has 8 neighbours of every 32, which are its part of a slice, for two
instructions, and a lane that has a row by itself has all four parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.emit import Value

PARTS = 4  # of a slice of 32 columns
UNIT = 32  # rows of the weight that a warp works on


@dataclass(frozen=True)
class MatrixUnit:
    """A matrix unit.

    Attributes:
        lanes: of a warp.
        rows: of x that an instruction multiplies. Of the weight a lane has rows that are so many apart.
        numbers: sums that a lane has for one row of the weight and those rows of x.
        lane_step, number_step: rows of x from the sums of a lane to those of the next that has the same row of the weight, and from a
            number to the next.
    """

    lanes: int
    rows: int
    numbers: int
    lane_step: int
    number_step: int

    @property
    def is_square(self) -> bool:
        """True if an instruction multiplies 16 rows with 16 rows, in any order; else 16 rows of the weight with 8 of x."""
        return self.rows == 16

    @property
    def has_whole_rows(self) -> bool:
        """True if a lane has all parts of a row, which two lanes have; else four share it."""
        return self.lanes // self.rows < PARTS

    @property
    def many(self) -> tuple[int, ...]:
        """Rows of x that a block multiplies, where there are more than a few: as many as a lane has registers for their sums."""
        return (64,) if self.has_whole_rows else (64, 128)

    @property
    def tile_rows(self) -> int:
        """Rows of a tile of the weight, of which a lane has two."""
        return 2 * self.rows

    @property
    def tiles(self) -> int:
        """Tiles of a unit, which is what a warp works on."""
        return UNIT // self.tile_rows

    @property
    def sums(self) -> int:
        """Sums of a lane for 16 rows of the weight."""
        return 16 // self.rows * self.numbers

    def place(self, lane: Value) -> Value:
        """A lane's row among those that an instruction multiplies, of either matrix."""
        return lane // PARTS if not self.is_square else lane % self.rows

    def part(self, lane: Value) -> Value:
        """A lane's number among those that have its row."""
        return lane % PARTS if not self.is_square else lane // self.rows

    def parts(self, lane: Value) -> list[Value]:
        """The parts of slices that a lane has."""
        return [T.int64(part) for part in range(PARTS)] if self.has_whole_rows else [self.part(lane)]

    def stored_lane(self, place: Value, part: Value) -> Value:
        """The place of a row's part in a tile."""
        return PARTS * place + part if not self.is_square else self.rows * part + place

    def stored_lanes(self, lane: Value) -> list[Value]:
        """The places of a lane's parts."""
        return [self.stored_lane(self.place(lane), part) for part in self.parts(lane)] if self.has_whole_rows else [lane]

    def sum_row(self, part: Value, first: int, i: int) -> Value:
        """The row of x that number i of a row of the weight is for, of those from `first` on."""
        return part * self.lane_step + T.int64(first + i % self.numbers * self.number_step)

    def sum_place(self, row: Value) -> tuple[Value, Value]:
        """The part, of those that have a row of the second matrix, that has the sum for a row of the first one, and its number."""
        if self.lane_step > self.number_step:
            return row // self.lane_step, row % self.lane_step
        return row % self.number_step, row // self.number_step

    def sum_column(self, i: int) -> int:
        """The row of the weight that number i of a lane's sums for 16 rows is for, less the lane's."""
        return i // self.numbers * self.rows


MMA = MatrixUnit(lanes=32, rows=8, numbers=2, lane_step=2, number_step=1)  # m16n8k16 (PTX ISA 8.5, 9.7.14.5.8)
# AMD's of 16 x 16 x 16 (instruction set architectures CDNA 3, 7.1.4, and RDNA 3, 7.9). x is the first matrix, so that 16 lanes' sums are
# neighbours.
MFMA = MatrixUnit(lanes=64, rows=16, numbers=4, lane_step=4, number_step=1)
WMMA = MatrixUnit(lanes=32, rows=16, numbers=8, lane_step=1, number_step=2)
