"""A row has the same bits among any number of rows: alone, in even tiles of few, by panels abreast, and in the tiles of many."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.testing.case import Sizes
from cupola.targets.testing.catalogue import LinearKernel
from cupola.targets.testing.weights import GROUP
from tests.targets.harness import same_bits, target_of

SIZES = Sizes(
    hidden=808, ffn=32 * 19 - 7, heads=1, kv_heads=1, head_dim=16, vocabulary=32, block=16
)  # of two threads runs of 3 and 4 panels
MOST = 400  # several blocks of rows


RUNNABLE = [isa.name for isa in ISAS if runs_here(isa) and isa.int8_dot and isa.batch_invariant and not isa.alike]
CASES = [("w4", isa) for isa in RUNNABLE] + [(form, isa) for form in ("w4g32m-s6x256", "w4g128") for isa in RUNNABLE[:1]]


@pytest.mark.parametrize(("form", "isa"), CASES)
def test_a_row_has_the_same_bits_among_any_number_of_rows(form, isa):
    case = LinearKernel(form, quantize_x=GROUP)(SIZES, target_of(isa))
    run, arrays = compile_case(case, target_of(isa)), case.draw(np.random.default_rng(0), MOST)
    whole = run(arrays)
    assert case.expected(arrays).error(whole) <= 1
    for count in (*range(20), 191, 192, 193):  # a step that ends no prompt has no row of logits
        assert same_bits(run(arrays | {"x": arrays["x"][MOST - count :]}), whole[MOST - count :]), count
