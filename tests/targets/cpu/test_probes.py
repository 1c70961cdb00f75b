"""The probes compute what they say, and say how much they compute."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from cupola.compiler.native_function import compile_kernels_alone
from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import list_kernels, with_cost
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.cpu.kernels import cpu_target
from cupola.targets.cpu.measure.probes import CHAINS, MULTIPLICATIONS, TILE_MULTIPLICATIONS, probes, steps

TASKS = 5
each_isa = pytest.mark.parametrize("isa", [isa for isa in ISAS if runs_here(isa)], ids=lambda isa: isa.name)


def run(isa, name: str, x: np.ndarray) -> np.ndarray:
    kernels, out = compile_kernels_alone(probes(isa), cpu_target(isa)), np.zeros(TASKS, np.float32)
    kernels(name, x, out)
    return out


@each_isa
def test_reading_adds_everything_up(isa):
    x = np.random.default_rng(0).integers(-8, 8, TASKS * 4096).astype(np.float32)  # small integers: every order of adding is exact
    assert run(isa, "probe_read", x).tolist() == x.reshape(TASKS, -1).sum(axis=1).tolist()


@each_isa
def test_multiplying_runs_every_chain_to_its_end(isa):
    x = np.ones(1024, np.float32)
    expected = isa.lanes * sum(i + steps(isa) for i in range(CHAINS))
    assert run(isa, "probe_float32", x).tolist() == [expected] * TASKS


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_every_instruction_set_has_the_same_work(isa):
    tiles = {"probe_bfloat16": KernelCost("bfloat16", operations_per_row=2 * TILE_MULTIPLICATIONS)} if isa.bf16_tiles else {}
    pairs = {"probe_bfloat16_pairs": KernelCost("bfloat16", operations_per_row=4 * MULTIPLICATIONS)} if isa.bf16_dot else {}
    assert {kernel.name: kernel.cost for kernel in list_kernels(probes(isa))} == tiles | pairs | {
        "probe_read": KernelCost(),
        "probe_float32": KernelCost("float32", operations_per_row=2 * MULTIPLICATIONS),
        "probe_int8": KernelCost("int8", operations_per_row=8 * MULTIPLICATIONS),
    }


@each_isa
def test_multiplying_bytes_runs_every_chain_to_its_end(isa):
    x = np.full(1024, 0x01010101, np.uint32).view(np.float32)
    expected = isa.lanes * sum(i + steps(isa) * 4 * (i + 1) for i in range(CHAINS))
    assert run(isa, "probe_int8", x).tolist() == [np.float32(expected)] * TASKS


@pytest.mark.parametrize("isa", [isa for isa in ISAS if runs_here(isa) and isa.bf16_tiles], ids=lambda isa: isa.name)
def test_multiplying_tiles_runs_every_chain_to_its_end(isa):
    x = np.full(1024, 0x3F803F80, np.uint32).view(np.float32)  # ones
    chains = 6
    each = TILE_MULTIPLICATIONS // (chains * 16 * 16)
    assert each <= 2**24  # sums of ones are exact up to there
    assert run(isa, "probe_bfloat16", x).tolist() == [np.float32(TILE_MULTIPLICATIONS)] * TASKS


@pytest.mark.parametrize("isa", [isa for isa in ISAS if runs_here(isa) and isa.bf16_dot], ids=lambda isa: isa.name)
def test_multiplying_pairs_runs_every_chain_to_its_end(isa):
    x = np.full(1024, 0x3F803F80, np.uint32).view(np.float32)  # ones
    expected = isa.lanes * sum(i + 2 * steps(isa) for i in range(CHAINS))
    assert run(isa, "probe_bfloat16_pairs", x).tolist() == [np.float32(expected)] * TASKS


def test_a_kernel_keeps_what_is_written_on_it():
    kernel = probes(ISAS[0])["probe_read"]
    cost = KernelCost("int8", 1, 2, 3, 4)
    mod = tvm.IRModule({"b": with_cost(kernel, cost), "a": kernel})
    assert [(spec.name, spec.cost) for spec in list_kernels(mod)] == [("a", KernelCost()), ("b", cost)]
