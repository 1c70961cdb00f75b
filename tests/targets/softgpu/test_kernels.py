"""Every kernel of the catalogue, executed as CUDA's and as Metal's against float64: in several orders of threads, alone as in company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD, Sizes
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, LinearKernel, is_implemented
from tests.targets.harness import same_bits

TARGETS = [get_target(name) for name in ("softgpu", "softmetal")]
WIDE = Sizes(hidden=576, ffn=40, heads=4, kv_heads=2, head_dim=16, vocabulary=70, block=16)  # rows that loads of 16 bytes divide
CASES = [
    pytest.param(case := kernel(sizes, target), target, id=f"{target.spec.name} {case.name}")
    for target in TARGETS
    for kernel, sizes in zip((*KERNELS, *VARIANTS), itertools.cycle(ODD), strict=False)
    if is_implemented(kernel, target)
]
LAYERS = [
    LinearKernel("f32", norm=True), LinearKernel("f16", norm=True), LinearKernel("bf16", residual=True), LinearKernel("w8", norm=True),
    LinearKernel("w4", bias=True), LinearKernel("w4g64m", gated=True),
]  # fmt: skip


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
    if all(i.is_weight or i.shape[0] == "n" for i in case.inputs):
        part = slice(3, 5)
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), results[0][part])


@pytest.mark.by_turns
@pytest.mark.parametrize("target", ["softgpu", "softgpu:sm_90a", "softmetal"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer(WIDE, TARGETS[0]).name)
def test_layers_of_any_number_of_rows(layer, target, monkeypatch):
    """One kernel takes few rows and another one many: a row has the same bits in all of them."""
    case = layer(WIDE, get_target(target))
    run = compile_case(case, get_target(target))
    arrays = case.draw(np.random.default_rng(0), 150)
    whole = run(arrays)
    assert case.expected(arrays).error(whole) <= 1
    for count, seed in ((1, "0"), (5, "1"), (13, "7"), (40, "7"), (150, "7")):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        part = slice(150 - count, 150)
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), whole[part])
