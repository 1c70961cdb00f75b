"""Every kernel of the catalogue that WGSL has types for, executed through WebGPU against float64, alone as in company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.runtime.wgpu_native import find_resources, has_adapter
from cupola.targets.registry import get_target
from cupola.targets.testing.case import ODD, Sizes
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, LinearKernel, is_implemented
from tests.targets.harness import same_bits

if find_resources() is None:
    pytest.skip("wgpu-native is not installed: pip install 'cupola[webgpu]'", allow_module_level=True)
pytestmark = pytest.mark.skipif(not has_adapter(), reason="there is no Vulkan here: make vulkan")
TARGET = get_target("webgpu")
WIDE = Sizes(hidden=576, ffn=40, heads=4, kv_heads=2, head_dim=16, vocabulary=70, block=16)  # rows that loads of 16 bytes divide
CASES = [
    kernel(sizes, TARGET)
    for kernel, sizes in zip((*KERNELS, *VARIANTS), itertools.cycle(ODD), strict=False)
    if is_implemented(kernel, TARGET)
]
CASES += [
    LinearKernel("f16", norm=True)(WIDE, TARGET), LinearKernel("w8", norm=True)(WIDE, TARGET),
    LinearKernel("w4", bias=True)(WIDE, TARGET), LinearKernel("w4g64m", gated=True)(WIDE, TARGET),
]  # fmt: skip


@pytest.mark.by_turns
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel(case):
    run = compile_case(case, TARGET)
    arrays = case.draw(np.random.default_rng(0), 9)
    result = run(arrays)
    assert case.expected(arrays).error(result) <= 1
    if all(i.is_weight or i.shape[0] == "n" for i in case.inputs):
        part = slice(3, 5)
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), result[part])
