"""Kernels that AMD's GPUs have and NVIDIA's do not, executed by softgpu below HIP's runtime against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.gpu.cuda import HIP_RUNTIME
from cupola.targets.registry import get_target
from cupola.targets.softgpu.build import softgpu_target
from cupola.targets.testing.case import ODD, Sizes
from cupola.targets.testing.catalogue import EmbeddingKernel, LinearKernel
from tests.targets.harness import same_bits

ROCM = get_target("rocm:gfx942")
TARGET = replace(softgpu_target("softgpu-hip", "sm_80", HIP_RUNTIME), kernels=ROCM.kernels, abilities=ROCM.abilities)
WIDE = Sizes(hidden=576, ffn=40, heads=4, kv_heads=2, head_dim=16, vocabulary=70, block=16)  # rows that loads of 16 bytes divide
LAYERS = (
    LinearKernel("f32", bias=True, residual=True, activation="gelu"), LinearKernel("f16", norm=True),
    LinearKernel("bf16", residual=True, in_place=True, activation="relu"), LinearKernel("f16", gated=True, activation="silu"),
    LinearKernel("w8", bias=True, residual=True, activation="gelu"), LinearKernel("w4"),
    LinearKernel("w4m", gated=True, norm=True, activation="silu"), LinearKernel("w4g64m", residual=True, in_place=True),
    LinearKernel("w8g64-e4m3", residual=True), LinearKernel("w4-nf4", bias=True),
)  # fmt: skip
CASES = [kernel(sizes, TARGET) for kernel in LAYERS for sizes in (WIDE, ODD[1])]
CASES += [EmbeddingKernel(weight)(WIDE, TARGET) for weight in ("f16", "w4m", "w8")]


@pytest.mark.by_turns
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel(case, monkeypatch):
    run, results = compile_case(case, TARGET), []
    arrays = case.draw(np.random.default_rng(0), 9)
    for seed in ("0", "1", "7"):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        results.append(run(arrays))
    assert case.expected(arrays).error(results[0]) <= 1
    assert all(same_bits(result, results[0]) for result in results)
    part = slice(3, 5)
    assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), results[0][part])
