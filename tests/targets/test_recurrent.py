"""Recurrences leave the states that a reference in float64 leaves, in their slots and nowhere else, however tokens are cut into calls."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.testing.case import ODD, SMOLLM2
from cupola.targets.testing.recurrent import LAYER, STEPS, RecurrentKernel, run
from tests.targets.harness import Input, compile_one, size, target_of

KERNELS = (
    RecurrentKernel("causal_conv", ("bias",)), RecurrentKernel("linear_attention", ("beta",)),
    RecurrentKernel("linear_attention", ("decays_each",)), RecurrentKernel("selective_scan"),
)  # fmt: skip
HERE = next(isa.name for isa in ISAS if runs_here(isa))


@pytest.mark.parametrize("target", [HERE, "toy"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: " ".join((kernel.kind, *kernel.extras)))
def test_states_are_left_for_the_next_call(kernel: RecurrentKernel, target: str) -> None:
    sizes = SMOLLM2 if target == HERE else ODD[1]
    case, known = kernel(sizes, target_of(target)), {}
    inputs = [
        Input(i.name, tuple(known.setdefault(s, size(s)) if isinstance(s, str) else s for s in i.shape), i.dtype) for i in case.inputs
    ]
    function = compile_one(target, inputs, lambda *given: case.emit(dict(zip((i.name for i in inputs), given, strict=True))))
    for seed, num_tokens in enumerate((1, 3, 40)):
        arrays = case.draw(np.random.default_rng(seed), num_tokens)
        expected, pool = run(arrays, STEPS[kernel.kind])
        out = function(*(arrays[i.name] for i in inputs))
        assert expected.error(out) <= 1
        np.testing.assert_allclose(arrays["pool"][LAYER], pool[LAYER], rtol=1e-4, atol=1e-5)  # NaN where nobody wrote
        np.testing.assert_array_equal(arrays["pool"][1 - LAYER], pool[1 - LAYER].astype("float32"))
