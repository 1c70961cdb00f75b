"""How Arm's instruction sets multiply int8, on processors that qemu plays: against float64, and with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD, KernelFactory
from cupola.targets.testing.catalogue import LinearKernel
from cupola.targets.testing.experts import ExpertKernel
from tests.targets.emulated import ARM_PYTHON, emulator
from tests.targets.emulated_kernels import run_emulated

PROCESSORS = {"i8mm": "max", "dotprod": "neoverse-n1", "neon": "cortex-a72"}  # which have just that
NUM_TOKENS = (1, 5, 17, 50, 203)  # one row, a few; pairs and a single row; tiles of all sizes; two blocks of rows
CASES = [
    LinearKernel("w4", quantize_x=32),  # codes with a zero
    pytest.param(LinearKernel("w4m", quantize_x=32, gated=True, norm=True, activation="silu"), marks=pytest.mark.by_turns),
    pytest.param(LinearKernel("w8", quantize_x=32, residual=True, dtype="bf16"), marks=pytest.mark.by_turns),  # with a sign
    pytest.param(LinearKernel("w6g16-s8x256", quantize_x=32), marks=pytest.mark.by_turns),  # two groups a slice
    pytest.param(ExpertKernel("w4", gated=True, activation="silu", quantize_x=32), marks=pytest.mark.by_turns),  # rows that are picked
]


@pytest.mark.parametrize("kernel", CASES, ids=str)
def test_products_are_right_and_have_the_same_bits(kernel: KernelFactory, tmp_path: Path) -> None:
    emulator("aarch64", "max", ARM_PYTHON)  # before anything is compiled
    case = kernel(ODD[0], get_target("cpu:i8mm@linux"))
    arrays = [case.draw(np.random.default_rng(n), n) for n in NUM_TOKENS]
    first, *others = (run_emulated(case, isa, processor, arrays, tmp_path / isa) for isa, processor in PROCESSORS.items())
    for given, found in zip(arrays, first, strict=True):
        assert case.expected(given).error(found) <= 1
    for other in others:
        assert [found.tobytes() for found in other] == [found.tobytes() for found in first]
