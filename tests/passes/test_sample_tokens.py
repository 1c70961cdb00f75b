"""The model draws its tokens, where it goes on with those that it finds."""

from __future__ import annotations

import tvm

from cupola.passes.find_argmax import find_argmax
from cupola.passes.sample_tokens import sample_tokens
from cupola.runtime.artifact.inputs import DRAW_COLUMNS
from cupola.targets.ops import Argmax, Sample
from tests.passes.harness import apply, stays
from tests.passes.test_find_argmax import INPUTS, KV, model


def test_tokens_are_drawn_and_taken() -> None:
    before = apply(find_argmax(KV), model(list(INPUTS)).with_attr("num_input", len(INPUTS)))["forward"]
    func = apply(sample_tokens(), before)["forward"]
    sampled, taken = func.body.blocks[-1].bindings[-2:]
    draws = func.params[len(INPUTS)]
    assert [param.name for param in func.params] == [*INPUTS, "draws", "x", "y"] and int(func.attrs["num_input"]) == len(INPUTS) + 1
    sample, argmax, former = Sample.match(sampled.value), Argmax.match(taken.value), Argmax.match(before.body.blocks[-1].bindings[-1].value)
    logits, maxima, chosen = func.body.body.fields
    assert sample is not None and sample.logits.same_as(logits) and sample.maxima.same_as(maxima) and sample.draws.same_as(draws)
    assert draws.ty.shape[0].same_as(logits.ty.shape[0]) and int(draws.ty.shape[1]) == DRAW_COLUMNS
    assert argmax is not None and former is not None and argmax.chosen is not None and argmax.draws is not None
    assert argmax.chosen.same_as(sampled.var) and argmax.draws.same_as(draws) and chosen.same_as(taken.var)
    assert former.chosen is None and argmax.block_size == former.block_size
    assert len(argmax.further) == len(former.further) == 2
    tvm.ir.assert_structural_equal(chosen.ty, before.body.body.fields[-1].ty, map_free_vars=True)


def test_without_argmax_nothing_changes() -> None:
    stays(sample_tokens(), model(list(INPUTS)))
