"""Weights in the order in which matrix units take them: tiles of 64 columns, of which every lane has its part side by side.

A lane has two rows of a tile, by words of 4 bytes that `numbers.cuh` describes; four of them are one load. A unit is what a warp works on:
two neighbouring tiles of 16 rows, or one of the gate and one of what it gates, or one tile of 32 rows, whose halves are that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument
from cupola.targets.formats.format import WeightFormat
from cupola.targets.generic.weights import Stored, StoredKernel, table_entry
from cupola.targets.gpu.emit import call, gpu, keep, registers
from cupola.targets.gpu.units import PARTS, UNIT
from cupola.targets.weight_functions import call_weight_function, weight_function

COLUMNS = 64  # of a tile
STEP = 16  # columns that an instruction multiplies
SLICE = 32  # columns that share a scale: of every group there are whole ones
_BITS = {"float16": 16, "bfloat16": 16}


def is_tileable(stored: StoredKernel) -> bool:
    """True if there are tiles for such a weight: 16 bits, or codes of 4 or 8 bits in groups of whole slices, scaled in float16."""
    form = stored.weight_format
    if form is None:
        return stored.dtype in _BITS
    is_known = form.bits in (4, 8) and form.scale_dtype == "float16" and not form.super_size and not form.has_zeros
    return is_known and form.group_size % SLICE == 0


@weight_function
def tile_rows(weight: npt.NDArray[np.generic], parts: str, bits: str, rows: str) -> npt.NDArray[np.int32]:
    """Numbers or codes [N, K] as words i32 [tiles, ⌈K / 64⌉, bits / 4, lanes, 4], a lane for each of a matrix unit's `rows` and parts of
    slices; of two `parts`, as gate and up, those are taken by turns."""
    tiles = _tiles(weight, int(parts), COLUMNS, int(rows))  # [tiles, row half, row, columns]
    t, per_row = len(tiles), tiles.shape[-1] // COLUMNS
    # columns: chunk, slice, lane of four, instruction, half of its columns, pair, number
    split = tiles.reshape(t, 2, int(rows), per_row, 2, 4, 2, 2, 2)
    lanes, g, p = 4 * int(rows), *((2, 5) if int(rows) == 8 else (5, 2))  # as MatrixUnit.stored_lane
    if bits == "16":
        ordered = split.transpose(0, 3, 4, 6, g, p, 7, 1, 8) if int(rows) == 8 else split.transpose(0, 3, 4, 1, g, p, 6, 7, 8)
        return np.ascontiguousarray(ordered).view(np.int32).reshape(t, per_row, 4, lanes, 4)
    if bits == "8":
        ordered = split.view(np.uint8).transpose(0, 3, 4, g, p, 6, 1, 7, 8)
        return np.ascontiguousarray(ordered).reshape(-1).view(np.int32).reshape(t, per_row, 2, lanes, 4)
    ordered = split.view(np.uint8).transpose(0, 3, g, p, 4, 1, 6, 7, 8).reshape(t, per_row, 1, lanes, 4, 4, 2)
    shifts = 4 * np.arange(4, dtype=np.uint32)
    words = (ordered[..., 0].astype(np.uint32) << shifts | ordered[..., 1].astype(np.uint32) << shifts + 16).sum(-1, dtype=np.uint32)
    return words.view(np.int32)


@weight_function
def tile_scales(scales: npt.NDArray[np.float16], parts: str, group_size: str, rows: str) -> npt.NDArray[np.int32]:
    """Scales or mins [N, G] as words i32 [tiles, groups of whole tiles, rows]: those of a lane's two rows of a tile."""
    groups = _group_count(scales.shape[1] * int(group_size), int(group_size))
    tiles = _tiles(scales, int(parts), groups, int(rows))
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1)).view(np.int32)[..., 0]


