"""Threads of a step: regions give what TVM's pool gives, errors come through, and whoever calls from elsewhere is served as ever."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.manifest import REPEAT_IN_TEAM
from cupola.targets.cpu.emit.loops import Claims, Threads, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import argument, prim_func
from cupola.targets.cpu.isa import ISAS
from cupola.targets.registry import get_target

WIDTH = 257


def stage() -> tvm.tirx.PrimFunc:
    """Three loops over what the one before wrote, the last by tasks that are claimed: out[i] += 2 · (x[i] + x[n − 1 − i])."""

    def body() -> None:
        n = T.int64()
        x, out = argument("x", (n,), "int64"), argument("out", (n,), "int64")
        sums = T.alloc_buffer((n,), "int64", scope="global")
        twice = T.alloc_buffer((n,), "int64", scope="global")
        threads = Threads.of_region()
        claims = Claims.allocate(threads, n)
        with parallel_region():
            with shared_loop(n) as i:
                T.buffer_store(sums, x[i] + x[n - 1 - i], [i])
            with shared_loop(n, strided=True) as i:
                T.buffer_store(twice, sums[n - 1 - i] + sums[i], [i])
            with threads.each(barrier=False) as thread, claims.each(thread) as i:
                T.buffer_store(out, out[i] + twice[i], [i])

    return prim_func(body)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with `stage` and what starts its threads."""
    target = get_target("cpu")
    module = tvm.tirx.build(tvm.IRModule({"stage": stage().with_attr("global_symbol", "stage")}), target=target.tvm)
    for part in target.modules():
        module.import_module(part)
    file = tmp_path_factory.mktemp("team") / "lib.so"
    module.export_library(str(file))
    return file


@pytest.fixture(scope="module")
def library(file: Path) -> tvm.runtime.Module:
    return tvm.runtime.load_module(str(file))


def once(library: tvm.runtime.Module) -> Callable[..., object]:
    """Calls a function in a team."""
    return functools.partial(library[REPEAT_IN_TEAM], 1)


def run(library: tvm.runtime.Module, wrap: Callable[..., object], times: int) -> None:
    """Calls a function of `times` stages by `wrap`, and checks what comes of them."""
    x = np.random.default_rng(times).integers(0, 1000, WIDTH)
    given, out = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(WIDTH, "int64"))

    def step(count: int) -> int:
        for _ in range(count):
            library["stage"](given, out)
        return count + 1

    assert wrap(tvm.runtime.convert(step), times) == times + 1
    assert (out.numpy() == 2 * times * (x + x[::-1])).all()


def test_a_step_of_many_regions(library: tvm.runtime.Module) -> None:
    for times in (0, 1, 2, 1000, 3):
        run(library, once(library), times)


def test_regions_elsewhere_go_to_the_pool(library: tvm.runtime.Module) -> None:
    run(library, lambda step, times: step(times), 5)
    run(library, once(library), 5)
    run(library, lambda step, times: step(times), 5)


def test_a_team_within_a_team_is_that_team(library: tvm.runtime.Module) -> None:
    team = library[REPEAT_IN_TEAM]
    run(library, lambda step, times: team(1, team, 1, step, times), 50)


def test_calls_are_repeated(library: tvm.runtime.Module) -> None:
    x = np.arange(WIDTH)
    given, out = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(WIDTH, "int64"))
    for times in (0, 1, 3):
        library[REPEAT_IN_TEAM](times, library["stage"], given, out)
    library[REPEAT_IN_TEAM](2, library[REPEAT_IN_TEAM], 3, library["stage"], given, out)
    assert (out.numpy() == 2 * (1 + 3 + 2 * 3) * (x + x[::-1])).all()


def test_the_first_call_that_fails_is_the_last(library: tvm.runtime.Module) -> None:
    calls = []

    def fail_later() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        library[REPEAT_IN_TEAM](5, tvm.runtime.convert(fail_later))
    assert calls == [0, 1, 2]


def test_several_threads_have_teams_of_their_own(library: tvm.runtime.Module) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                run(library, once(library), 20)
        except BaseException as error:  # noqa: BLE001  for the test's own thread
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors


def test_what_the_function_raises_is_raised(library: tvm.runtime.Module) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"number {number}")

    for _ in range(3):
        with pytest.raises(ValueError, match="number 7"):
            library[REPEAT_IN_TEAM](1, tvm.runtime.convert(fail), 7)
        run(library, once(library), 2)


def test_a_kernel_that_refuses_its_arguments_harms_nobody(library: tvm.runtime.Module) -> None:
    wrong = tvm.runtime.tensor(np.zeros(3, "float32"))
    with pytest.raises(TypeError, match="dtype"):
        library[REPEAT_IN_TEAM](1, library["stage"], wrong, wrong)
    run(library, once(library), 2)


@pytest.mark.parametrize("name", [isa.name for isa in ISAS])
def test_it_is_code_for_every_instruction_set(name: str) -> None:
    (module,) = get_target(f"cpu:{name}").modules()
    assert f"__tvm_ffi_{REPEAT_IN_TEAM}:" in module.inspect_source("asm")


THREADS = """
import sys, numpy as np, tvm
tvm.get_global_func("runtime.config_threadpool")(0, int(sys.argv[2]))
library = tvm.runtime.load_module(sys.argv[1])
x, out = (tvm.runtime.tensor(np.full(257, value, "int64")) for value in (3, 0))
step = tvm.runtime.convert(lambda: [library["stage"](x, out) for _ in range(50)] and None)
for _ in range(4):
    library["repeat_in_team"](1, step)
assert (out.numpy() == 200 * 12).all(), out.numpy()
print(tvm.get_global_func("runtime.NumThreads")())
"""


@pytest.mark.parametrize("count", [1, 3, 8])
def test_any_number_of_threads(file: Path, count: int) -> None:
    """More threads than cores too: who waits lets the others run."""
    environment = {**os.environ, "TVM_NUM_THREADS": str(count), "TVM_BIND_THREADS": "0"}
    command = [sys.executable, "-c", THREADS, str(file), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == count
