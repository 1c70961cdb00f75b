"""Schemes of floats."""

from __future__ import annotations

from cupola.passes.schemes import SCHEMES, scheme_of


def test_schemes() -> None:
    own = {name: scheme for name, scheme in SCHEMES.items() if scheme.group_size == 0 and not scheme.exact}
    assert {name: (scheme.kv_dtype, scheme.quantize_x, scheme.linear.pick(["Q4_0"]).dtype) for name, scheme in own.items()} == {
        "f32": ("f32", 0, "float32"), "bf16": ("bf16", 0, "bfloat16"), "f16": ("f16", 0, "float16"),
    }  # fmt: skip


def test_an_embedding_can_be_quantized_alone() -> None:
    embedding = scheme_of("bf16", "w4").embedding.pick([])
    assert embedding.format is not None and embedding.format.name == "w4g32" and embedding.weighted
