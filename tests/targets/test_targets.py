"""The registry, and what can be said of a kernel without running it."""

from __future__ import annotations

import subprocess

import pytest

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import OptionError
from cupola.runtime.machine import missing_features
from cupola.targets import registry
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.cpu.measure.assembly import functions
from cupola.targets.generic.rules import RULES, STATE_RULES
from cupola.targets.native.interface import compile_kernels
from cupola.targets.ops import Argmax, BlockMaxima, Linear, Sample
from cupola.targets.registry import get_target, get_targets, list_targets, register_target, target_names
from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import LinearKernel
from tests.targets.toy_target import TOY, toy


def test_every_target_is_listed_and_found():
    assert [target.name for target in list_targets()] == list(target_names())
    for isa in ISAS:
        spec = get_target(f"cpu:{isa.name}").spec
        assert (spec.name, spec.device) == (f"cpu:{isa.name}", isa.name)


@pytest.mark.parametrize(("name", "fits"), [("cpu", lambda isa: True), ("cpu:batch-invariant", lambda isa: not isa.bf16_tiles)])
def test_a_name_for_this_machine_is_the_best_that_runs_here(name, fits):
    best = next(isa for isa in ISAS if runs_here(isa) and fits(isa))
    spec = get_target(name).spec
    assert (spec.name, spec.features) == (f"cpu:{best.name}", best.features)
    assert missing_features(spec.features) == []


def test_several_targets_with_commas_between_them():
    assert [target.spec.device for target in get_targets("cpu:avx2,cpu:generic")] == ["avx2", "generic"]
    with pytest.raises(OptionError, match="has one twice"):
        get_targets("cpu:avx2,cpu:avx2")
    with pytest.raises(OptionError, match="'' is unknown"):
        get_targets("cpu:avx2,")


def test_an_unknown_target_is_refused_with_the_names():
    with pytest.raises(OptionError, match=r"'cpu:z80' is unknown .*cpu:avx512, .*cpu:avx2"):
        get_target("cpu:z80")


def test_a_target_may_be_registered(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    with pytest.raises(OptionError, match="'toy' is unknown"):
        get_target("toy")
    register_target(TOY)
    assert (target_names()[-1], get_target("toy").spec.device) == ("toy", "toy")
    with pytest.raises(OptionError, match="there is a 'toy' already"):
        register_target(TOY)


def test_targets_are_known_without_tvm():
    """Which takes seconds to import."""
    code = "import sys; from cupola.targets.registry import list_targets; list_targets(); sys.exit('tvm' in sys.modules)"
    assert subprocess.run([*interpreter(), "-c", code], check=False).returncode == 0


def test_a_generic_rule_stands_last():
    """But for attention over a layout that is not the generic one."""
    target = get_target("cpu")
    assert target.rules == (*target.kernels, *RULES)
    assert toy().rules == (*RULES, *STATE_RULES)


def test_optional_operations_are_those_that_a_target_names():
    assert all(get_target(name).implements(op) for name in ("cpu", "softgpu") for op in (BlockMaxima, Argmax, Sample))
    assert toy().implements(Linear) and not toy().implements(BlockMaxima)


def loops_of(kernel, isa, num_multiply_adds):
    """The innermost loops with that many multiply-adds, each with its instructions by class."""
    target = get_target(f"cpu:{isa}")
    library = compile_kernels(lower_case(kernel(SMOLLM2, target), target), target)
    found = functions(library.inspect_source("asm"), "x86_64")
    return [loop for function in found for loop in function.loops if loop["fma"] == num_multiply_adds]


@pytest.mark.parametrize("weight", ["f32", "f16", "bf16"])
def test_the_full_tile_of_a_linear_stays_in_registers(weight):
    loops = loops_of(LinearKernel(weight), "avx512", 24)  # 12 rows × 2 vectors
    assert [loop["spill"] for loop in loops] == [0]


def test_the_prefill_tile_of_attention_stays_in_registers():
    loops = loops_of(AttentionKernel("f32", joined=True), "avx512", 24)  # 12 rows × 2 vectors
    assert len(loops) >= 3  # scores, and values in two halves
    assert all(loop["spill"] == 0 for loop in loops)
