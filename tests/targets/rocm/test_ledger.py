"""The ledger of AMD's GPUs: kernels change only together with it, none spills, and weights are read 16 bytes at a time."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cupola.targets.ledger import differences, read_ledger
from cupola.targets.registry import get_target
from cupola.targets.rocm.ledger import LEDGER, assembly_of, kernel_figures, make_ledger, measure
from cupola.targets.rocm.target import ARCHITECTURES
from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import SMOLLM2
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, LinearKernel, is_implemented

RECORDED = read_ledger(LEDGER)


@pytest.mark.by_turns
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_cost_what_the_ledger_says(architecture: str) -> None:
    changed = differences({key: figures for key, figures in RECORDED.items() if key[1] == architecture}, make_ledger([architecture]))
    assert not changed, "\n".join(["kernels changed; if that is meant, `make ledger` and commit it:", *changed])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills(architecture: str) -> None:
    lines = {name: line for (name, device), line in RECORDED.items() if device == architecture}
    assert len(lines) > 40
    assert not {name: line for name, line in lines.items() if line["spill_bytes"]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_matrix_units_multiply_layers_and_prompts_attention(architecture: str) -> None:
    """But for weights, scales and pages of float32, of which they would lose bits."""
    target = get_target(f"rocm:{architecture}")
    kernels = [kernel for kernel in (*KERNELS, *VARIANTS) if is_implemented(kernel, target)]
    layers = {each(SMOLLM2, target).name for each in kernels if isinstance(each, LinearKernel) and "f32" not in each.weight}
    attention = {each(SMOLLM2, target).name for each in kernels if isinstance(each, AttentionKernel) and each.kv != "f32"}
    assert len(layers) >= 10 and len(attention) >= 5
    assert [name for name in layers | attention if not RECORDED[name, architecture]["matrix_instructions"]] == []


@pytest.mark.by_turns
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("weight", ["f16", "bf16", "w8", "w4", "w4m", "w4g64", "w4g128m"])
def test_lanes_load_16_bytes_of_a_weight_at_once(weight: str, architecture: str) -> None:
    """The only narrower loads are of groups' scales, two of 16 bits; x comes 16 bytes at a time too."""
    target = get_target(f"rocm:{architecture}")
    assembly = assembly_of([LinearKernel(weight)(replace(SMOLLM2, hidden=640), target)], target)
    loads = set(re.findall(r"\b(?:global|buffer|flat)_load_(\w+)", assembly))
    wide = {"dwordx4", "b128"} & loads
    scales = {"dword", "b32"}
    assert len(wide) == 1
    assert loads - wide <= (scales if weight.startswith("w") else set())


def test_figures_are_read_off_an_assembly() -> None:
    assembly = """
spoiled:                                ; @spoiled
	global_load_dwordx4 v[4:7], v1, s[6:7]
	global_load_dword v3, v1, s[6:7]
	buffer_load_b128 v[4:7], v1, s[6:7], 0
	v_mfma_f32_16x16x16_f16 a[0:3], v[4:5], v[6:7], a[0:3]
	v_fma_f32 v8, v3, s0, -v6
.Lfunc_end0:
after:                                ; @after
	v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]
.Lfunc_end1:
---
amdhsa.kernels:
  - .agpr_count:     4
    .args:
      - .name:           no_kernel
        .vgpr_count:     77
    .group_segment_fixed_size: 256
    .name:           spoiled
    .private_segment_fixed_size: 20
    .sgpr_spill_count: 2
    .vgpr_count:     128
    .vgpr_spill_count: 5
    .wavefront_size: 64
  - .args:           []
    .group_segment_fixed_size: 0
    .name:           after
    .private_segment_fixed_size: 0
    .sgpr_spill_count: 0
    .vgpr_count:     24
    .vgpr_spill_count: 0
    .wavefront_size: 32
amdhsa.target:   amdgcn-amd-amdhsa--gfx942
amdhsa.version:
  - 1
  - 2
"""
    assert kernel_figures(assembly) == {
        "spoiled": {
            "registers": 128, "spill_bytes": 20, "scalar_spills": 2, "shared_bytes": 256, "wide_loads": 2, "matrix_instructions": 1,
            "wavefront_size": 64,
        },
        "after": {
            "registers": 24, "spill_bytes": 0, "scalar_spills": 0, "shared_bytes": 0, "wide_loads": 0, "matrix_instructions": 1,
            "wavefront_size": 32,
        },
    }  # fmt: skip


def test_a_spoiled_kernel_is_worse_than_its_line() -> None:
    """A row's length that 16 bytes do not divide is read element by element."""
    target = get_target("rocm:gfx942")
    case = LinearKernel("f32")(SMOLLM2, target)
    [spoiled] = measure([LinearKernel("f32")(replace(SMOLLM2, hidden=577), target)], target)
    [change] = differences({(case.name, "gfx942"): RECORDED[case.name, "gfx942"]}, {(case.name, "gfx942"): spoiled})
    assert re.match(r"(better|mixed|worse): .*wide_loads 5 → 0", change)
