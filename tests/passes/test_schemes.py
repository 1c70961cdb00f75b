"""The schemes by name: what the options allow."""

from __future__ import annotations

from cupola.compiler.options import EMBEDDINGS as EMBEDDING_NAMES
from cupola.compiler.options import KV_DTYPES, QUANTS
from cupola.passes.schemes import EMBEDDINGS, SCHEMES


def test_the_names_are_the_options() -> None:
    assert ("auto", *SCHEMES) == QUANTS and ("auto", *EMBEDDINGS) == EMBEDDING_NAMES
    assert {scheme.kv_dtype for scheme in SCHEMES.values()} <= set(KV_DTYPES)
    assert {scheme.name: scheme for scheme in SCHEMES.values()} == SCHEMES and all(scheme.description for scheme in SCHEMES.values())


def test_floats_come_first_and_then_groups_by_size_and_last_what_is_kept() -> None:
    sizes = [scheme.group_size for scheme in SCHEMES.values() if not scheme.exact]
    assert list(SCHEMES)[-2:] == ["keep-a8", "keep-a16"] and len(sizes) == len(SCHEMES) - 2
    assert sizes == sorted(sizes) and list(SCHEMES)[:7] == ["f32", "bf16", "f16", "w8a8", "w8a16", "w4a8", "w4a16"]
