"""Weights on their way to AMX's tiles: dequantizing wants AVX-512 with bfloat16, which more machines have than have tiles."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.compiler.native_function import compile_kernels_alone
from cupola.runtime.machine import here, missing_features
from cupola.targets.cpu.emit.simd import Simd, argument, prim_func
from cupola.targets.cpu.isa import ISAS
from cupola.targets.cpu.linear.amx import PAIRS, TileProduct
from cupola.targets.cpu.linear.quantized_packing import COLUMNS, HALVES, SLICE, Codes, pack_codes
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.registry import get_target

NEEDS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16")
NUM_GROUPS = 3
OTHERS = (
    "w4g32m-s6x256", "w5g32m-s6x256", "w6g16-s8x256", "w3g16-s6x256", "w2g16m-s4x256", "w4g32-iq4nl-s6x256", "w5g32m",
    "w4g32-iq4nl", "w2g256",
)  # fmt: skip


def dequantize(format: WeightFormat, packed: np.ndarray) -> np.ndarray:
    """All slices of a panel as tiles: the bits of bfloat16 [slices, halves, pairs of inputs, 32]."""
    isa = next(isa for isa in ISAS if isa.bf16_tiles)
    codes = Codes(format)
    num_slices = NUM_GROUPS * codes.slices

    def body() -> None:
        weight = argument("weight", packed.shape, "uint8")
        out = argument("out", (num_slices, HALVES, PAIRS, 2 * COLUMNS), "uint16")
        product = TileProduct(Simd(isa), weight, codes, num_slices, None, None, T.int64(0))  # type: ignore[arg-type]  # not read here
        with T.serial(T.int64(num_slices)) as at, T.serial(T.int64(HALVES)) as half:
            product.dequantize(T.int64(0), at, half, out, at)

    target = get_target(f"cpu:{isa.name}")
    func = prim_func(body).with_attr("global_symbol", "dequantize")
    out = np.zeros((num_slices, HALVES, PAIRS, 2 * COLUMNS), "uint16")
    compile_kernels_alone(tvm.IRModule({"dequantize": func}), target)("dequantize", packed, out)
    return out


@pytest.mark.skipif(here() != "x86_64" or bool(missing_features(NEEDS)), reason="this machine has no AVX-512 with bfloat16")
@pytest.mark.parametrize("name", ["w4g32", "w4g32m", "w8g32", "w4g64", "w4g64m", "w8g64", "w4g96", "w8g128", *OTHERS])
def test_slices_become_tiles(name: str) -> None:
    form, random = WeightFormat.parse(name), np.random.default_rng(0)
    width = NUM_GROUPS * form.block_size
    low, high = (-128, 128) if form.code_dtype == "int8" else (0, 1 << form.bits)
    codes = random.integers(low, high, (32, width), form.code_dtype)
    factors = [
        random.uniform(0.5, 2, (32, width // size)).astype(dtype) if "float" in dtype
        else random.integers(1, 1 << form.scale_bits - 1, (32, width // size), dtype)
        for _, size, dtype in form.factors
    ]  # fmt: skip
    values = QuantizedTensor.of(form, codes, *factors).values().astype(ml_dtypes.bfloat16)
    expected = values.reshape(HALVES, COLUMNS, -1, PAIRS, 2).transpose(2, 0, 3, 1, 4)  # [slice, half, pair, column, one of the pair]
    actual = dequantize(form, pack_codes(name, codes, *factors)).view(ml_dtypes.bfloat16).reshape(expected.shape)
    assert expected.shape[0] * SLICE == width
    np.testing.assert_allclose(actual.astype("float32"), expected.astype("float32"), rtol=2.0**-7)
