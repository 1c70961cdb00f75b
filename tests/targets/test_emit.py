"""Conversions that kernels are written with, against torch and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.compiler.native_function import compile_function
from cupola.targets.emit import Value, argument, e4m3_to_f32, f32_to_e4m3, lane_index, prim_func
from cupola.targets.formats.tables import TABLES
from tests.targets.harness import target_of


def converted(numbers: np.ndarray, to: str, lanes: int) -> np.ndarray:
    """Codes of float32 numbers, or numbers of codes, `lanes` at a time."""
    kinds = ("float32", "int32") if to == "code" else ("int32", "float32")
    convert = f32_to_e4m3 if to == "code" else e4m3_to_f32

    def body() -> None:
        x, out = argument("x", numbers.shape, kinds[0]), argument("out", numbers.shape, kinds[1])
        with T.serial(len(numbers) // lanes) as i:
            value: Value = x[lane_index(i * lanes, lanes)]
            T.buffer_store(out, convert(value, lanes), [lane_index(i * lanes, lanes)])

    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(numbers.shape, kinds[0]))
    with builder.function("main", [x]):
        with builder.dataflow():
            function = builder.add_func(prim_func(body), "convert")
            result = builder.emit_output(relax.op.call_tir(function, [x], out_ty=relax.TensorType(numbers.shape, kinds[1])))
        builder.emit_func_output(result)
    mod: tvm.IRModule = builder.get()
    return compile_function(mod, target_of("toy"), "main")(numbers.astype(kinds[0]))[0]


@pytest.mark.parametrize("lanes", [1, 8])
def test_e4m3_is_rounded_to_nearest_even_and_saturates(lanes: int) -> None:
    codes = np.arange(128, dtype="uint8")[:-1].view(ml_dtypes.float8_e4m3fn).astype("float64")
    middles = (codes[1:] + codes[:-1]) / 2
    near = np.concatenate([codes, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), [1e-30, 449, 464, 480, 1e30, np.inf]])
    drawn = np.exp(np.random.default_rng(0).uniform(-10, 7, 3000))
    numbers = np.concatenate([near, -near, drawn, -drawn]).astype("float32")
    numbers = np.resize(numbers, -(-len(numbers) // lanes) * lanes)
    expected = torch.from_numpy(np.clip(numbers, -448, 448)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(converted(numbers, "code", lanes), expected)


@pytest.mark.parametrize("lanes", [1, 8])
def test_e4m3_is_read_exactly(lanes: int) -> None:
    codes = np.array([code for code in range(256) if code & 127 != 127] + [0] * 2)
    np.testing.assert_array_equal(converted(codes, "number", lanes), np.array(TABLES["e4m3"], "float32")[codes])
