"""MXFP4 as GPT-OSS stores its experts (OCP Microscaling Formats, 1.0).

…_blocks u8 [E, N, K / 32, 16] holds two codes of E2M1 a byte, the low half first; …_scales u8 [E, N, K / 32] powers of two,
2^(code − 127). The parameter is the experts' matrices, turned: [E, K, N]. Their codes stay as they are.
https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/weights.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import Method, Parts, Settings
from cupola.compiler.sources.checkpoints.blocks import nibbles, table_tensor
from cupola.compiler.sources.checkpoints.float_codes import e8m0
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

FORMAT = WeightFormat(4, 32, "bfloat16", table="e2m1")


@dataclass(frozen=True)
class _Reader:
    marks: tuple[str, ...] = ("_blocks",)
    parts: tuple[str, ...] = ("_blocks", "_scales")
    beside: Mapping[str, str] = field(default_factory=dict)
    result: str = ""

    def read(self, parts: Parts) -> LazyTensor:
        blocks = parts.need("_blocks", ["U8"], [None, None, None, 16])
        count, n, groups, _ = blocks.shape
        parts.need("_scales", ["U8", "F8_E8M0"], [count, n, groups])

        def load() -> Array:
            matrices = experts(parts).values().reshape(count, n, 32 * groups)
            return np.ascontiguousarray(matrices.swapaxes(1, 2))

        shape = (count, 32 * groups, n)
        return LazyTensor(parts.name, shape, "float32", load, "MXFP4", FORMAT, lambda: experts(parts), is_turned=True)


def experts(parts: Parts) -> QuantizedTensor:
    """The matrices of all experts under one another: [E · N, K] in groups of 32."""
    blocks, scales = parts.tensors["_blocks"].load(), parts.tensors["_scales"].load()
    rows = blocks.shape[0] * blocks.shape[1]
    return table_tensor(FORMAT, nibbles(blocks).reshape(rows, -1), e8m0(scales).reshape(rows, -1))


def _open(settings: Settings) -> _Reader:
    return _Reader()


METHODS = (Method("MXFP4", ("mxfp4",), _open, ("modules_to_not_convert", "dequantize")),)
