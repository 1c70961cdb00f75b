"""Tiles of weights, word by word: where PTX's fragments of mma.m16n8k16 want them (PTX ISA 8.5, 9.7.14.5.8)."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from cupola.targets.gpu.linear.tiles import COLUMNS, ROWS, tile_rows, tile_scales

OUTPUTS, WIDTH = 40, 100  # neither divides into tiles


def padded(matrix: npt.NDArray[np.generic], parts: int) -> list[npt.NDArray[np.generic]]:
    """The tiles' rows, top to bottom, of all chunks: of two parts by turns."""
    rows = len(matrix) // parts
    tiles = -(-rows // ROWS)
    found = np.zeros((parts, tiles + (parts == 1) * tiles % 2, ROWS, -(-matrix.shape[1] // COLUMNS) * COLUMNS), matrix.dtype)
    for part, row, column in np.ndindex(parts, rows, matrix.shape[1]):
        found[part, row // ROWS, row % ROWS, column] = matrix[part * rows + row, column]
    return [found[part, tile] for tile in range(found.shape[1]) for part in range(parts)]


def columns_of(step: int, word: int, lane: int) -> tuple[int, int]:
    """The two columns of a chunk that a word of a lane's fragment holds: of a slice of 32 a lane has eight neighbours, for two steps."""
    first = step // 2 * 32 + lane % 4 * 8 + step % 2 * 4 + word // 2 * 2
    return first, first + 1


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_lane_has_its_fragments_side_by_side(bits: int, parts: int) -> None:
    random = np.random.default_rng(0)
    numbers = {16: random.integers(0, 1 << 16, (OUTPUTS, WIDTH), np.uint16).view(np.float16), 8: None, 4: None}[bits]
    weight = random.integers(0, 1 << bits, (OUTPUTS, WIDTH), np.uint8) if numbers is None else numbers
    words = tile_rows(weight, str(parts), str(bits))
    tiles = padded(weight, parts)
    assert words.shape == (len(tiles), 2, bits // 4, 32, 4) and words.dtype == np.int32
    for tile, chunk, step, lane, word in itertools.product(range(len(tiles)), range(2), range(4), range(32), range(4)):
        row = lane // 4 + word % 2 * 8  # words take turns between rows r and r + 8
        expected = [int(tiles[tile][row, chunk * COLUMNS + column].view(f"u{weight.itemsize}")) for column in columns_of(step, word, lane)]
        mine = words[tile, chunk, :, lane].view(np.uint32)
        if bits == 16:
            held = int(mine[step, word])
            found = [held & 0xFFFF, held >> 16]
        elif bits == 8:
            held = int(mine[step // 2, 2 * (step % 2) + word % 2]) >> 16 * (word // 2)
            found = [held & 0xFF, held >> 8 & 0xFF]
        else:
            held = int(mine[0, 2 * (step // 2) + word % 2]) >> 4 * (2 * (step % 2) + word // 2)
            found = [held & 0xF, held >> 16 & 0xF]
        assert found == expected


@pytest.mark.parametrize(("group_size", "groups"), [(32, 4), (64, 2), (96, 2)])
def test_scales_stand_in_pairs_of_rows(group_size: int, groups: int) -> None:
    scales = np.arange(OUTPUTS * -(-WIDTH // group_size)).reshape(OUTPUTS, -1).astype(np.float16)
    words = tile_scales(scales, "1", str(group_size)).view(np.uint32)
    assert words.shape == (4, groups, 8)
    for row, group in np.ndindex(scales.shape):
        word = int(words[row // ROWS, group, row % 8])
        assert word >> 16 * (row % ROWS // 8) & 0xFFFF == int(scales[row, group].view(np.uint16))
