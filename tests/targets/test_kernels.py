"""Every kernel of the catalogue, on every instruction set of this machine and on the toy, executed against float64 over random data."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.compiler.kernel_check import compile_case, worst_error
from cupola.targets.cpu.isa import ISAS, runs_here, with_own_kernels
from cupola.targets.generic.rows import lower_rotary
from cupola.targets.ops import Rotary
from cupola.targets.testing.attention import AttentionKernel
from cupola.targets.testing.case import IN_TILES, ODD, SMOLLM2
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, EmbeddingKernel, LinearKernel, is_implemented, rotary
from cupola.targets.testing.references import Expected
from tests.targets.harness import same_bits, target_of

TOY = "toy"  # whose kernels are the generic ones
# Formats that CPU kernels do not pack: the generic ones stand in for them.
UNPACKED = (
    LinearKernel("w4g24"), LinearKernel("w8g20", quantize_x=16, norm=True), LinearKernel("w3g24m", gated=True, quantize_x=32),
    EmbeddingKernel("w4g24m-bf16"), LinearKernel("w8g24-e4m3-f32"), LinearKernel("w4g24-e2m1-bf16", quantize_x=32),
    EmbeddingKernel("w4g24-nf4"), EmbeddingKernel("w4g24-iq4nl"), LinearKernel("w5g24m-s6x96", quantize_x=32, gated=True, norm=True),
    LinearKernel("w7g12-s8x48"), EmbeddingKernel("w3g24-iq2-s6x48-f32"),
)  # fmt: skip
FACTORIES = [
    (kernel, sizes)
    for kernel, sizes in zip((*KERNELS, *VARIANTS, *UNPACKED), itertools.cycle(ODD), strict=False)
    if is_implemented(kernel, target_of(ISAS[0].name)) or is_implemented(kernel, target_of(TOY))
]
IN_BF16 = [kernel for kernel in (*KERNELS, *VARIANTS) if isinstance(kernel, AttentionKernel) and kernel.kv in ("bf16", "int8")]
FACTORIES += [(kernel, IN_TILES) for kernel in IN_BF16]


@functools.cache
def target(name):
    return target_of(name)


@functools.cache
def case_of(name, index):
    kernel, sizes = FACTORIES[index]
    return kernel(sizes, target(name))


def targets_of(index):
    """Those that this machine runs and that have kernels of their own for the case, the toy last."""
    kernel, _ = FACTORIES[index]
    case = case_of(ISAS[0].name, index)
    all_of_them = kernel in KERNELS or case.may_use_bf16
    isas = with_own_kernels(case.multiplies_int8 and all_of_them, in_bf16=case.may_use_bf16)
    if kernel in UNPACKED:
        isas = [next(isa for isa in ISAS if runs_here(isa) and isa.batch_invariant)]
    isas = [isa for isa in isas if runs_here(isa) and is_implemented(kernel, target(isa.name))]
    return [isa.name for isa in isas] + [TOY] * is_implemented(kernel, target(TOY))


NAMES = [case_of(TOY, index).name for index in range(len(FACTORIES))]
TURNS = [pytest.mark.by_turns(together=f"kernel {name}") for name in NAMES]
RUNNABLE = [
    pytest.param(name, index, id=f"{NAMES[index]}-{name}", marks=TURNS[index])
    for index in range(len(FACTORIES))
    for name in targets_of(index)
]


@functools.cache
def compiled(name, index):
    return compile_case(case_of(name, index), target(name))


@pytest.mark.parametrize(("name", "index"), RUNNABLE)
@settings(max_examples=8)
@given(num_tokens=st.integers(1, 140), cut=st.tuples(st.integers(0, 139), st.integers(1, 140)), seed=st.integers(0, 2**32 - 1))
def test_kernel(name, index, num_tokens, cut, seed):
    case, run = case_of(name, index), compiled(name, index)
    arrays = case.draw(np.random.default_rng(seed), num_tokens)
    actual = run(arrays)
    error = case.expected(arrays).error(actual)
    assert error <= 1, f"{case.name} on {name}: off by {error:.0f} times what is allowed"
    if case.batch_invariant and all(i.is_weight or i.shape[0] == "n" for i in case.inputs):
        # a row does not depend on the rows beside it
        part = slice(cut[0] % num_tokens, cut[0] % num_tokens + cut[1])
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), actual[part])


@pytest.mark.parametrize("index", [pytest.param(index, id=name, marks=TURNS[index]) for index, name in enumerate(NAMES)])
def test_threads_do_not_disturb_each_other(index):
    """The same call, again and again, for few tokens, where threads have least between them."""
    name = targets_of(index)[0]
    case, run = case_of(name, index), compiled(name, index)
    arrays = case.draw(np.random.default_rng(0), 2)
    expected, matters = run(arrays), np.isfinite(case.expected(arrays).slack)
    assert all(same_bits(run(arrays)[matters], expected[matters]) for _ in range(100))


def test_names_are_unique():
    for sizes in (SMOLLM2, *ODD):
        names = [kernel(sizes, target(TOY)).name for kernel in (*KERNELS, *VARIANTS)]
        assert len(set(names)) == len(names)


def test_a_spoiled_kernel_is_found():
    """One that takes sines for cosines."""
    whole = target(TOY)
    case = rotary(ODD[0], whole)

    def swapped(call, builder):
        op = Rotary.match(call)
        return op and lower_rotary(builder.normalize(Rotary(op.x, op.sin, op.cos).emit(call.ty)), builder)

    spoiled = dataclasses.replace(whole, kernels=(swapped,))
    assert worst_error(case, compile_case(case, spoiled)) > 1000
    assert worst_error(case, compile_case(case, whole)) <= 1


def test_an_error_counts_in_units_of_what_is_allowed():
    expected = Expected(np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    assert expected.error(np.array([1.05, 2.4])) == pytest.approx(2)
    assert expected.error(np.array([1.0, np.nan])) == np.inf
    assert expected.error(np.array([1.0])) == np.inf
