"""Weight formats by name, and what is no format."""

from __future__ import annotations

import pytest

from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.format import WeightFormat

FORMATS = {
    "w4g32": WeightFormat(4, 32),
    "w4g128m": WeightFormat(4, 128, zero_point="mins"),
    "w8g64": WeightFormat(8, 64),
    "w8g64m": WeightFormat(8, 64, zero_point="mins"),
    "w3g16-f32": WeightFormat(3, 16, "float32"),
    "w4g128z": WeightFormat(4, 128, zero_point="codes"),
    "w8g32z-bf16": WeightFormat(8, 32, "bfloat16", "codes"),
    "w8g128-e4m3-f32": WeightFormat(8, 128, "float32", table="e4m3"),
    "w4g32-e2m1-bf16": WeightFormat(4, 32, "bfloat16", table="e2m1"),
    "w4g64-nf4": WeightFormat(4, 64, table="nf4"),
    "w4g32m-s6x256": WeightFormat(4, 32, zero_point="mins", super_size=256, scale_bits=6),
    "w3g16-iq2-s6x256-f32": WeightFormat(3, 16, "float32", table="iq2", super_size=256, scale_bits=6),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_says_all(name: str) -> None:
    assert WeightFormat.parse(name) == FORMATS[name] and FORMATS[name].name == name


def test_what_codes_stand_for() -> None:
    assert [(form.code_dtype, form.zero) for form in FORMATS.values()] == [
        ("uint8", 8), ("uint8", 0), ("int8", 0), ("uint8", 0), ("uint8", 4), ("uint8", 0), ("int8", 0), ("uint8", 0), ("uint8", 0),
        ("uint8", 0), ("uint8", 0), ("uint8", 0),
    ]  # fmt: skip
    assert [form.bits_per_value for form in FORMATS.values()] == [
        4.5, 4.25, 8.25, 8.5, 5.0, 4.1875, 8.75, 8.25, 4.5, 4.25, 4.5, 3.5,
    ]  # fmt: skip
    zeros = [{name: dtype for name, _, dtype in form.factors}["mins"] for form in FORMATS.values() if form.has_zeros]
    assert zeros == ["uint8", "int8"]
    assert FORMATS["w4g128m"].num_groups(576) == 5


def test_super_blocks_are_whole_and_have_scale_codes() -> None:
    form = FORMATS["w4g32m-s6x256"]
    assert (form.block_size, form.padded(576), form.num_groups(576)) == (256, 768, 24)
    assert form.factors == (
        ("scales", 32, "uint8"), ("mins", 32, "uint8"), ("super_scales", 256, "float16"), ("super_mins", 256, "float16"),
    )  # fmt: skip
    assert WeightFormat.parse("w6g16-s8x256").factors == (("scales", 16, "int8"), ("super_scales", 256, "float16"))


@pytest.mark.parametrize("name", ["w4g32-s6x100", "w4g32-s5x256", "w4g32-s6x0", "w4g32-s0x256", "w4g32-s6x", "w4g32-f16-s6x256"])
def test_super_blocks_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="weight format"):
        WeightFormat.parse(name)


@pytest.mark.parametrize("name", ["w8g32-nf4", "w4g32-e4m3", "w4g32m-nf4", "w4g32-nf5"])
def test_a_table_has_its_bits_and_no_mins(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"table '{name.partition('-')[2]}'"):
        WeightFormat.parse(name)


@pytest.mark.parametrize("name", ["", "w4", "g32", "w4g32x", "w4g32-f64", "w1g32", "w9g32", "w4g0", "w4g32-f32-nf4", "W4G32"])
def test_what_is_no_format_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="weight format"):
        WeightFormat.parse(name)


@pytest.mark.parametrize(("field", "value"), [("scale_dtype", "float64"), ("zero_point", "some")])
def test_a_field_must_have_one_of_its_values(field: str, value: str) -> None:
    with pytest.raises(UnsupportedError, match=value):
        WeightFormat(4, 32, **{field: value})
