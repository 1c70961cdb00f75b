"""Every kernel of the catalogue, on every instruction set of this machine, executed against float64 over random data."""

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
from cupola.targets.cpu.rows.rotary import lower_rotary
from cupola.targets.ops import Rotary
from cupola.targets.registry import get_target
from cupola.targets.testing.case import IN_TILES, ODD, SMOLLM2
from cupola.targets.testing.catalogue import KERNELS, VARIANTS, AttentionKernel, rotary
from cupola.targets.testing.references import Expected
from tests.targets.harness import same_bits

ISA_OF = {isa.name: isa for isa in ISAS}
CASES = [kernel(sizes) for kernel, sizes in zip((*KERNELS, *VARIANTS), itertools.cycle(ODD), strict=False)]
CASES += [kernel(IN_TILES) for kernel in (*KERNELS, *VARIANTS) if isinstance(kernel, AttentionKernel) and kernel.kv in ("bf16", "int8")]
RUNNABLE = [
    pytest.param(isa.name, index, id=f"{case.name}-{isa.name}")
    for index, case in enumerate(CASES)
    for isa in (case.isas() if index < len(KERNELS) or case.in_tiles else with_own_kernels(multiplies_int8=False))
    if runs_here(isa)
]


@functools.cache
def compiled(isa, index):
    return compile_case(CASES[index], get_target(f"cpu:{isa}"))


@pytest.mark.by_turns
@pytest.mark.parametrize(("isa", "index"), RUNNABLE)
@settings(max_examples=8)
@given(num_tokens=st.integers(1, 140), cut=st.tuples(st.integers(0, 139), st.integers(1, 140)), seed=st.integers(0, 2**32 - 1))
def test_kernel(isa, index, num_tokens, cut, seed):
    case, run, instructions = CASES[index], compiled(isa, index), ISA_OF[isa]
    arrays = case.draw(np.random.default_rng(seed), num_tokens)
    actual = run(arrays)
    error = case.expected(arrays, instructions).error(actual)
    assert error <= 1, f"{case.name} on {isa}: off by {error:.0f} times what is allowed"
    if case.is_batch_invariant(instructions) and all(
        i.is_weight or i.shape[0] == "n" for i in case.inputs
    ):  # a row does not depend on the rows beside it
        part = slice(cut[0] % num_tokens, cut[0] % num_tokens + cut[1])
        assert same_bits(run(arrays | {i.name: arrays[i.name][part] for i in case.inputs if not i.is_weight}), actual[part])


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_threads_do_not_disturb_each_other(index):
    """The same call, again and again, for few tokens, where threads have least between them."""
    case = CASES[index]
    isa = next(isa for isa in case.isas() if runs_here(isa))
    run, arrays = compiled(isa.name, index), case.draw(np.random.default_rng(0), 2)
    expected, matters = run(arrays), np.isfinite(case.expected(arrays, isa).slack)
    assert all(same_bits(run(arrays)[matters], expected[matters]) for _ in range(100))


def test_names_are_unique():
    for sizes in (SMOLLM2, *ODD):
        names = [kernel(sizes).name for kernel in (*KERNELS, *VARIANTS)]
        assert len(set(names)) == len(names)


def test_a_spoiled_kernel_is_found():
    """One that takes sines for cosines."""
    target, case = get_target("cpu"), rotary(ODD[0])
    isa = next(isa for isa in ISAS if isa.name == target.spec.device)

    def swapped(call, builder):
        op = Rotary.match(call)
        return op and lower_rotary(isa, builder.normalize(Rotary(op.x, op.sin, op.cos).emit(call.ty)), builder)

    spoiled = dataclasses.replace(target, kernels=(swapped,))
    assert worst_error(case, compile_case(case, spoiled), isa) > 1000
    assert worst_error(case, compile_case(case, target), isa) <= 1


def test_an_error_counts_in_units_of_what_is_allowed():
    expected = Expected(np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    assert expected.error(np.array([1.05, 2.4])) == pytest.approx(2)
    assert expected.error(np.array([1.0, np.nan])) == np.inf
    assert expected.error(np.array([1.0])) == np.inf
