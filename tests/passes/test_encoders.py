"""Encoders, against float64, and against the gguf package's own quantization."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tvm import relax

from cupola.passes import encoders
from cupola.passes.schemes import Storage
from cupola.passes.schemes.integers import storage as storage_in
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

W4, W4_MINS, W8 = (storage_in(WeightFormat.parse(name)) for name in ("w4g32", "w4g32m", "w8g32"))
W4_EMBEDDING = storage_in(WeightFormat.parse("w4g32"), weighted=True)
QUANTIZED = (W4, W4_EMBEDDING, W4_MINS, W8)
by_storage = pytest.mark.parametrize("storage", QUANTIZED, ids=["w4", "w4 weighted", "w4 with mins", "w8"])


def normal(*shape: int, scale: float = 0.05) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype("float32")


def encode(storage: Storage, weight: np.ndarray) -> QuantizedTensor:
    assert storage.format is not None
    encoder = encoders.encode_weighted if storage.weighted else encoders.encode
    return QuantizedTensor(storage.format, *encoder(storage.format.name, weight))


def decoded(blocks: QuantizedTensor) -> np.ndarray:
    """In float64, by the words of `WeightFormat`."""
    scales, mins = (np.repeat(t.astype("float64"), 32, axis=1) if t is not None else None for t in (blocks.scales, blocks.mins))
    if blocks.codes.dtype == np.int8:
        return scales * blocks.codes
    return scales * (blocks.codes.astype("float64") - 8) if mins is None else scales * blocks.codes + mins


def squared_error(values: np.ndarray, weight: np.ndarray) -> float:
    return float(((values - weight.astype("float64")) ** 2).sum())


def in_groups_of_32(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, 32)


@by_storage
def test_the_call_says_how_a_weight_is_stored(storage: Storage) -> None:
    weight = relax.Var("w", relax.TensorType([5, 50], "float32"))
    call = relax.BlockBuilder().normalize(encoders.encode_call(storage, weight))
    assert [(list(map(int, ty.shape)), ty.dtype) for ty in call.ty.fields] == [
        ([5, 64], storage.dtype), *[([5, 2], "float16")] * (2 if storage is W4_MINS else 1)
    ]  # fmt: skip
    assert encoders.encoded_weight(call) == (storage, weight) and encoders.encoded_weight(weight) is None


@by_storage
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (700, 224)])
def test_the_tensors_are_as_the_operation_has_them(storage: Storage, shape: tuple[int, int]) -> None:
    blocks = encode(storage, normal(*shape))
    assert blocks.codes.shape == shape and blocks.codes.dtype == storage.dtype
    assert all(t.shape == (shape[0], shape[1] // 32) and t.dtype == np.float16 for t in blocks.tensors[1:])
    assert storage is W8 or blocks.codes.max() <= 15
    np.testing.assert_array_equal(blocks.values(), decoded(blocks).astype("float32"))


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 0.05, 1e4])
def test_8_bits_are_off_by_half_a_step_at_most(scale: float) -> None:
    weight = normal(64, 320, scale=scale)
    blocks = encode(W8, weight)
    assert (abs(decoded(blocks) - weight) <= 0.5001 * np.repeat(blocks.scales.astype("float64"), 32, axis=1)).all()
    assert np.abs(blocks.codes).max() == 127 or scale < 1e-5


def test_8_bits_lose_no_more_than_ggml() -> None:
    weight = normal(256, 256)
    theirs = gguf.dequantize(gguf.quantize(weight, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    assert squared_error(decoded(encode(W8, weight)), weight) <= squared_error(theirs, weight)


def test_4_bits_lose_a_tenth_less_than_ggmls_rounding() -> None:
    """gguf-py's Q4_0 takes the scale from the largest value; a search, such as llama.cpp has too, finds better ones."""
    weight = normal(256, 256)
    theirs = gguf.dequantize(gguf.quantize(weight, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    assert squared_error(decoded(encode(W4, weight)), weight) < 0.9 * squared_error(theirs, weight)


@pytest.mark.parametrize("storage", [W4, W4_EMBEDDING], ids=["w4", "w4 weighted"])
def test_4_bits_come_close_to_an_exhaustive_search(storage: Storage) -> None:
    weight = normal(8, 256)
    groups = in_groups_of_32(weight).astype("float64")
    largest = np.take_along_axis(groups, abs(groups).argmax(1)[:, None], 1)[:, 0]
    best, importance = np.full(len(groups), np.inf), groups**2 + (groups**2).mean(1, keepdims=True)
    importance = importance if storage is W4_EMBEDDING else np.ones_like(groups)
    for divisor in [*np.linspace(-12, -4, 400), *np.linspace(4, 12, 400)]:
        scales = (largest / divisor)[:, None]
        values = scales * np.clip(np.rint(groups / scales), -8, 7)
        best = np.minimum(best, (importance * (values - groups) ** 2).sum(1))
    ours = in_groups_of_32(decoded(encode(storage, weight)))
    assert (importance * (ours - groups) ** 2).sum() < 1.01 * best.sum()


def test_4_bits_with_mins_lose_an_eighth_less_than_ggmls_rounding() -> None:
    """gguf-py's Q4_1 reaches from a group's lowest value to its highest; so do ours only where that is best."""
    weight = normal(64, 320)
    theirs = gguf.dequantize(gguf.quantize(weight, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    ours = decoded(encode(W4_MINS, weight))
    assert squared_error(ours, weight) < 0.875 * squared_error(theirs, weight)
    errors = [((in_groups_of_32(values) - in_groups_of_32(weight)).astype("float64") ** 2).sum(1) for values in (ours, theirs)]
    assert (errors[0] <= 1.01 * errors[1] + 1e-9).all()


def test_4_bits_with_mins_keep_what_lies_on_a_grid() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (16, 320))
    codes.reshape(-1, 32)[:, :2] = 0, 15
    grid = (codes * 0.125 - 0.5).astype("float32")
    np.testing.assert_array_equal(decoded(encode(W4_MINS, grid)), grid)


@by_storage
def test_a_row_that_fills_no_group_is_padded_with_zeros(storage: Storage) -> None:
    weight = normal(5, 50)
    blocks, whole = encode(storage, weight), encode(storage, np.pad(weight, ((0, 0), (0, 14))))
    assert blocks.codes.shape == (5, 64) and blocks.scales.shape == (5, 2)
    for one, other in zip(blocks.tensors, whole.tensors, strict=True):
        np.testing.assert_array_equal(one, other)


@by_storage
def test_rows_are_encoded_alone(storage: Storage) -> None:
    """So the parts of a joined weight may be encoded one by one. The weight is long enough for several chunks."""
    weight = normal(300, 1024)
    blocks, parts = encode(storage, weight), [encode(storage, part) for part in (weight[:1], weight[1:77], weight[77:])]
    for index, whole in enumerate(blocks.tensors):
        np.testing.assert_array_equal(whole, np.concatenate([part.tensors[index] for part in parts]))


@by_storage
def test_encoding_takes_less_memory_than_the_weight(storage: Storage) -> None:
    weight = normal(2048, 1024)
    tracemalloc.start()
    encode(storage, weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weight.nbytes


@by_storage
def test_zeros_stay_zero(storage: Storage) -> None:
    np.testing.assert_array_equal(decoded(encode(storage, np.zeros((2, 64), "float32"))), 0)


@by_storage
def test_what_float16_cannot_hold_stays_finite(storage: Storage) -> None:
    assert np.isfinite(decoded(encode(storage, np.full((1, 32), 1e9, "float32")))).all()
    assert abs(decoded(encode(storage, np.full((1, 32), 1e-9, "float32")))).max() < 1e-6


@pytest.mark.parametrize("num_groups", [1, 15, 16, 17, 50])
def test_codes_of_4_bits_do_not_depend_on_neighbours(num_groups: int) -> None:
    weight = normal(50, 32)
    codes, scales = encoders.encode("w4g32", weight)
    some = encoders.encode("w4g32", weight[:num_groups])
    np.testing.assert_array_equal(some[0], codes[:num_groups])
    np.testing.assert_array_equal(some[1], scales[:num_groups])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_with_what_is_no_number_shows_it_and_spoils_no_other(bad: float) -> None:
    weight = normal(20, 32)
    clean = encoders.encode("w4g32", weight)
    weight[3, 5] = bad
    codes, scales = encoders.encode("w4g32", weight)
    assert np.isnan(scales[3, 0]) and codes.max() <= 15
    others = np.arange(20) != 3
    np.testing.assert_array_equal(codes[others], clean[0][others])
    np.testing.assert_array_equal(scales[others], clean[1][others])


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-7, 1e-5, 1.0, 1e5, 1e7])
def test_scales_of_4_bits_are_the_float16_nearest_to_the_best(scale: float) -> None:
    """Of the codes that were found, by float64; from a group's scale on that float16 ends at, its largest."""
    weight = normal(64, 32, scale=scale)
    codes, scales = encoders.encode("w4g32", weight)
    assert np.isfinite(scales).all() and codes.max() <= 15
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        errors = [squared_error(decoded(QuantizedTensor(W4.format, codes, each)), weight) for each in (scales, np.nextafter(scales, 0))]
    assert errors[0] <= 1.001 * errors[1] + 1e-30 or scale < 1e-6
