"""Quantized tensors: the same values in other formats."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.formats.tensor import QuantizedTensor

W4, W4_MINS, W8 = WeightFormat(4, 32), WeightFormat(4, 32, zero_point="mins"), WeightFormat(8, 32)


def w4(*scales: float) -> QuantizedTensor:
    codes = np.random.default_rng(1).integers(0, 16, (len(scales), 32)).astype("uint8")
    return QuantizedTensor(W4, codes, np.array(scales, "float16")[:, None])


def test_values_are_those_of_the_format() -> None:
    tensor = w4(0.01, -3.3)
    np.testing.assert_array_equal(tensor.values(), tensor.scales.astype("float32") * (tensor.codes.astype("float32") - 8))
    np.testing.assert_array_equal(tensor.in_order(np.array([1, 0])).values(), tensor.values()[::-1])
    assert tensor.in_order(None) is tensor


def test_mins_take_the_place_of_a_zero_exactly() -> None:
    tensor = w4(0.01, -3.3, 6e-8, 0, -8188)
    again = tensor.in_format(W4_MINS)
    assert again is not None and again.format == W4_MINS and again.mins is not None
    np.testing.assert_array_equal(again.values(), tensor.values())
    assert w4(0.01, 9000).in_format(W4_MINS) is None  # float16 ends at 65504
    assert again.in_format(W4_MINS) is again


@pytest.mark.parametrize(("bits", "dtype"), [(4, "uint8"), (8, "int8")])
def test_zeros_are_taken_off_codes(bits: int, dtype: str) -> None:
    random, form = np.random.default_rng(2), WeightFormat(bits, 32, "bfloat16", "codes")
    codes, zeros = (random.integers(0, 16, shape).astype(dtype) for shape in ((3, 64), (3, 2)))
    scales = random.normal(size=(3, 2)).astype(ml_dtypes.bfloat16)
    expected = np.repeat(scales.astype("float32"), 32, 1) * (codes.astype("float32") - np.repeat(zeros.astype("float32"), 32, 1))
    np.testing.assert_array_equal(QuantizedTensor(form, codes, scales, zeros).values(), expected)


def test_a_zero_for_all_becomes_one_of_each_group() -> None:
    tensor = w4(0.01, -3.3)
    again = tensor.in_format(WeightFormat(4, 32, zero_point="codes"))
    assert again is not None
    np.testing.assert_array_equal(again.values(), tensor.values())
    signed = tensor.in_format(W8)
    again = signed.in_format(WeightFormat(8, 32, zero_point="codes")) if signed is not None else None
    assert again is not None
    np.testing.assert_array_equal(again.values(), tensor.values())
    assert again.in_format(W8) is None


def test_codes_of_4_bits_fit_8() -> None:
    tensor = w4(0.01, -3.3)
    signed = tensor.in_format(W8)
    assert signed is not None and signed.codes.dtype == np.int8
    np.testing.assert_array_equal(signed.values(), tensor.values())
    assert signed.in_format(W8) is signed


@pytest.mark.parametrize("name", ["w4g64", "w4g64m", "w8g64", "w3g32", "w4g32-f32"])
def test_other_groups_fewer_bits_and_other_scales_do_not_fit(name: str) -> None:
    assert w4(0.01).in_format(WeightFormat.parse(name)) is None


def test_what_has_mins_or_a_sign_fits_nothing_else() -> None:
    assert not any(one.fits(other) for one in (W4_MINS, W8) for other in (W4, W4_MINS, W8) if one != other)


def test_codes_may_stand_for_entries_of_a_table() -> None:
    tensor = QuantizedTensor(WeightFormat(4, 4, table="e2m1"), np.array([[0, 1, 5, 15]], "uint8"), np.array([[2]], "float16"))
    assert tensor.values().tolist() == [[0, 1, 6, -12]]


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_codes_that_stand_for_nan_are_refused(code: int) -> None:
    with pytest.raises(UnsupportedError, match="e4m3 has NaN"):
        QuantizedTensor(WeightFormat(8, 2, table="e4m3"), np.array([[0x7E, code]], "uint8"), np.array([[1]], "float16"))


def in_super_blocks(name: str, num_rows: int = 3) -> QuantizedTensor:
    form, random = WeightFormat.parse(name), np.random.default_rng(0)
    codes = random.integers(0, 1 << form.bits, (num_rows, 512)).astype("uint8")
    low, high = (0, 1 << form.scale_bits) if form.has_mins else (-(1 << form.scale_bits - 1), 1 << form.scale_bits - 1)
    factors = [
        random.normal(size=(num_rows, 512 // size)).astype(dtype) if "float" in dtype
        else random.integers(low, high, (num_rows, 512 // size)).astype(dtype)
        for _, size, dtype in form.factors
    ]  # fmt: skip
    return QuantizedTensor.of(form, codes, *factors)


@pytest.mark.parametrize("name", ["w4g32m-s6x256", "w2g16m-s4x256", "w6g16-s8x256", "w4g32-iq4nl-s6x256"])
def test_scales_of_super_blocks_are_products(name: str) -> None:
    tensor = in_super_blocks(name)
    assert tensor.super_scales is not None
    codes = np.array(TABLES["iq4nl"])[tensor.codes] if tensor.format.table else tensor.codes.astype("float64") - tensor.format.zero
    scales, mins = (
        0.0 if codes is None else np.repeat(codes.astype("float64"), tensor.format.group_size, axis=1) * np.repeat(each, 256, axis=1)
        for codes, each in ((tensor.scales, tensor.super_scales), (tensor.mins, tensor.super_mins))
    )
    np.testing.assert_array_equal(tensor.values(), (scales * codes + mins).astype("float32"))
    np.testing.assert_array_equal(tensor.in_order(np.array([2, 0])).values(), tensor.values()[[2, 0]])
    flat = tensor.flat()
    assert flat.format == WeightFormat.parse(name.partition("-s")[0])
    off = abs(flat.values() - tensor.values())
    assert (off <= 2.0**-11 * (abs(scales * codes) + abs(mins)) + 1e-6).all()


def test_super_blocks_fit_nothing_else() -> None:
    tensor = in_super_blocks("w6g16-s8x256")
    assert tensor.in_format(tensor.format) is tensor
    assert not any(tensor.format.fits(WeightFormat.parse(name)) for name in ("w6g16", "w8g16", "w6g16m", "w8g16-s8x256"))


def test_parts_must_be_of_the_format() -> None:
    with pytest.raises(AssertionError):
        QuantizedTensor(W8, np.zeros((1, 32), "uint8"), np.zeros((1, 1), "float16"))
    with pytest.raises(AssertionError):
        QuantizedTensor(W4, np.zeros((1, 64), "uint8"), np.zeros((1, 1), "float16"))
    with pytest.raises(AssertionError):
        QuantizedTensor(W4_MINS, np.zeros((1, 32), "uint8"), np.zeros((1, 1), "float16"))