def _tiles(matrix: npt.NDArray[np.generic], parts: int, columns: int, half: int) -> npt.NDArray[np.generic]:
    """[N, K] as [tiles, 2, half, K], padded with zeros: rows to whole units; K to a multiple of `columns`."""
    rows, width, units = len(matrix) // parts, matrix.shape[1], _unit_count(len(matrix), parts)
    padded = np.zeros((parts, units * UNIT // parts, -(-width // columns) * columns), matrix.dtype)
    padded[:, :rows, :width] = matrix.reshape(parts, rows, width)
    by_turns = padded.reshape(parts, units, UNIT // parts, -1).swapaxes(0, 1)
    return by_turns.reshape(-1, 2, half, padded.shape[-1])


def _unit_count(rows: int, parts: int) -> int:
    """Units of so many rows, which are `parts` matrices."""
    return -(-rows // UNIT)


@dataclass(frozen=True)
class Tiles:
    """A weight within a kernel.

    Attributes:
        words: of the tiles, as of `tile_rows`.
        scales, mins: of codes, as of `tile_scales`.
    """

    stored: StoredKernel
    parts: int
    words: Buffer
    scales: Buffer | None
    mins: Buffer | None

    @staticmethod
    def tensors_of(stored: Stored, builder: relax.BlockBuilder, parts: int = 1) -> tuple[relax.Expr, ...]:
        """The tensors of a stored matrix as kernels take them; `parts` is 2 for a gate above what it gates."""
        shapes = _shapes(stored.kernel, parts)
        form, rows = stored.kernel.weight_format, str(gpu().matrix.rows)
        texts = [[str(parts), str(_bits(stored.kernel)), rows], *([[str(parts), str(form.group_size), rows]] * 2 if form else ())]
        return tuple(
            builder.emit(call_weight_function((tile_rows, tile_scales)[i > 0], [tensor, *texts[i]], relax.TensorType(list(shape), "int32")))
            for i, (tensor, shape) in enumerate(zip(stored.tensors, shapes, strict=True))
        )

    @staticmethod
    def arguments(stored: StoredKernel, parts: int = 1) -> Tiles:
        """The arguments of a kernel: `weight`, and for codes `scales` and perhaps `mins`."""
        found = [
            argument(label, shape, "int32") for label, shape in zip(("weight", "scales", "mins"), _shapes(stored, parts), strict=False)
        ]
        return Tiles(stored, parts, *found, *[None] * (3 - len(found)))

    @property
    def format(self) -> WeightFormat | None:
        """The format of codes; None of floats."""
        return self.stored.weight_format

    @property
    def bits(self) -> int:
        """Of a number or code."""
        return _bits(self.stored)

    @property
    def dtype(self) -> str:
        """The type that matrix units multiply: bfloat16 of such weights, else float16."""
        return "bfloat16" if self.stored.dtype == "bfloat16" else "float16"

    @property
    def loads(self) -> int:
        """Loads of 16 bytes a lane that bring a tile."""
        return self.bits // 4

    @property
    def units(self) -> int:
        """Units of 32 rows."""
        return int(self.words.shape[0]) // gpu().matrix.tiles

    @property
    def group_size(self) -> int:
        """Of codes: columns that share a scale."""
        assert self.format is not None
        return self.format.group_size

    def group(self, chunk: Value, piece: int) -> Value:
        """The group of a slice of a chunk: 0 or 1."""
        return (2 * chunk + T.int64(piece)) // T.int64(self.group_size // SLICE)

    def fragments(self, raw: Buffer, piece: int, scales: Value | None, mins: Value | None) -> tuple[Buffer, int]:
        """The fragments of a slice, eight words for every part of the lane's, and where they begin: of the two steps, or of both rows where
        instructions are square. `raw` is as of `Part.read`."""
        if self.format is None:
            return raw, 8 * piece
        parts, per_part, table = int(raw.shape[0]) // (4 * self.loads), 4 * self.loads, self.format.table
        words = registers(8 * parts, "int32")
        for part in range(parts):
            of_steps = registers(8, "int32") if gpu().matrix.is_square else words
            for half in (0, 1):
                given = (scales,) if table else (scales, mins if mins is not None else T.int32(0))
                function = f"numbers_of_{self.bits}_bits<{half}, {str(self.format.has_mins).lower()}>"
                function = f"numbers_of_{table}<{half}>" if table else function
                for i in range(self.bits // 4):
                    word = raw[per_part * part + (2 * piece + half if self.bits == 4 else 4 * piece + 2 * i + half)]
                    call(function, T.address_of(of_steps[4 * i + half]), word, *given)
                for i in range(4 if gpu().matrix.is_square else 0):
                    T.buffer_store(words, of_steps[2 * i + half], [8 * part + 4 * half + i])
        return words, 0

    def element(self, row: Value, column: Value) -> Value:
        """One element as float32, of a weight of one part."""
        unit = gpu().matrix
        tile, half, g = row // unit.tile_rows, row % unit.tile_rows // unit.rows, row % unit.rows
        chunk, piece, t, step, pair = column // 64, column // 32 % 2, column // 8 % 4, column // 4 % 2, column // 2 % 2
        lane, form = unit.stored_lane(g, t), self.format
        if self.bits == 16:
            of_load, of_word = (half, 2 * step + pair) if unit.is_square else (step, 2 * pair + half)
            word, shift = self.words[tile, chunk, 2 * piece + of_load, lane, of_word], column % 2 * 16
            bits = T.cast((word >> T.cast(shift, "int32")) & T.int32(0xFFFF), "uint16")
            return T.cast(T.reinterpret(self.stored.dtype, bits), "float32")
        if self.bits == 8:
            word, shift = self.words[tile, chunk, piece, lane, 2 * step + half], 8 * (2 * pair + column % 2)
        else:
            word, shift = self.words[tile, chunk, 0, lane, 2 * piece + half], 4 * (2 * step + pair) + 16 * (column % 2)
        assert form is not None and self.scales is not None
        code = (word >> T.cast(shift, "int32")) & T.int32((1 << self.bits) - 1)
        if form.table:
            number = table_entry(form.table, keep(code))
        else:
            code = code - (code >> T.int32(7) << T.int32(8)) if form.code_dtype == "int8" else code - T.int32(form.zero)
            number = T.cast(code, "float32")

        def of_group(words: Buffer) -> Value:
            word = words[tile, column // form.group_size, g]
            return T.cast(T.reinterpret("float16", T.cast((word >> T.cast(16 * half, "int32")) & T.int32(0xFFFF), "uint16")), "float32")

        product = of_group(self.scales) * number
        return product + of_group(self.mins) if self.mins is not None else product


def _bits(stored: StoredKernel) -> int:
    form = stored.weight_format
    return _BITS[stored.dtype] if form is None else form.bits


def _shapes(stored: StoredKernel, parts: int) -> list[tuple[int, ...]]:
    (rows, columns), form, unit = stored.shape, stored.weight_format, gpu().matrix
    tiles = _unit_count(rows, parts) * unit.tiles
    words = (tiles, -(-columns // COLUMNS), _bits(stored) // 4, PARTS * unit.rows, 4)
    return [words] if form is None else [words, *[(tiles, _group_count(columns, form.group_size), unit.rows)] * (1 + form.has_mins)]


def _group_count(columns: int, group_size: int) -> int:
    """Groups of all the slices of rows of so many columns, which are padded to whole tiles."""
    slices = -(-columns // COLUMNS) * (COLUMNS // SLICE)
    return -(-slices // (group_size // SLICE))
