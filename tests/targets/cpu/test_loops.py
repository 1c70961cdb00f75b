"""Loops that threads share: every task is done, and once."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.compiler.native_function import compile_kernels_alone
from cupola.targets.cpu.emit.loops import Claims, Parts, Threads, parallel_region
from cupola.targets.cpu.emit.simd import argument, local, name, prim_func
from cupola.targets.registry import get_target

SPIN = 200  # additions a task, so that threads meet


def counting(claimed: bool) -> tvm.tirx.PrimFunc:
    """Adds 1 to out[task] for each task that is done."""

    def body() -> None:
        n = T.int64()
        out = argument("out", (n,), "int32")
        threads = Threads.of_region()
        claims = Claims.allocate(threads, n)
        with parallel_region():
            with threads.each() as thread:
                own = local(512, "int32")
                with claims.each(thread) if claimed else threads.share(thread, n) as task:
                    T.buffer_store(own, T.int32(0), [0])
                    with T.serial(SPIN) as i:
                        T.buffer_store(own, own[i] + T.int32(1), [name(T.cast(i, "int64") + 1)])
                    T.buffer_store(out, out[task] + own[SPIN] - T.int32(SPIN - 1), [task])

    return prim_func(body)


@pytest.mark.parametrize("claimed", [False, True])
def test_every_task_is_done_once(claimed: bool) -> None:
    target = get_target("cpu:generic")
    func = counting(claimed).with_attr("global_symbol", "counting")
    run = partial(compile_kernels_alone(tvm.IRModule({"counting": func}), target), "counting")
    for count in (1, 2, 3, 7, 64, 1000, *range(90, 110)):
        out = np.zeros(count, "int32")
        run(out)
        assert (out == 1).all()


def joining() -> tvm.tirx.PrimFunc:
    """Wholes of `len(x) // len(out)` parts, copied one a task; out[whole] is the sum of the copies, taken by who copies the last."""

    def body() -> None:
        n, wholes = T.int64(), T.int64()
        x, out = argument("x", (n,), "int64"), argument("out", (wholes,), "int64")
        copies = T.alloc_buffer((n,), "int64", scope="global")
        threads, num_parts = Threads.of_region(), name(n // wholes)
        claims, parts = Claims.allocate(threads, n), Parts.allocate(wholes, wholes)
        with parallel_region(), threads.each(barrier=False) as thread, claims.each(thread) as task:
            whole = name(task % wholes)
            T.buffer_store(copies, x[task], [task])
            with parts.last(whole, num_parts), T.serial(num_parts) as part:
                T.buffer_store(out, out[whole] + copies[part * wholes + whole], [whole])

    return prim_func(body)


def test_who_finishes_the_last_part_sees_all() -> None:
    target = get_target("cpu:generic")
    func = joining().with_attr("global_symbol", "joining")
    run = partial(compile_kernels_alone(tvm.IRModule({"joining": func}), target), "joining")
    for wholes, num_parts in ((1, 1), (5, 1), (1, 2), (3, 2), (2, 1000), (1000, 2), (7, 13)) * 20:
        x, out = np.arange(wholes * num_parts), np.zeros(wholes, "int64")
        run(x, out)
        assert (out == x.reshape(num_parts, wholes).sum(0)).all()
