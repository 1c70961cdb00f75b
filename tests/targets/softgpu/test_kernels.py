"""Every kernel of the catalogue, executed as CUDA's, as AMD's and as Metal's against float64: in several orders of threads, alone as in
company. AMD's two kinds of wavefronts take them by turns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, is_implemented
from tests.targets.harness import same_bits

AMD = ["softrocm:gfx942"] * 2 + ["softrocm:gfx1100"] * 2  # each takes both of ODD
TARGETS = [[get_target(name) for name in names] for names in (["softgpu"], ["softmetal"], AMD)]
CASES = [
    pytest.param(case := kernel(sizes, target), target, id=f"{target.spec.name} {case.name}")
    for targets in TARGETS
    for kernel, sizes, target in zip((*KERNELS, *VARIANTS), itertools.cycle(ODD), itertools.cycle(targets), strict=False)
    if is_implemented(kernel, target)
]


@pytest.mark.by_turns
@pytest.mark.parametrize(("case", "target"), CASES)
def test_kernel(case, target, monkeypatch):
    run, results = compile_case(case, target), []
    arrays = case.draw(np.random.default_rng(0), 9)
    for seed in ("0", "1", "7"):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        results.append(run(arrays))
    assert case.expected(arrays).error(results[0]) <= 1
    matters = np.isfinite(case.expected(arrays).slack)
    assert all(same_bits(result[matters], results[0][matters]) for result in results)
    if case.batch_invariant and all(i.is_weight or i.shape[0] == "n" for i in case.inputs):
        part = slice(3, 5)
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), results[0][part])
