"""The scheme of FP8: its encoder against torch's rounding, and what it stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cupola.compiler.weights import encoding_notes
from cupola.passes.encoders import encode
from cupola.passes.schemes import SCHEMES
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor
from tests.compiler.encodings import File, packed

E4M3 = WeightFormat.parse("w8g128-e4m3")


def normal(*shape: int, scale: float = 0.05) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype("float32")


def test_scheme() -> None:
    scheme = SCHEMES["f8a16"]
    assert (scheme.kv_dtype, scheme.quantize_x, scheme.group_size) == ("f16", 0, 128)
    assert scheme.linear.pick([]).format == E4M3 and scheme.embedding.pick([]).format == WeightFormat(8, 128)
    assert scheme.linear.pick(["Q8_0"]).name == "E4M3 in groups of 128"


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4, 0.05, 1e6])
def test_codes_are_the_nearest_as_torch_rounds(scale: float) -> None:
    weight = normal(48, 256, scale=scale)
    codes, scales = encode(E4M3.name, weight)
    spread = np.repeat(scales.astype("float32"), 128, axis=1)
    expected = torch.from_numpy(np.clip(weight / np.where(spread, spread, 1), -448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (codes != expected).mean() < 1e-4  # the quotient may be rounded to the other side of a middle
    largest = np.abs(weight.reshape(48, 2, 128)).max(-1)
    values = QuantizedTensor(E4M3, codes, scales).values()
    assert (scales.astype("float32") * 448 >= largest).all() or scale == 1e6
    error, size = np.abs(values - weight), np.abs(weight)
    assert (error <= np.maximum(size / 16 * 1.001, spread * 2.0**-10)).all()  # half a step: 4 significant bits, or the least numbers'


def test_zeros_and_what_float16_cannot_scale() -> None:
    weight = np.zeros((1, 256), "float32")
    weight[0, 128] = 1e9  # beyond 448 times the largest float16
    tensor = QuantizedTensor(E4M3, *encode(E4M3.name, weight))
    assert not tensor.values()[0, :128].any() and tensor.values()[0, 128] == 448 * 65504


def test_rows_are_padded_and_a_note_says_what_became_of_a_file() -> None:
    weights = packed(File({"w": "F32", "e": "F32"}, (48, 200)), [["w"], ["e"]], "f8a16")
    codes, scales = (weight.compute() for weight in weights if {each.name for each in weight.encodings} == {"w"})
    assert codes.shape == (48, 256) and codes.dtype == np.uint8 and scales.shape == (48, 2)
    [note, *_] = encoding_notes(weights)
    assert "1 is quantized from F32 to E4M3 in groups of 128" in note and "1 is quantized from F32 to 8 bits in groups of 128" in note
