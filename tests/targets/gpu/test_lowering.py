"""Launches of kernels with threads, read off their TIR, and their C."""

from __future__ import annotations

import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.errors import UnsupportedError
from cupola.targets.emit import argument, prim_func
from cupola.targets.gpu.cuda import LIMITS
from cupola.targets.gpu.emit import WARP, blocks
from cupola.targets.gpu.lowering import Launch, split
from cupola.targets.gpu.source import launch_source
from cupola.targets.native.interface import describe_kernel

TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_80", **LIMITS}, host="llvm")


def twice() -> tvm.tirx.PrimFunc:
    """Two launches: the second one over half as many blocks, which it gets from a number."""

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, WARP), "float32")
        index = T.arg("index", T.int64())
        with blocks((n + T.int64(1)) // T.int64(2), threads=WARP) as (block, lane):
            T.buffer_store(x, T.float32(1), [block, lane])
        with blocks(3, n, threads=WARP) as (_, block, lane):
            T.buffer_store(x, T.cast(index, "float32"), [block, lane])

    return prim_func(body)


def test_launches_are_written_over_the_kernels_parameters() -> None:
    code = split(tvm.IRModule({"twice": twice()}), TARGET)
    assert len(code.device.functions) == 2
    first, second = code.launches["twice"]
    assert first == Launch("twice_kernel", (("", "a0"), ("int64", "a2")), ("(a2 + 1) // 2", 1, 1, WARP, 1, 1))
    assert (second.symbol, second.extents) == ("twice_kernel_1", (3, "a2", 1, WARP, 1, 1))
    assert sorted(second.arguments) == [("", "a0"), ("int64", "a1"), ("int64", "a2")]


def test_a_launch_in_c() -> None:
    code = split(tvm.IRModule({"twice": twice()}), TARGET)
    source = launch_source([describe_kernel("twice", twice())], code.launches)
    assert "int32_t cupola_code_twice(void * a0, int64_t a1, int64_t a2) {" in source
    assert "const int64_t extents[] = {(a2 + 1) / 2, 1, 1, 32, 1, 1};" in source
    assert 'cupola_symbols[] = {"twice_kernel", "twice_kernel_1"};' in source


def test_a_kernel_without_threads_is_refused_by_name() -> None:
    def body() -> None:
        x = argument("x", (4,), "float32")
        with T.serial(4) as i:
            T.buffer_store(x, T.float32(0), [i])

    with pytest.raises(UnsupportedError, match=r"the kernel alone does something on the host \(give it threads\)"):
        split(tvm.IRModule({"alone": prim_func(body)}), TARGET)


def test_memory_between_launches_is_refused_by_name() -> None:
    def body() -> None:
        n = T.int64()
        x = argument("x", (n, WARP), "float32")
        kept = T.alloc_buffer((n,), "float32")
        with blocks(n, threads=WARP) as (block, _):
            T.buffer_store(kept, x[block, 0], [block])
        with blocks(n, threads=WARP) as (block, lane):
            T.buffer_store(x, kept[block], [block, lane])

    with pytest.raises(UnsupportedError, match=r"the kernel sums keeps .* from one launch to the next \(write a rule"):
        split(tvm.IRModule({"sums": prim_func(body)}), TARGET)
