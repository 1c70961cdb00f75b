"""Layers of GPUs, executed on a CPU against float64: one kernel takes few rows and another one many."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.registry import get_target
from cupola.targets.testing.case import Sizes
from cupola.targets.testing.catalogue import LinearKernel
from tests.targets.harness import same_bits

WIDE = Sizes(hidden=576, ffn=40, heads=4, kv_heads=2, head_dim=16, vocabulary=70, block=16)  # rows that loads of 16 bytes divide
LAYERS = [
    LinearKernel("f32", norm=True), LinearKernel("f16", norm=True), LinearKernel("bf16", residual=True), LinearKernel("w8", norm=True),
    LinearKernel("w4", bias=True), LinearKernel("w4g64m", gated=True),
    LinearKernel("w8g64-e4m3", norm=True),
]  # fmt: skip


@pytest.mark.by_turns
@pytest.mark.parametrize("target", ["softgpu", "softgpu:sm_90a", "softmetal", "softrocm:gfx942", "softrocm:gfx1100"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer(WIDE, get_target("softgpu")).name)
def test_layers_of_any_number_of_rows(layer, target, monkeypatch):
    """A row has the same bits in all of them, or in all few and in all others."""
    case = layer(WIDE, get_target(target))
    run = compile_case(case, get_target(target))
    arrays = case.draw(np.random.default_rng(0), 150)
    whole = run(arrays)
    assert case.expected(arrays).error(whole) <= 1

    def of(rows: slice) -> np.ndarray:
        return run(arrays | {i.name: arrays[i.name][rows] for i in case.inputs if not i.is_weight})

    few = get_target(target).abilities.few_rows  # which may have other bits
    alike = np.concatenate([whole[: 150 - few], of(slice(150 - few, 150))]) if few else whole
    assert case.expected(arrays).error(alike) <= 1
    for count, seed in ((1, "0"), (5, "1"), (13, "7"), (40, "7"), (150, "7")):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        part = slice(150 - count, 150)
        assert same_bits(of(part), (alike if count <= few else whole)[part])
