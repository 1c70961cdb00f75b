"""Schemes that keep what a file has."""

from __future__ import annotations

import pytest

from cupola.passes.schemes import SCHEMES
from cupola.targets.formats.ggml import GGML_FORMATS

KEEP = SCHEMES["keep-a8"]


def test_schemes() -> None:
    assert {name: (scheme.kv_dtype, scheme.quantize_x) for name, scheme in SCHEMES.items() if scheme.exact} == {
        "keep-a8": ("bf16", 32), "keep-a16": ("f16", 0),
    }  # fmt: skip
    assert KEEP.linear == KEEP.embedding == SCHEMES["keep-a16"].linear


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_every_type_keeps_its_format(name: str) -> None:
    storage = KEEP.linear.pick([name])
    assert storage.format == GGML_FORMATS[name] and name in storage.holds and not storage.nears
    assert KEEP.linear.pick([name, name]) == storage and KEEP.kind_of(name) == GGML_FORMATS[name].name


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32"), ("", "float32"), ("NVFP4", "float32")]
)
def test_floats_and_what_is_not_known_are_stored_as_floats(kind: str, dtype: str) -> None:
    storage = KEEP.linear.pick([kind])
    assert (storage.format, storage.dtype) == (None, dtype) and KEEP.kind_of(kind) == dtype


def test_what_nothing_holds_together_is_stored_in_float32() -> None:
    assert KEEP.linear.pick(["Q4_K", "Q6_K"]).dtype == "float32" and KEEP.kind_of("Q4_K") != KEEP.kind_of("Q6_K")
    assert KEEP.kind_of("IQ2_XS") == KEEP.kind_of("IQ2_S") and SCHEMES["w4a8"].kind_of("Q4_K") == ""
