"""Weights in floats of 8 and 4 bits: E4M3 (arXiv:2209.05433), and E2M1 as NVFP4 and MXFP4 (OCP Microscaling Formats, 1.0) have it."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.checkpoints.base import FLOATS, Parts
from cupola.compiler.sources.checkpoints.blocks import group_size_of, nibbles, quantized, spread, table_tensor
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E8M0": "bfloat16"}


@dataclass(frozen=True)
class Scales:
    """Where a weight's scales are.

    Attributes:
        part: the end of their name.
        block: rows and columns that share one; None: rows or the whole tensor, as the shape says.
    """

    part: str
    block: tuple[int, int] | None = None


def e4m3_weight(parts: Parts, name: str, kind: str, codes: str, scales: Scales) -> LazyTensor:
    """A weight E4M3 [N, K] times its scales."""
    weight, found = parts.need(codes, ["F8_E4M3"], [None, None]), parts.need(scales.part, (*FLOATS, "F8_E8M0"))
    n, k = weight.shape
    block_rows, block_columns = scales.block if scales.block is not None else (n if found.shape in ((), (1,), (1, 1)) else 1, k)
    size = group_size_of(k, block_columns)
    rows, groups = -(-n // block_rows), -(-k // block_columns)
    if int(np.prod(found.shape)) != rows * groups:
        raise parts.damaged(scales.part, f"has the shape {list(found.shape)}, not [{rows}, {groups}]")
    form = WeightFormat(8, size, _DTYPES[found.stored_as], table="e4m3")

    def blocks() -> QuantizedTensor:
        values = (e8m0(found.load()) if found.stored_as == "F8_E8M0" else found.load()).reshape(rows, groups)
        return table_tensor(form, weight.load().view(np.uint8), spread(values, n, block_rows))

    return quantized(name, (n, k), f"{kind} (E4M3)", form, blocks)


def e2m1_weight(parts: Parts, name: str, kind: str, codes: str, scales: str, factor: str, *, divides: bool) -> LazyTensor:
    """A weight E2M1, two a byte u8 [N, K / 2], times scales E4M3 [N, K / 16] and a factor of the tensor, or E8M0 [N, K / 32] alone.

    `divides`: the factor divides the scales, as compressed-tensors has it.
    """
    packed, found = parts.need(codes, ["U8"], [None, None]), parts.need(scales, ["F8_E4M3", "U8", "F8_E8M0"], [None, None])
    n, k = packed.shape[0], 2 * packed.shape[1]
    is_nv = found.stored_as == "F8_E4M3"
    size = 16 if is_nv else 32
    parts.need(scales, [found.stored_as], [n, k // size])
    if k % size:
        raise parts.damaged(codes, f"has rows of {k} values, not of whole groups of {size}")
    whole = parts.need(factor, ["F32"]) if is_nv else None
    if whole is not None and whole.shape not in ((), (1,)):
        raise parts.damaged(factor, f"has the shape {list(whole.shape)}, not [1]")
    form = WeightFormat(4, size, "float32" if is_nv else "bfloat16", table="e2m1")

    def blocks() -> QuantizedTensor:
        if whole is None:
            values = e8m0(found.load())
        else:
            scale, unit = found.load().view(ml_dtypes.float8_e4m3fn).astype(np.float32), whole.load().reshape(-1)[0]
            values = scale / unit if divides else scale * unit
        return table_tensor(form, nibbles(packed.load()), values)

    return quantized(name, (n, k), f"{'NV' if is_nv else 'MX'}{kind}", form, blocks)


def e8m0(codes: Array) -> Array:
    """Powers of two, 2^(code − 127), in bfloat16, which holds them all; NaN for 255."""
    exponents = codes.view(np.uint8).astype(np.int32)
    powers = np.ldexp(np.float32(1), exponents - 127)
    values: Array = np.where(exponents == 255, np.float32(np.nan), powers).astype(ml_dtypes.bfloat16)
    return values
