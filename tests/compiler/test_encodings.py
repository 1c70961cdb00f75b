"""Weights from a file's blocks to what is stored: what can be kept is kept bit for bit, and the notes say what was not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import encoding_notes, overflow_notes
from cupola.targets.formats.ggml import GGML_FORMATS
from cupola.targets.formats.tensor import QuantizedTensor
from tests.compiler.encodings import File, packed, stored

CASES = {
    "Q4_0 alone": ("w4a8", ["Q4_0"], ["uint8", "float16"], "1 keeps its Q4_0 blocks"),
    "Q4_1 joined": ("w4a8", ["Q4_1", "Q4_1", "Q4_1"], ["uint8", "float16", "float16"], "3 keep their Q4_1 blocks"),
    "Q4_0 beside Q4_1": ("w4a16", ["Q4_0", "Q4_1"], ["uint8", "float16", "float16"], "1 keeps its Q4_0 blocks, 1 keeps its Q4_1 blocks"),
    "Q8_0 in 4 bits": ("w4a8", ["Q8_0", "Q8_0"], ["int8", "float16"], "2 keep their Q8_0 blocks"),
    "Q8_0 in 8 bits": ("w8a8", ["Q8_0"], ["int8", "float16"], "1 keeps its Q8_0 blocks"),
    "Q4_0 in 8 bits": ("w8a16", ["Q4_0"], ["int8", "float16"], "1 keeps its Q4_0 blocks"),
    "Q5_0 beside Q4_0": ("w4a8", ["Q5_0", "Q4_0"], ["int8", "float16"], "1 keeps its Q4_0 blocks, 1 keeps its Q5_0 blocks"),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_kept_bit_for_bit(case: str) -> None:
    quant, kinds, dtypes, note = CASES[case]
    file = File({f"w{i}": kind for i, kind in enumerate(kinds)} | {"e": "F32"})
    weights = packed(file, [[f"w{i}" for i in range(len(kinds))], ["e"]], quant)
    blocks = stored(weights, *(f"w{i}" for i in range(len(kinds))))
    assert [str(tensor.dtype) for tensor in blocks.tensors] == dtypes
    np.testing.assert_array_equal(blocks.values(), np.concatenate([file.values[f"w{i}"] for i in range(len(kinds))]))
    assert encoding_notes(weights) == [f"of the weights, {note}, 1 is quantized from F32 to 8 bits"]
    assert not any("w" in read and "floats" in read for read in file.reads)


@pytest.mark.parametrize("quant", ["keep-a8", "keep-a16"])
@pytest.mark.parametrize("kind", GGML_FORMATS)
def test_every_type_is_kept_bit_for_bit(kind: str, quant: str) -> None:
    file = File({"a": kind, "b": kind, "c": "BF16", "e": "F16"}, (48, 512))
    weights = packed(file, [["a", "b"], ["c"], ["e"]], quant)
    names = [name for name, _, _ in GGML_FORMATS[kind].factors]
    kept = [weight.compute() for weight in weights if {each.name for each in weight.encodings} == {"a", "b"}]
    tensor = QuantizedTensor(GGML_FORMATS[kind], kept[0], **dict(zip(names, kept[1:], strict=True)))
    np.testing.assert_array_equal(tensor.values(), np.concatenate([file.values["a"], file.values["b"]]))
    assert encoding_notes(weights) == [f"of the weights, 2 keep their {kind} blocks"]
    floats = {weight.spec.name: weight for weight in weights if not weight.encodings}
    assert {name: weight.spec.dtype for name, weight in floats.items()} == {"c": "bfloat16", "e": "float16"}
    assert all(np.array_equal(weight.compute().astype("float32"), file.values[name]) for name, weight in floats.items())


ROUNDED = {
    "floats": ("w4a8", ["F16", "F16"], "2 are quantized from F16 to 4 bits", 0.01),
    "Q5_1": ("w4a8", ["Q5_1", "F16"], "1 is quantized from F16 to 8 bits, 1 is quantized from Q5_1 to 8 bits", 1e-4),
    "floats in 8 bits": ("w8a16", ["F16", "Q5_1"], "1 is quantized from F16 to 8 bits, 1 is quantized from Q5_1 to 8 bits", 1e-4),
    "Q4_1 in 8 bits": ("w8a8", ["Q4_1"], "1 is quantized from Q4_1 to 8 bits", 1e-4),
    "floats beside Q4_1": ("w4a8", ["F16", "Q4_1"], "1 keeps its Q4_1 blocks, 1 is quantized from F16 to 4 bits with mins", 0.01),
    "Q4_1 beside Q8_0": ("w4a8", ["Q4_1", "Q8_0"], "1 keeps its Q8_0 blocks, 1 is quantized from Q4_1 to 8 bits", 1e-4),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_what_cannot_be_kept_is_rounded_and_said(case: str) -> None:
    quant, kinds, note, bound = ROUNDED[case]
    names = [f"w{i}" for i in range(len(kinds))]
    file = File(dict(zip(names, kinds, strict=True)) | {"e": "Q4_0"})
    weights = packed(file, [names, ["e"]], quant)
    values, expected = stored(weights, *names).values().astype("float64"), np.concatenate([file.values[name] for name in names])
    assert ((values - expected) ** 2).sum() < bound * (expected.astype("float64") ** 2).sum()
    notes = encoding_notes([weight for weight in weights if weight.spec.name != "e" and not weight.spec.name.startswith("e#")])
    assert notes == [f"of the weights, {note}"]


def test_codes_of_q4_k_are_kept_and_said() -> None:
    file = File({"a": "Q4_1", "e": "Q8_0"})
    file.tensors["a"] = dataclasses.replace(file.tensors["a"], stored_as="Q4_K")
    weights = packed(file, [["a"], ["e"]], "w4a8")
    assert encoding_notes(weights) == ["of the weights, 1 keeps its Q4_K codes, their scales rounded, 1 keeps its Q8_0 blocks"]
    np.testing.assert_array_equal(stored(weights, "a").values(), file.values["a"])


def test_a_tied_embedding_is_stored_once_and_can_be_asked_for_in_4_bits() -> None:
    for embedding, kinds in (("auto", ["int8", "float16"]), ("w4", ["uint8", "float16"])):
        file = File({"e": "Q8_0"})
        weights = packed(file, [["e"]], "w4a8", embedding)
        assert [weight.spec.dtype for weight in weights] == kinds
        blocks = stored(weights, "e")
        assert np.array_equal(blocks.values(), file.values["e"]) == (embedding == "auto")


def test_a_weight_is_read_and_encoded_once_for_all_that_is_stored_of_it() -> None:
    file = File({"a": "F16", "b": "Q4_1", "c": "F16", "e": "F32"})
    for weight in packed(file, [["a", "b"], ["c"], ["e"]], "w4a8"):
        weight.compute()
    assert sorted(file.reads) == ["a floats", "b blocks", "c floats", "e floats"]


def test_scales_that_leave_no_room_for_mins_are_encoded_again() -> None:
    """A Q4_0 block joined with Q4_1 needs mins of −8 times its scale."""
    file = File({"a": "Q4_0", "b": "Q4_1", "e": "F32"})
    huge = QuantizedTensor(GGML_FORMATS["Q4_0"], np.full((48, 96), 9, "uint8"), np.full((48, 3), 9000, "float16"))
    file.tensors["a"] = LazyTensor("a", (48, 96), "float32", lambda: huge.values(), "Q4_0", huge.format, lambda: huge)
    np.testing.assert_allclose(stored(packed(file, [["a", "b"], ["e"]], "w4a8"), "a", "b").values()[:48], 9000, rtol=1e-3)


@pytest.mark.parametrize("quant", ["w8a8", "w4a8"])
def test_groups_that_float16_scales_cannot_hold_are_counted_by_name(quant: str) -> None:
    file = File({"a": "F32", "b": "F32", "e": "F32"})
    values = file.values["a"].astype("float32")
    values[0, 5], values[7, 40] = 1e9, -1e9
    file.tensors["a"] = LazyTensor("a", (48, 96), "float32", lambda: values, "F32")
    weights = packed(file, [["a"], ["b"], ["e"]], quant)
    for weight in weights:
        weight.compute()
    assert overflow_notes(weights) == ["a: too large for float16, in which they are stored: the scales of 2 groups"]
