"""Wide loads as languages with vectors of four have them."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from cupola.targets.emit import argument, prim_func
from cupola.targets.gpu.emit import blocks, registers
from cupola.targets.gpu.vectors import load_words


def copy(dtype: str, lanes: int) -> tirx.PrimFunc:
    """Copies the third element of each vector."""

    def body() -> None:
        n = T.int64()
        x, out = argument("x", (n, 64), dtype), argument("out", (n, 64 // lanes), dtype)
        with blocks(n, threads=64 // lanes) as (row, thread):
            raw = registers(lanes, dtype)
            T.buffer_store(raw, x[row, T.ramp(thread * lanes, 1, lanes)], [T.ramp(0, 1, lanes)])
            T.buffer_store(out, raw[2], [row, thread])

    return prim_func(body)


def by_hand(dtype: str, lanes: int) -> tirx.PrimFunc:
    """The same, by words: `per` elements lie in each, the first in its lowest bits."""
    bits = tvm.DataType(dtype).bits
    per = 32 // bits

    def body() -> None:
        n = T.int64()
        x, out = argument("x", (n, 64), dtype), argument("out", (n, 64 // lanes), dtype)
        words = T.decl_buffer((n, 64 // per), "uint32", data=x.data)
        with blocks(n, threads=64 // lanes) as (row, thread):
            raw = registers(lanes // per, "uint32")
            T.buffer_store(raw, words[row, T.ramp(thread * (lanes // per), 1, lanes // per)], [T.ramp(0, 1, lanes // per)])
            part = raw[2 // per] >> T.uint32(2 % per * bits)
            T.buffer_store(out, T.reinterpret(dtype, T.cast(part, f"uint{bits}")), [row, thread])

    return prim_func(body)


@pytest.mark.parametrize(("dtype", "lanes"), [("float16", 8), ("bfloat16", 8), ("int8", 16), ("uint8", 8)])
def test_wide_loads_bring_words(dtype: str, lanes: int) -> None:
    found = load_words()(tvm.IRModule({"copy": copy(dtype, lanes)}))["copy"]
    tvm.ir.assert_structural_equal(found.body, by_hand(dtype, lanes).body, map_free_vars=True)


@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 4), ("float16", 4), ("int8", 4)])
def test_vectors_of_four_stay(dtype: str, lanes: int) -> None:
    func = copy(dtype, lanes)
    tvm.ir.assert_structural_equal(load_words()(tvm.IRModule({"copy": func}))["copy"], func)
