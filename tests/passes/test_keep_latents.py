from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from cupola.compiler.frontend.state import expanded_notes, kv_layout
from cupola.compiler.pipeline import import_passes
from cupola.passes.keep_latents import keep_latents
from cupola.targets.ops import Attention, ExpertLinear
from tests.passes.harness import becomes, module, stays

HEADS, PLAIN, TURNED, VALUE = 2, 6, 2, 4
NUMBERS = (5, 0.5, 7, 3.0)  # layer, scale, window, softcap


def function(body, rank=8):
    """`forward` of q and what keys and values are made of, its body emitted by `body(emit, inputs)`."""
    n = tvm.tirx.Var("n", "int64")
    shapes = {
        "c": [n, rank], "turned": [n, TURNED], "each": [HEADS, n, TURNED], "q": [n, HEADS, PLAIN + TURNED],
        "weight": [HEADS * (PLAIN + VALUE), rank], "other": [HEADS * (PLAIN + VALUE), rank],
    }  # fmt: skip
    inputs = {name: relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in shapes.items()}
    builder = relax.BlockBuilder()
    with builder.function("forward", list(inputs.values()), attrs={"num_input": 4}):
        with builder.dataflow():
            out = builder.emit_output(body(builder.emit, n, inputs))
        builder.emit_func_output(out)
    return builder.get()["forward"]


def expanded(rank=8, *, is_shared=True, is_one_split=True):
    """Attention over keys and values of each head; but for `is_shared` and `is_one_split` made of a row for all heads."""

    def body(emit, n, inputs):
        def halves(weight):
            product = emit(relax.op.matmul(emit(relax.op.reshape(inputs["c"], [1, n, rank])), emit(relax.op.permute_dims(weight))))
            heads = emit(relax.op.permute_dims(emit(relax.op.reshape(product, [n, HEADS, PLAIN + VALUE])), [1, 0, 2]))
            return emit(relax.op.split(heads, [PLAIN], axis=2))

        first = halves(inputs["weight"])
        second = first if is_one_split else halves(inputs["other"])
        rest = inputs["each"]
        if is_shared:
            row = emit(relax.op.reshape(inputs["turned"], [1, 1, n, TURNED]))
            rest = emit(relax.op.reshape(emit(relax.op.broadcast_to(row, [1, HEADS, n, TURNED])), [HEADS, n, TURNED]))
        key = emit(relax.op.concat([emit(relax.TupleGetItem(first, 0)), rest], axis=-1))
        k = emit(relax.op.permute_dims(key, [1, 0, 2]))
        v = emit(relax.op.permute_dims(emit(relax.TupleGetItem(second, 1)), [1, 0, 2]))
        return Attention(inputs["q"], k, v, None, None, *NUMBERS).emit(relax.TensorType([n, HEADS, VALUE], "float32"))

    return function(body, rank)


def latent(emit, n, inputs, rank=8):
    rows = emit(relax.op.reshape(inputs["c"], [1, n, rank]))
    row = emit(relax.op.reshape(inputs["turned"], [1, 1, n, TURNED]))
    c, turned = emit(relax.op.reshape(rows, [n, rank])), emit(relax.op.reshape(row, [n, TURNED]))
    heads = emit(relax.op.broadcast_to(relax.const(np.arange(HEADS, dtype="int32")[None]), [n, HEADS]))
    plain = emit(relax.op.strided_slice(inputs["q"], [2], [0], [PLAIN], assume_inbound=True))
    rest = emit(relax.op.strided_slice(inputs["q"], [2], [PLAIN], [PLAIN + TURNED], assume_inbound=True))
    apart = emit(relax.op.reshape(inputs["weight"], [HEADS, PLAIN + VALUE, rank]))
    keys = emit(relax.op.strided_slice(apart, [1], [0], [PLAIN], assume_inbound=True))
    values = emit(relax.op.strided_slice(apart, [1], [PLAIN], [PLAIN + VALUE], assume_inbound=True))
    w_k = emit(relax.op.reshape(emit(relax.op.permute_dims(keys, [0, 2, 1])), [HEADS * rank, PLAIN]))
    w_v = emit(relax.op.reshape(values, [HEADS * VALUE, rank]))
    out = [relax.TensorType([n, HEADS, size], "float32") for size in (rank, VALUE)]
    q = emit(relax.op.concat([emit(ExpertLinear(plain, heads, w_k, None, HEADS).emit(out[0])), rest], axis=2))
    k = emit(relax.op.reshape(emit(relax.op.concat([c, turned], axis=1)), [n, 1, rank + TURNED]))
    attended = emit(Attention(q, k, None, None, None, *NUMBERS).emit(out[0]))
    return ExpertLinear(attended, heads, w_v, None, HEADS).emit(out[1])


def test_heads_attend_over_the_row_that_their_keys_and_values_are_made_of() -> None:
    becomes(keep_latents(), expanded(), function(latent))


@pytest.mark.parametrize(
    "before",
    [
        expanded(is_shared=False),  # a rest of its own for each head's key
        expanded(is_one_split=False),  # values of another weight
        expanded(rank=22),  # a row that is as large as what is made of it
    ],
    ids=["own rests", "two weights", "no smaller"],
)
def test_other_attention_stays(before: relax.Function) -> None:
    stays(keep_latents(), before)


def test_targets_without_such_attention_keep_keys_and_values_and_say_so() -> None:
    assert "keep_latents" not in [step.info.name for step in import_passes(latents=False)]
    mod = module(expanded())
    (note,) = expanded_notes(mod, kv_layout(mod, "float32", 16, "file"), "file")
    assert note.startswith("a token takes 24 numbers of K and V in place of 10")
    mod = module(expanded(is_shared=False))
    assert expanded_notes(mod, kv_layout(mod, "float32", 16, "file"), "file") == []
