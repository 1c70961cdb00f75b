"""What schemes do to numbers: against float64, and against the gguf package's own quantization."""

from __future__ import annotations

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from cupola.compiler.options import EMBEDDINGS as EMBEDDING_NAMES
from cupola.compiler.options import KV_DTYPES, QUANTS
from cupola.passes.schemes import EMBEDDINGS, SCHEMES, Storage, scheme_of, storage_of
from cupola.passes.schemes.blocks import Blocks
from cupola.passes.schemes.w4 import W4, W4_EMBEDDING, W4_MINS
from cupola.passes.schemes.w8 import W8

QUANTIZED = (W4, W4_EMBEDDING, W4_MINS, W8)
by_storage = pytest.mark.parametrize("storage", QUANTIZED, ids=lambda storage: storage.encode.__name__)


def normal(*shape: int, scale: float = 0.05) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype("float32")


def encode(storage: Storage, weight: np.ndarray) -> Blocks:
    return Blocks(*storage.encode(weight))


def decoded(blocks: Blocks) -> np.ndarray:
    """In float64, by the words of `targets.ops.Linear`."""
    scales, mins = (np.repeat(t.astype("float64"), 32, axis=1) if t is not None else None for t in (blocks.scales, blocks.mins))
    if blocks.codes.dtype == np.int8:
        return scales * blocks.codes
    return scales * (blocks.codes.astype("float64") - 8) if mins is None else scales * blocks.codes + mins


def squared_error(values: np.ndarray, weight: np.ndarray) -> float:
    return float(((values - weight.astype("float64")) ** 2).sum())


def in_groups(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, 32)


def test_the_names_are_the_options() -> None:
    assert ("auto", *SCHEMES) == QUANTS and {"auto", *EMBEDDINGS} == set(EMBEDDING_NAMES)
    assert {scheme.kv_dtype for scheme in SCHEMES.values()} <= set(KV_DTYPES)
    assert {name: (scheme.kv_dtype, scheme.quantize_x) for name, scheme in SCHEMES.items()} == {
        "f32": ("f32", 0), "bf16": ("bf16", 0), "f16": ("f16", 0), "w8a8": ("bf16", 32),
        "w8a16": ("f16", 0), "w4a8": ("bf16", 32), "w4a16": ("f16", 0),
    }  # fmt: skip


