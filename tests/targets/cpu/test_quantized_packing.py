"""Packed weights: their size, which decoding reads, and where their bits lie."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.targets.cpu.emit.simd import CACHE_LINE
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import SLICE, Codes, pack_codes
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.ggml import GGML_FORMATS
from cupola.targets.formats.tables import TABLES

FORMATS = sorted({form.name for form in GGML_FORMATS.values()} | {"w4g64m", "w8g128"})


def tensors(form: WeightFormat, num_rows: int, width: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    low, high = (-128, 128) if form.code_dtype == "int8" else (0, 1 << form.bits)
    codes = random.integers(low, high, (num_rows, width), form.code_dtype)
    of_codes = (0, 1 << form.scale_bits) if form.has_mins else (-(1 << form.scale_bits >> 1), 1 << form.scale_bits >> 1)
    shapes = [((num_rows, width // size), dtype) for _, size, dtype in form.factors]
    return [codes] + [
        random.integers(*of_codes, shape, dtype) if dtype.endswith("int8") else random.normal(size=shape).astype(dtype)
        for shape, dtype in shapes
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_panels_take_up_what_the_format_does(name: str) -> None:
    """Codes of scales of 6 bits take up a byte: at most a twenty-fifth more."""
    form = WeightFormat.parse(name)
    packed = pack_codes(name, *tensors(form, 2 * PANEL, 512))
    assert packed.shape == (2, 512 // form.block_size, Codes(form).group_bytes)
    assert form.bits_per_value <= 8 * packed.size / (2 * PANEL * 512) <= 1.04 * form.bits_per_value
    assert Codes(form).group_bytes % CACHE_LINE == Codes(form).slice_bytes % CACHE_LINE == 0


@pytest.mark.parametrize("name", FORMATS)
def test_every_bit_of_a_code_has_its_place(name: str) -> None:
    """Taken out again, bit by bit, as the module's text says they lie."""
    form = WeightFormat.parse(name)
    codes = tensors(form, PANEL, 512)[0]
    [panel] = pack_codes(name, *tensors(form, PANEL, 512))
    found, start = np.zeros((PANEL, 512), np.uint8), 0
    low = 0
    whole = panel[:, : Codes(form).slices * Codes(form).slice_step].reshape(512 // SLICE, -1)
    slices = whole[:, : Codes(form).slice_bytes]
    for bits in Codes(form).planes:
        plane = slices[:, start : start + SLICE * PANEL * bits // 8].reshape(-1, bits, 2, 16, 4)  # [slice, block, half, column, byte]
        for at in range(8 // bits):
            quads = (plane >> bits * at & (1 << bits) - 1).astype(np.uint8) << low
            for block in range(bits):
                inputs = SLICE * np.arange(512 // SLICE)[:, None] + 4 * (block * 8 // bits + at) + np.arange(4)
                found[:, inputs] |= quads[:, block].reshape(-1, PANEL, 4).transpose(1, 0, 2)
        start, low = start + SLICE * PANEL * bits // 8, low + bits
    np.testing.assert_array_equal(found, codes.view(np.uint8))


def test_tables_are_those_whose_entries_are_integers() -> None:
    from cupola.targets.cpu.linear.quantized_packing import integers_of

    for table in {form.table for form in GGML_FORMATS.values()} - {""}:
        found = integers_of(table)
        assert found is not None and tuple(entry * found[1] for entry in found[0]) == TABLES[table]
    assert integers_of("nf4") is None and integers_of("e4m3") is None
