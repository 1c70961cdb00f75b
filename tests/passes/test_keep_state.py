from __future__ import annotations

import pytest
from tvm import IRModule
from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.keep_state import keep_state
from cupola.passes.page_attention import page_attention
from cupola.passes.rewrite import shape_of
from cupola.runtime.artifact.state import NUM_BLOCKS, RECURRENT, KVGroup, KVSpec
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets import ops
from tests.passes.harness import apply, stays, verified

POOLS = (
    TensorSpec("causal_conv_2x64", "float32", (2, NUM_BLOCKS, 2, 64)),
    TensorSpec("linear_attention_4x8x16", "float32", (1, NUM_BLOCKS, 4, 8, 16)),
)
KV = KVSpec((KVGroup((0, 3, 1), 0, 0, 0, 0, POOLS, RECURRENT),), "float32", 16)


@R.function
def before(
    tokens: R.Tensor(("n",), "int32"),
    positions: R.Tensor(("n",), "int32"),
    logit_rows: R.Tensor(("r",), "int32"),
    weight: R.Tensor((64, 3), "float32"),
):
    R.func_attr({"num_input": 3})
    n = T.int64()
    with R.dataflow():
        x = R.zeros((n, 64), "float32")
        first = R.call_dps_packed("cupola.causal_conv", (0, 0, 0, 0, 0, x, weight, 0), out_ty=R.Tensor((n, 64), dtype="float32"))
        q = R.zeros((n, 2, 8), "float32")
        v = R.zeros((n, 4, 16), "float32")
        decay = R.zeros((n, 4), "float32")
        second = R.call_dps_packed(
            "cupola.linear_attention", (1, 0, 0, 0, 0, q, q, v, decay, 0), out_ty=R.Tensor((n, 4, 16), dtype="float32")
        )
        third = R.call_dps_packed("cupola.causal_conv", (3, 0, 0, 0, 0, first, weight, 0), out_ty=R.Tensor((n, 64), dtype="float32"))
        R.output(second, third)
    return (second, third)


@pytest.fixture(scope="module")
def after() -> IRModule:
    return verified(keep_state(KV), apply(page_attention(KV), before))


def test_the_entry_takes_slots_and_pools(after: IRModule) -> None:
    func = after["forward"]
    assert [var.name for var in func.params] == [
        "tokens", "positions", "query_starts", "context_lens", "logit_rows", "state_slots.0", "causal_conv_2x64.0",
        "linear_attention_4x8x16.0", "weight",
    ]  # fmt: skip
    assert int(func.attrs["num_input"]) == len(func.params) - 1
    sizes = {var.name: var.ty.shape for var in func.params}
    assert sizes["causal_conv_2x64.0"][1].same_as(sizes["linear_attention_4x8x16.0"][1])
    assert sizes["state_slots.0"][0].same_as(sizes["context_lens"][0])


def test_every_recurrence_has_its_place_in_a_pool(after: IRModule) -> None:
    values = [binding.value for block in after["forward"].body.blocks for binding in block.bindings]
    found = [op for value in values if (op := ops.match_recurrence(value)) is not None]
    assert [(op.name, op.layer, op.pool.name) for op in found] == [
        ("causal_conv", 0, "causal_conv_2x64.0"),
        ("linear_attention", 0, "linear_attention_4x8x16.0"),
        ("causal_conv", 1, "causal_conv_2x64.0"),
    ]
    assert {(op.slots.name, op.query_starts.name, op.context_lens.name) for op in found} == {
        ("state_slots.0", "query_starts", "context_lens")
    }
    assert found[1].state_shape == (4, 8, 16) and shape_of(found[1].v)[1:] == [4, 16]


def test_models_without_recurrences_stay() -> None:
    stays(keep_state(KVSpec((KVGroup((0,), 1, 8, 8),), "float32", 16)), before)
