"""The generic kernels ask nothing of a target: no instruction of its own, and no function that only LLVM knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm

from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import ODD, lower_case
from cupola.targets.testing.catalogue import EmbeddingKernel, LinearKernel, layer_norm, rotary
from tests.targets.toy_target import toy

KERNELS = (
    LinearKernel("w4m", norm=True, bias=True, residual=True, quantize_x=32),
    LinearKernel("bf16", gated=True, activation="gelu"),
    LinearKernel("f16", activation="gelu_tanh"),
    AttentionKernel("int8", window=3, softcap=4.0, joined=True),
    AttentionKernel("bf16", slopes=True, sinks=True),
    EmbeddingKernel("f16"),
    layer_norm,
    rotary,
)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel(ODD[0], toy()).name)
def test_kernels_become_c(kernel):
    target = replace(toy(), tvm=tvm.target.Target({"kind": "c"}))
    mod = lower_case(kernel(ODD[0], target), target)
    kernels = {
        gv.name_hint: f.with_attr("global_symbol", gv.name_hint) for gv, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)
    }
    source = tvm.tirx.build(tvm.IRModule(kernels), target=target.tvm).inspect_source()
    assert all(name in source for name in kernels)
