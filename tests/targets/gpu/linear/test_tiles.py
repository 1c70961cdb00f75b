"""Tiles of weights, word by word: where PTX's fragments of mma.m16n8k16 want them (PTX ISA 8.5, 9.7.14.5.8), and where 16 lanes in turns
have a row, as in matrix units that multiply 16 rows with 16."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from cupola.targets.gpu.linear.tiles import COLUMNS, tile_rows, tile_scales

OUTPUTS, WIDTH = 40, 100  # neither divides into tiles


def padded(matrix: npt.NDArray[np.generic], parts: int, half: int) -> list[npt.NDArray[np.generic]]:
    """The tiles' rows, top to bottom, of all chunks: 32 rows are a unit, of two parts 16 of each."""
    rows, of_part = len(matrix) // parts, 32 // parts
    found = np.zeros((-(-len(matrix) // 32), 32, -(-matrix.shape[1] // COLUMNS) * COLUMNS), matrix.dtype)
    for part, row in np.ndindex(parts, rows):
        found[row // of_part, part * of_part + row % of_part, : matrix.shape[1]] = matrix[part * rows + row]
    return [unit[first : first + 2 * half] for unit in found for first in range(0, 32, 2 * half)]


def place_of(lane: int, half: int) -> tuple[int, int]:
    """A lane's row and its part of slices."""
    return (lane // 4, lane % 4) if half == 8 else (lane % 16, lane // 16)


@pytest.mark.parametrize("half", [8, 16])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_lane_has_its_fragments_side_by_side(bits: int, parts: int, half: int) -> None:
    """Of a slice of 32 a lane has eight neighbours, for two steps; words take turns between its rows, but for 16 bits of 16 lanes."""
    random = np.random.default_rng(0)
    numbers = {16: random.integers(0, 1 << 16, (OUTPUTS, WIDTH), np.uint16).view(np.float16), 8: None, 4: None}[bits]
    weight = random.integers(0, 1 << bits, (OUTPUTS, WIDTH), np.uint8) if numbers is None else numbers
    words = tile_rows(weight, str(parts), str(bits), str(half))
    tiles = padded(weight, parts, half)
    assert words.shape == (len(tiles), 2, bits // 4, 4 * half, 4) and words.dtype == np.int32
    axes = range(len(tiles)), range(2), range(2), range(2), range(4 * half), range(2), range(2)
    for tile, chunk, piece, step, lane, of_row, pair in itertools.product(*axes):
        row, part = place_of(lane, half)
        first = chunk * COLUMNS + piece * 32 + part * 8 + step * 4 + pair * 2
        expected = [int(number.view(f"u{weight.itemsize}")) for number in tiles[tile][row + half * of_row, first : first + 2]]
        mine = words[tile, chunk, :, lane].view(np.uint32)
        if bits == 16:
            held = int(mine[2 * piece + step, 2 * pair + of_row] if half == 8 else mine[2 * piece + of_row, 2 * step + pair])
            found = [held & 0xFFFF, held >> 16]
        elif bits == 8:
            held = int(mine[piece, 2 * step + of_row]) >> 16 * pair
            found = [held & 0xFF, held >> 8 & 0xFF]
        else:
            held = int(mine[0, 2 * piece + of_row]) >> 4 * (2 * step + pair)
            found = [held & 0xF, held >> 16 & 0xF]
        assert found == expected


@pytest.mark.parametrize("half", [8, 16])
@pytest.mark.parametrize(("group_size", "groups"), [(32, 4), (64, 2), (96, 2)])
def test_scales_stand_in_pairs_of_rows(group_size: int, groups: int, half: int) -> None:
    scales = np.arange(OUTPUTS * -(-WIDTH // group_size)).reshape(OUTPUTS, -1).astype(np.float16)
    words = tile_scales(scales, "1", str(group_size), str(half)).view(np.uint32)
    assert words.shape == (64 // (2 * half), groups, half)
    for row, group in np.ndindex(scales.shape):
        word = int(words[row // (2 * half), group, row % half])
        assert word >> 16 * (row % (2 * half) // half) & 0xFFFF == int(scales[row, group].view(np.uint16))
