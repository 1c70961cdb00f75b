"""The cost of CUDA's kernels may change only together with the ledger's lines; some of it must hold whatever nvcc compiles them."""

from __future__ import annotations

import pytest

from cupola.targets.cuda import ledger
from cupola.targets.ledger import differences, read_compiler, read_ledger
from cupola.targets.registry import get_target
from cupola.targets.testing.case import SMOLLM2
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, LinearKernel, is_implemented

PTX = """
.visible .entry one(
\t.param .u64 one_param_0
)
{
\tld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
\tld.global.v2.u64 {%rd2, %rd3}, [%rd1];
\tld.global.v2.u32 {%r5, %r6}, [%rd1];
\tld.global.L1::no_allocate.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];
\tld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r7];
\tcp.async.cg.shared.global [%r8], [%rd1], 16;
\tcp.async.ca.shared.global [%r8], [%rd1], 8;
\tcp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%rd1, {%r1, %r2}], [%r9];
{
\tmul.f16x2 %r1, %r2, %r3;
}
\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f2, %f3, %f4};
\twgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd1, %rd2, 1, 1, 1, 0, 0;
\twgmma.wait_group.sync.aligned 0;
}
"""
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) one(const float4 *x, float *y, int n) {
  float a[96];
  for (int i = 0; i < 96; ++i) a[i] = x[threadIdx.x * 96 + i].x;
  for (int k = 0; k < n; ++k)
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i + 5) % 96] + k;
  float sum = 0;
  for (int i = 0; i < 96; ++i) sum += a[i];
  y[threadIdx.x] = sum;
}
"""


@pytest.mark.by_turns
@pytest.mark.parametrize("architecture", ledger.ARCHITECTURES)
def test_kernels_cost_what_the_ledger_says(architecture: str) -> None:
    recorded = {key: figures for key, figures in read_ledger(ledger.LEDGER).items() if key[1] == architecture}
    made = ledger.make_ledger([architecture])
    if read_compiler(ledger.LEDGER) != ledger.nvcc_version():  # then what does not depend on the compiler's version
        recorded, made = ({key: traits(figures) for key, figures in each.items()} for each in (recorded, made))
    changed = differences(recorded, made)
    assert not changed, "\n".join(["kernels changed; if that is meant, `make ledger` and commit it:", *changed])


def traits(figures: dict[str, int]) -> dict[str, int]:
    """1 for a kernel that spills, that reads 16 bytes at once, that multiplies matrices."""
    return {name: int(figures[name] > 0) for name in ("spill_bytes", "wide_loads", "matrix_instructions")}


def test_no_kernel_spills() -> None:
    recorded = read_ledger(ledger.LEDGER)
    assert {architecture for _, architecture in recorded} == set(ledger.ARCHITECTURES)
    assert [key for key, figures in recorded.items() if figures["spill_bytes"]] == []
    assert all(0 < figures["registers"] <= 255 for figures in recorded.values())


def test_linear_layers_read_16_bytes_at_once() -> None:
    target = get_target("cuda:sm_80")
    linear = [kernel for kernel in (*KERNELS, *VARIANTS) if isinstance(kernel, LinearKernel) and is_implemented(kernel, target)]
    names = {kernel(SMOLLM2, target).name for kernel in linear}
    assert len(names) > 10
    assert [key for key, figures in read_ledger(ledger.LEDGER).items() if key[0] in names and not figures["wide_loads"]] == []


def test_instructions_are_counted() -> None:
    bodies = ledger.entries(PTX + PTX.replace("one", "two").replace("mma", "fma"))
    assert bodies.keys() == {"one", "two"}
    figures = ledger._figures(bodies["one"], "8", "4", "72", ", used 1 barriers, 4096 bytes smem, 400 bytes cmem[0]")
    assert figures == {"registers": 72, "spill_bytes": 12, "shared_bytes": 4096, "wide_loads": 5, "matrix_instructions": 2}


def test_a_spoiled_kernel_shows() -> None:
    figures = ledger.measure(SPILLING, "sm_80")["one"]
    assert figures["registers"] <= 64 and figures["spill_bytes"] > 0
