"""Results that a step leaves for the next one: its inputs, and the argmax of steps before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import tvm
from tvm import relax

from cupola.compiler.native_function import compile_kernels_alone
from cupola.runtime.artifact.inputs import DRAW_COLUMNS, MAX_STEPS, MAXIMA_BLOCK, UNIFORMS
from cupola.targets.ops import Argmax
from tests.targets.harness import GPU, RUNNABLE, Input, module, size, target_of

WIDTH, BLOCK = 2 * MAXIMA_BLOCK + 9, 4
NAMES = ("tokens", "positions", "slots")


@pytest.fixture(scope="module", params=[*RUNNABLE, GPU])
def kernel(request) -> Callable[..., None]:
    return build(request.param, 1)


def build(isa: str, num_groups: int) -> Callable[..., None]:
    n, b, r, w = (size(name) for name in "nbrw")
    inputs = [Input("logits", (r, WIDTH)), Input("maxima", (r, 3)), *(Input(name, (n,), "int32") for name in NAMES)]
    inputs += [Input("context_lens", (b,), "int32"), Input("block_tables", (b, w), "int32")]
    for i in range(1, num_groups):
        inputs += [Input(f"slots_{i}", (n,), "int32"), Input(f"block_tables_{i}", (b, size(f"w{i}")), "int32")]
    target = target_of(isa)

    def emit(*tensors: relax.Var) -> relax.Call:
        return Argmax(*tensors[:7], BLOCK, tensors[7:]).call()

    lowered = module(target, inputs, emit)
    [(name, func)] = [(gv.name_hint, f) for gv, f in lowered.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    return partial(compile_kernels_alone(tvm.IRModule({name: func}), target), name)


class Step:
    """The kernel's arguments, for sequences of these lengths that bring one token each."""

    def __init__(self, lengths: list[int], num_rows: int | None = None, num_more: int = 0) -> None:
        random, count = np.random.default_rng(len(lengths)), len(lengths)
        self.lengths = np.array(lengths, "int32")
        self.tables = random.permutation(6 * count).astype("int32").reshape(count, 6)
        self.logits = random.normal(size=(count if num_rows is None else num_rows, WIDTH)).astype("float32")
        positions = np.concatenate([self.lengths - 1, np.zeros(num_more, "int32")])
        self.given = {
            "tokens": np.full(count + num_more, 77, "int32"),
            "positions": positions,
            "slots": np.full(count + num_more, 99, "int32"),
            "context_lens": self.lengths,
        }
        self.held = {name: array.copy() for name, array in self.given.items()}
        self.out = np.arange(MAX_STEPS * len(self.logits), dtype="int32").reshape(MAX_STEPS, -1)

    def run(self, kernel: Callable[..., None], times: int = 1, further: Sequence[np.ndarray] = ()) -> None:
        maxima = np.stack([self.logits[:, at : at + MAXIMA_BLOCK].max(axis=1) for at in range(0, WIDTH, MAXIMA_BLOCK)], axis=1)
        for _ in range(times):
            kernel(self.logits, maxima, *self.held.values(), self.tables, *further, self.out)

    def holds(self, **expected: np.ndarray) -> bool:
        return all((self.held[name] == array).all() for name, array in {**self.given, **expected}.items())


