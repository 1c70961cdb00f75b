"""Sums of int8 products that are read as floats have the bits of those that are converted."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.cpu.linear import int8
from cupola.targets.testing.case import KernelCase, Sizes
from cupola.targets.testing.catalogue import LinearKernel
from cupola.targets.testing.weights import GROUP
from tests.targets.harness import same_bits, target_of

SIZES = Sizes(hidden=512, ffn=40, heads=1, kv_heads=1, head_dim=16, vocabulary=32, block=16)
NUM_TOKENS = (1, 30)  # few rows, and many


@pytest.fixture
def isa() -> str:
    found = [isa.name for isa in ISAS if runs_here(isa) and isa.int8_dot == "vpdpbusd" and isa.batch_invariant and not isa.alike]
    return found[0] if found else pytest.skip("no instruction set of this machine multiplies and sums bytes in one instruction")


def results(isa: str, case: KernelCase, rows: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    int8._build.cache_clear()
    run = compile_case(case, target_of(isa))
    int8._build.cache_clear()
    return [run(arrays) for arrays in rows]


def inputs(case: KernelCase) -> list[dict[str, np.ndarray]]:
    """At random, and the largest sums that there are, of either sign."""
    drawn = [case.draw(np.random.default_rng(count), count) for count in NUM_TOKENS]
    low, high = (-128, 127) if drawn[0]["weight"].dtype == np.int8 else (0, 63)
    extremes = []
    for arrays in drawn:
        for code in (low, high):
            extremes.append({**arrays, "weight": np.full_like(arrays["weight"], code), "x": np.ones_like(arrays["x"])})
    return [*drawn, *extremes]


@pytest.mark.parametrize("weight", ["w8", "w6g16-s8x256"])
def test_a_sum_that_is_read_as_a_float_has_the_bits_of_one_that_is_converted(weight, isa, monkeypatch):
    case = LinearKernel(weight, quantize_x=GROUP)(SIZES, target_of(isa))
    rows = inputs(case)
    read = results(isa, case, rows)
    monkeypatch.setattr(int8.Int8Product, "reads_as_floats", property(lambda product: False))
    converted = results(isa, case, rows)
    assert all(same_bits(a, b) for a, b in zip(read, converted, strict=True))
    for arrays, found in zip(rows, read, strict=True):
        assert case.expected(arrays).error(found) <= 1
