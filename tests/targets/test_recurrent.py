"""Recurrences leave the states that a reference in float64 leaves, in their slots and nowhere else, however tokens are cut into calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cupola.runtime.errors import UnsupportedError
from cupola.targets.cpu.isa import ISAS, runs_here
from cupola.targets.testing.case import ODD, SMOLLM2, Arrays, KernelCase, Sizes
from cupola.targets.testing.recurrent import LAYER, STEPS, RecurrentKernel, run
from tests.targets.harness import Input, compile_one, same_bits, size, target_of

KERNELS = (
    RecurrentKernel("causal_conv", ("bias",)), RecurrentKernel("linear_attention", ("beta",)),
    RecurrentKernel("linear_attention", ("decays_each",)), RecurrentKernel("selective_scan"),
)  # fmt: skip
HERE = next(isa.name for isa in ISAS if runs_here(isa))
CUT = [HERE, "avx2"] if runs_here(next(isa for isa in ISAS if isa.name == "avx2")) else [HERE]


CHUNKS = (1, 2, 1, 17, 16, 3)  # tokens of a call


def compiled(kernel: RecurrentKernel, target: str, sizes: Sizes) -> tuple[KernelCase, Callable[[Arrays], np.ndarray]]:
    """A case, and its function of arrays, whose pool is changed."""
    case, known = kernel(sizes, target_of(target)), {}
    inputs = [
        Input(i.name, tuple(known.setdefault(s, size(s)) if isinstance(s, str) else s for s in i.shape), i.dtype) for i in case.inputs
    ]
    function = compile_one(target, inputs, lambda *given: case.emit(dict(zip((i.name for i in inputs), given, strict=True))))
    return case, lambda arrays: function(*(arrays[i.name] for i in inputs))


def named(kernel: RecurrentKernel) -> str:
    return " ".join((kernel.kind, *kernel.extras))


@pytest.mark.parametrize("target", [HERE, "toy"])
@pytest.mark.parametrize("kernel", KERNELS, ids=named)
def test_states_are_left_for_the_next_call(kernel: RecurrentKernel, target: str) -> None:
    case, run_kernel = compiled(kernel, target, SMOLLM2 if target == HERE else ODD[1])
    for seed, num_tokens in enumerate((1, 3, 40)):
        arrays = case.draw(np.random.default_rng(seed), num_tokens)
        expected, pool = run(arrays, STEPS[kernel.kind])
        out = run_kernel(arrays)
        assert expected.error(out) <= 1
        np.testing.assert_allclose(arrays["pool"][LAYER], pool[LAYER], rtol=1e-4, atol=1e-5)  # NaN where nobody wrote
        np.testing.assert_array_equal(arrays["pool"][1 - LAYER], pool[1 - LAYER].astype("float32"))


@pytest.mark.parametrize("target", CUT)
@pytest.mark.parametrize("kernel", KERNELS, ids=named)
def test_cuts_change_no_bit(kernel: RecurrentKernel, target: str) -> None:
    """A prompt in one call, and in several whose first tokens and tiles are others, beside another sequence, from one slot to another."""
    case, run_kernel = compiled(kernel, target, SMOLLM2)
    count = sum(CHUNKS)
    arrays = case.draw(np.random.default_rng(1), count)
    rows = [i.name for i in case.inputs if i.shape[0] == "n"]
    given = {name: arrays[name] for name in arrays if name not in ("query_starts", "context_lens", "slots", "pool")}

    def call(start: int, stop: int, pool: np.ndarray, other: int, slots: tuple[int, int]) -> np.ndarray:
        """The results of these tokens, behind those of another sequence that brings `other` new ones."""
        part = {name: np.concatenate([given[name][:other], given[name][start:stop]]) if name in rows else given[name] for name in given}
        step = {"query_starts": [0, other, other + stop - start], "context_lens": [other, stop], "slots": [[0, 0], slots]}
        return run_kernel(part | {name: np.array(value, "int32") for name, value in step.items()} | {"pool": pool})[other:]

    pools = [np.zeros((2, 4, *arrays["pool"].shape[2:]), "float32") for _ in range(2)]
    whole, parts, start, slots = call(0, count, pools[0], 0, (2, 2)), [], 0, (2, 3)
    for other, length in enumerate(CHUNKS):
        parts.append(call(start, start + length, pools[1], other, slots))
        start, last, slots = start + length, slots[1], (slots[1], slots[0])
    assert same_bits(np.concatenate(parts), whole)
    assert same_bits(pools[1][:, last], pools[0][:, 2])


def test_a_gpu_says_how_large_a_state_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola.targets.gpu.recurrent.MAX_ROWS", 4)
    with pytest.raises(UnsupportedError, match="linear_attention: keeps a state of .* rows, where a GPU's registers hold 4"):
        compiled(RecurrentKernel("linear_attention"), "softgpu", SMOLLM2)