def test_each_sequence_goes_on_by_one(kernel):
    step = Step([1, 4, 5, 7, 20, 23])
    step.run(kernel)
    positions = step.lengths
    slots = np.take_along_axis(step.tables, positions[:, None] // BLOCK, axis=1)[:, 0] * BLOCK + positions % BLOCK
    assert step.holds(tokens=step.logits.argmax(axis=1), positions=positions, slots=slots, context_lens=positions + 1)


@pytest.mark.parametrize("isa", [*RUNNABLE, GPU])
def test_each_state_group_has_slots_of_its_own(isa):
    kernel, step = build(isa, 3), Step([1, 4, 5, 7, 20, 23])
    tables = [np.random.default_rng(i).permutation(len(step.lengths) * 7).astype("int32").reshape(-1, 7) for i in range(2)]
    slots = [np.full(len(step.lengths), 99, "int32") for _ in tables]
    step.run(kernel, further=[tensor for pair in zip(slots, tables, strict=True) for tensor in pair])
    index = step.lengths[:, None]
    for table, found in [(step.tables, step.held["slots"]), *zip(tables, slots, strict=True)]:
        expected = np.take_along_axis(table, index // BLOCK, axis=1) * BLOCK + index % BLOCK
        assert found.tolist() == expected[:, 0].tolist()


def test_where_a_token_goes_does_not_depend_on_its_position(kernel):
    """Tables may show less of a sequence than it had tokens."""
    step = Step([5, 9])
    step.held["positions"] = np.array([105, 1009], "int32")
    step.run(kernel)
    assert step.holds(
        tokens=step.logits.argmax(axis=1),
        positions=np.array([106, 1010]),
        slots=np.array([step.tables[0, 1] * BLOCK + 1, step.tables[1, 2] * BLOCK + 1]),
        context_lens=step.lengths + 1,
    )


def test_what_was_chosen_moves_up(kernel):
    step = Step([3, 9])
    step.run(kernel)
    before = np.arange(2 * MAX_STEPS).reshape(MAX_STEPS, 2)
    assert step.out.tolist() == [*before[1:].tolist(), step.logits.argmax(axis=1).tolist()]
    step.run(kernel, MAX_STEPS - 2)
    assert step.out[0].tolist() == before[-1].tolist()


@pytest.mark.parametrize("isa", [*RUNNABLE, GPU])
def test_chosen_tokens_are_taken_and_their_numbers_move_up(isa: str) -> None:
    n, b, r, w = (size(name) for name in "nbrw")
    inputs = [Input("logits", (r, WIDTH)), Input("maxima", (r, 3)), *(Input(name, (n,), "int32") for name in NAMES)]
    inputs += [Input("context_lens", (b,), "int32"), Input("block_tables", (b, w), "int32")]
    inputs += [Input("chosen", (r,), "int32"), Input("draws", (r, DRAW_COLUMNS), "int32")]
    lowered = module(target_of(isa), inputs, lambda *tensors: Argmax(*tensors[:7], BLOCK, (), *tensors[7:]).call())
    kernels = tvm.IRModule({gv: f for gv, f in lowered.functions_items() if isinstance(f, tvm.tirx.PrimFunc)})
    step, chosen = Step([1, 4, 5, 7, 20, 23] * 7), np.arange(42, dtype="int32") - 1
    draws = np.random.default_rng(0).integers(0, 99, (42, DRAW_COLUMNS), "int32")
    before = draws.copy()
    compile_kernels_alone(kernels, target_of(isa))("take_chosen", chosen, draws, *step.held.values(), step.tables, step.out)
    index = step.lengths
    slots = np.take_along_axis(step.tables, index[:, None] // BLOCK, axis=1)[:, 0] * BLOCK + index % BLOCK
    assert step.holds(tokens=np.maximum(chosen, 0), positions=index, slots=slots, context_lens=index + 1)
    assert step.out[-1].tolist() == chosen.tolist() and step.out[0].tolist() == list(range(42, 84))
    assert (draws[:, :UNIFORMS] == before[:, :UNIFORMS]).all() and (draws[:, UNIFORMS:-2] == before[:, UNIFORMS + 2 :]).all()


def test_past_the_table_the_last_block_stands_for_more(kernel):
    step = Step([6 * BLOCK])
    step.run(kernel)
    assert step.held["slots"] == step.tables[0, -1] * BLOCK


def test_what_is_no_number_is_told_and_does_not_go_on(kernel):
    step = Step([3, 9, 5])
    step.logits[1, WIDTH - 1] = np.nan
    step.logits[2, :] = -np.inf
    step.run(kernel)
    assert step.out[-1].tolist() == [step.logits[0].argmax(), -1, 0]
    assert step.held["tokens"].tolist() == [step.logits[0].argmax(), 0, 0]


@pytest.mark.parametrize("changed", [{"num_rows": 1}, {"num_more": 3}, {"num_rows": 0}], ids=str)
def test_prompts_are_left_alone(kernel, changed):
    step = Step([3, 9, 5], **changed)
    step.run(kernel)
    assert step.holds()
    assert step.out[-1].tolist() == step.logits.argmax(axis=1).tolist()
