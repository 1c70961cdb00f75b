"""One row times several panels at once: the numbers of float64, and the bits that the row has beside others."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.kernel_check import compile_case
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.cpu.linear.stream import ABREAST
from cupola.targets.testing.case import Sizes
from cupola.targets.testing.catalogue import LinearKernel
from cupola.targets.testing.experts import ExpertKernel
from cupola.targets.testing.weights import GROUP
from tests.targets.harness import same_bits, target_of

MANY_PANELS = {"heads": 1, "kv_heads": 1, "head_dim": 16, "vocabulary": 32, "block": 16}
LINEAR = Sizes(hidden=808, ffn=32 * (2 * ABREAST + 3) - 7, **MANY_PANELS)  # of two threads one run each, three panels left, the last narrow
EXPERTS = Sizes(hidden=168, ffn=32 * (3 * ABREAST + 1) - 7, **MANY_PANELS)  # three runs of each expert, and a panel


@pytest.fixture
def isa() -> str:
    return next(isa.name for isa in ISAS if runs_here(isa) and isa.batch_invariant)


@pytest.mark.parametrize(
    "kernel",
    [
        LinearKernel("w4", quantize_x=GROUP, norm=True, bias=True, residual=True),
        LinearKernel("w8", quantize_x=GROUP, gated=True, activation="silu"),
        LinearKernel("w4g32-e2m1-bf16", quantize_x=GROUP),
        LinearKernel("w4g32m-s6x256", quantize_x=GROUP),
        LinearKernel("w6g16-s8x256", quantize_x=GROUP),
    ],
    ids=str,
)
def test_a_row_alone_has_the_bits_that_it_has_beside_another(kernel: LinearKernel, isa: str) -> None:
    case = kernel(LINEAR, target_of(isa))
    run = compile_case(case, target_of(isa))
    pair = case.draw(np.random.default_rng(0), 2)
    alone = {name: array[:1].copy() if name in ("x", "residual") else array for name, array in pair.items()}
    found = run(alone)
    assert case.expected(alone).error(found) <= 1
    assert same_bits(found, run(pair)[:1])


@pytest.mark.parametrize("weight", ["w4g32-e2m1-bf16", "w8"])
def test_a_token_has_the_same_bits_alone_and_with_an_expert_picked_twice(weight: str, isa: str) -> None:
    case = ExpertKernel(weight, quantize_x=GROUP, bias=True, is_shared=False)(EXPERTS, target_of(isa))
    run = compile_case(case, target_of(isa))
    arrays = case.draw(np.random.default_rng(0), 1)
    arrays["index"][:] = [4, 0, 2]  # each picked once: abreast
    found = run(arrays)
    assert case.expected(arrays).error(found) <= 1
    for other in ([4, 4, 2], [4, 0, 0]):
        arrays["index"][:] = other
        again = run(arrays)
        assert case.expected(arrays).error(again) <= 1
        kept = [choice for choice, expert in enumerate([4, 0, 2]) if other[choice] == expert]
        assert same_bits(found[:, kept], again[:, kept])
