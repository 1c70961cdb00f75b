"""The text of kernels for Metal."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.targets.emit import Value, argument, prim_func
from cupola.targets.gpu.emit import blocks, warp_sum
from cupola.targets.gpu.lowering import split
from cupola.targets.gpu.metal import keep_rounding, metal_like, metal_source

TARGET = metal_like(DeviceSpec("metal", "metal", "metal", "aarch64-macos", ())).tvm


def text(value: Value) -> str:
    """The source of two kernels that add a value to each element."""

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, 32), "float32")
        with blocks(n, threads=32) as (row, lane):
            T.buffer_store(x, x[row, lane] + value, [row, lane])
        with blocks(n, threads=32) as (row, lane):
            T.buffer_store(x, warp_sum(x[row, lane]), [row, lane])

    return metal_source(split(tvm.IRModule({"add": prim_func(body)}), TARGET), TARGET)


@pytest.mark.parametrize("number", [1.5 * 2**23, 1 / 3, 3.4028234e38])
def test_constants_keep_all_their_bits(number: float) -> None:
    """TVM alone writes seven digits: 12582910 for 12582912."""
    bits = int(np.float32(number).view(np.uint32))
    assert f"as_type<float>((uint){bits})" in text(T.float32(number))


@pytest.mark.parametrize("number", [2.0, 0.1, 1e-5, 1000000.0])
def test_constants_of_seven_digits_are_left_to_read(number: float) -> None:
    assert f"{number:e}f" in text(T.float32(number))


def test_rounding_to_bfloat16_and_back_is_written_out() -> None:
    """TVM alone, which computes such numbers in float32, leaves them as they are."""

    def body() -> None:
        x = argument("x", (32,), "float32")
        with blocks(1, threads=32) as (_, lane):
            T.buffer_store(x, T.cast(T.cast(x[lane], "bfloat16"), "float32"), [lane])

    mod = tvm.IRModule({"round": prim_func(body)})
    source, plain = (metal_source(split(each, TARGET), TARGET) for each in (keep_rounding()(mod), mod))
    assert "(uint)32767" in source and "(uint)4294901760" in source
    assert "(uint)" not in plain


def test_a_library_has_its_head_once() -> None:
    source = text(T.float32(1))
    assert source.count("#include <metal_stdlib>") == source.count("using namespace metal;") == 1
    assert source.count("kernel void add_kernel") == 2
    assert "__TVMArgUnion" not in source
