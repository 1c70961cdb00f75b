"""Experts on CPUs: what nobody goes to is not read, however tokens are spread."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.testing.case import ODD
from cupola.targets.testing.experts import CHOICES, NUM_EXPERTS, ExpertKernel
from tests.targets.harness import RUNNABLE, target_of


@pytest.mark.parametrize("kernel", [ExpertKernel("f32", gated=True, activation="silu"), ExpertKernel("f16", is_shared=False)])
def test_weights_of_experts_that_nobody_goes_to_are_not_read(kernel: ExpertKernel) -> None:
    target = target_of(RUNNABLE[0])
    case = kernel(ODD[1], target)
    run = compile_case(case, target)
    for num_tokens, picked in ((1, [3]), (5, [0, 4]), (130, [2])):
        arrays = case.draw(np.random.default_rng(0), num_tokens)
        arrays["index"] = np.resize(np.array(picked, "int32"), arrays["index"].shape)
        np.split(arrays["weight"], NUM_EXPERTS)[1][:] = np.nan
        assert case.expected(arrays).error(run(arrays)) <= 1


@pytest.mark.by_turns
def test_any_number_of_tokens_may_go_to_an_expert() -> None:
    """In tiles, where this machine has some: just too few for them, just enough, several blocks of rows."""
    target = target_of(ISAS[0].name if runs_here(ISAS[0]) else RUNNABLE[0])
    case = ExpertKernel("w4", gated=True, activation="silu", quantize_x=32)(ODD[0], target)
    run = compile_case(case, target)
    for counts in ((16, 17, 0, 3, 0), (300, 0, 33, 0, 0), (0, 0, 0, 0, 516)):
        arrays = case.draw(np.random.default_rng(0), sum(counts) // CHOICES)
        picked = np.repeat(np.arange(NUM_EXPERTS, dtype="int32"), counts)
        arrays["index"] = np.random.default_rng(1).permutation(picked).reshape(-1, CHOICES)
        assert case.expected(arrays).error(run(arrays)) <= 1


@pytest.mark.parametrize("weight", ["w4", "f32"])
def test_there_may_be_no_tokens(weight: str) -> None:
    """As in the last layer where a step computes a prompt's beginning: nothing of it is asked for."""
    target = target_of(RUNNABLE[0])
    case = ExpertKernel(weight, quantize_x=32 if weight == "w4" else 0)(ODD[0], target)
    run, arrays = compile_case(case, target), case.draw(np.random.default_rng(0), 1)
    wanted = run(arrays)
    for name in ("x", "index"):
        arrays[name] = arrays[name][:0].copy()
    assert run(arrays).shape == (0, *wanted.shape[1:])
