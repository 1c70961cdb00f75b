"""f32, bf16, f16: weights as floating-point numbers, which kernels widen as they read."""

from __future__ import annotations

from cupola.passes.schemes.base import Choice, Scheme, Storage

F32, BF16, F16 = (
    Storage("float32", "float32", holds=("F32",)), Storage("bfloat16", "bfloat16", holds=("BF16",)),
    Storage("float16", "float16", holds=("F16",)),
)  # fmt: skip


def _scheme(name: str, description: str, storage: Storage) -> Scheme:
    return Scheme(name, description, Choice(storage), Choice(storage), name)


SCHEMES = (
    _scheme("f32", "weights in float32", F32),
    _scheme("bf16", "weights in bfloat16", BF16),
    _scheme("f16", "weights in float16", F16),
)