@by_storage
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (700, 224)])
def test_the_tensors_are_as_the_operation_has_them(storage: Storage, shape: tuple[int, int]) -> None:
    blocks = encode(storage, normal(*shape))
    assert blocks.codes.shape == shape and blocks.codes.dtype == storage.dtype
    assert all(t.shape == (shape[0], shape[1] // 32) and t.dtype == np.float16 for t in blocks.tensors[1:])
    assert len(blocks.tensors) == (3 if storage.has_mins else 2) and (storage is W8 or blocks.codes.max() <= 15)
    np.testing.assert_array_equal(blocks.values(), decoded(blocks).astype("float32"))
    assert storage_of(storage.encode) is storage and storage_of(normal) is None


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


@pytest.mark.parametrize("storage", [W4, W4_EMBEDDING], ids=lambda storage: storage.encode.__name__)
def test_4_bits_come_close_to_an_exhaustive_search(storage: Storage) -> None:
    weight = normal(8, 256)
    groups = in_groups(weight).astype("float64")
    largest = np.take_along_axis(groups, abs(groups).argmax(1)[:, None], 1)[:, 0]
    best, importance = np.full(len(groups), np.inf), groups**2 + (groups**2).mean(1, keepdims=True)
    importance = importance if storage is W4_EMBEDDING else np.ones_like(groups)
    for divisor in [*np.linspace(-12, -4, 400), *np.linspace(4, 12, 400)]:
        scales = (largest / divisor)[:, None]
        values = scales * np.clip(np.rint(groups / scales), -8, 7)
        best = np.minimum(best, (importance * (values - groups) ** 2).sum(1))
    ours = in_groups(decoded(encode(storage, weight)))
    assert (importance * (ours - groups) ** 2).sum() < 1.01 * best.sum()


def test_4_bits_with_mins_are_off_by_half_a_step_at_most() -> None:
    weight = normal(64, 320)
    blocks = encode(W4_MINS, weight)
    assert (abs(decoded(blocks) - weight) <= 0.51 * np.repeat(blocks.scales.astype("float64"), 32, axis=1)).all()
    theirs = gguf.dequantize(gguf.quantize(weight, GGMLQuantizationType.Q4_1), GGMLQuantizationType.Q4_1)
    assert squared_error(decoded(blocks), weight) <= 1.01 * squared_error(theirs, weight)


@by_storage
def test_a_row_that_fills_no_group_is_padded_with_zeros(storage: Storage) -> None:
    weight = normal(5, 50)
    blocks, whole = encode(storage, weight), encode(storage, np.pad(weight, ((0, 0), (0, 14))))
    assert blocks.codes.shape == (5, 64) and blocks.scales.shape == (5, 2)
    for one, other in zip(blocks.tensors, whole.tensors, strict=True):
        np.testing.assert_array_equal(one, other)


@by_storage
def test_rows_are_encoded_alone(storage: Storage) -> None:
    """What lets the parts of a joined weight be encoded one by one; long enough for several chunks."""
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


def q4_0(*scales: float) -> Blocks:
    codes = np.random.default_rng(1).integers(0, 16, (len(scales), 32)).astype("uint8")
    return Blocks(codes, np.array(scales, "float16")[:, None])


def test_blocks_without_mins_get_exact_ones() -> None:
    blocks = q4_0(0.01, -3.3, 6e-8, 0, -8188)
    again = blocks.with_mins()
    assert again.mins is not None
    np.testing.assert_array_equal(decoded(again), decoded(blocks))
    np.testing.assert_array_equal(again.values(), blocks.values())
    assert q4_0(0.01, 9000).with_mins() is None  # float16 ends at 65504
    assert again.with_mins() is again


def test_4_bit_blocks_fit_signed_codes() -> None:
    blocks = q4_0(0.01, -3.3)
    signed = blocks.signed()
    assert signed.codes.dtype == np.int8
    np.testing.assert_array_equal(decoded(signed), decoded(blocks))
    assert signed.signed() is signed


PICKS = {
    ("w4a8", "linear"): {(): W4, ("",): W4, ("Q4_0",): W4, ("Q4_1",): W4_MINS, ("Q4_0", "Q4_1", "Q4_0"): W4_MINS, ("Q8_0",): W8,
                         ("Q5_0",): W8, ("Q4_K", "Q4_K"): W4_MINS, ("Q6_K",): W8, ("Q4_K", "Q6_K"): W8, ("F16", "IQ4_XS"): W4,
                         ("Q4_0", "Q8_0"): W8, ("Q4_1", ""): W4_MINS, ("Q8_0", "Q4_1"): W8},
    ("w4a8", "embedding"): {("",): W8, ("Q6_K",): W8, ("BF16",): W8, ("Q4_0",): W4, ("Q4_1",): W4_MINS, ("Q8_0",): W8},
    ("w8a16", "linear"): {("",): W8, ("Q4_1",): W8, ("Q8_0",): W8},
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), PICKS)
def test_blocks_decide_how_a_weight_is_stored(name: str, kind: str) -> None:
    choice = getattr(SCHEMES[name], kind)
    assert {formats: choice.pick(formats) for formats in PICKS[name, kind]} == PICKS[name, kind]


def test_an_embedding_can_be_asked_for() -> None:
    scheme = scheme_of("w4a8", "w4")
    assert scheme.name == "w4a8, embedding w4" and scheme_of("w4a8") is SCHEMES["w4a8"]
    assert [scheme.embedding.pick([name]) for name in ("", "Q8_0", "Q4_1", "Q4_0")] == [W4_EMBEDDING, W4_EMBEDDING, W4_MINS, W4]
    assert scheme_of("w4a8", "w8").embedding.pick(["Q4_0"]) is W8 and scheme.linear == SCHEMES["w4a8"].linear
    assert scheme_of("w4a8", "f16").embedding.pick(["Q8_0"]).dtype == "float16"
