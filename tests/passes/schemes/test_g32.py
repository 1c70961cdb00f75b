"""Groups of 32, whose schemes keep the blocks of GGUF files."""

from __future__ import annotations

import pytest

from cupola.passes.schemes import SCHEMES, scheme_of
from cupola.passes.schemes.integers import storage
from cupola.targets.formats.format import WeightFormat

W4, W4_MINS, W8 = (storage(WeightFormat.parse(name)) for name in ("w4g32", "w4g32m", "w8g32"))
W4_EMBEDDING = storage(WeightFormat.parse("w4g32"), weighted=True)


def test_schemes() -> None:
    assert {name: (scheme.kv_dtype, scheme.quantize_x) for name, scheme in SCHEMES.items() if scheme.group_size == 32} == {
        "w8a8": ("bf16", 32), "w8a16": ("f16", 0), "w4a8": ("bf16", 32), "w4a16": ("f16", 0),
    }  # fmt: skip


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
    assert scheme_of("w4a8", "w8").embedding.pick(["Q4_0"]) == W8 and scheme.linear == SCHEMES["w4a8"].linear
    assert scheme_of("w4a8", "f16").embedding.pick(["Q8_0"]).dtype == "float16"
