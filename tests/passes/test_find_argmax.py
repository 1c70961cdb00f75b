"""The result gets the argmax tokens beside it, where there is a K/V cache to go on in."""

from __future__ import annotations

import tvm
from tvm import relax

from cupola.passes.find_argmax import find_argmax
from cupola.runtime.artifact.inputs import MAX_STEPS
from cupola.runtime.artifact.state import KVGroup, KVSpec
from cupola.targets.ops import Argmax
from tests.passes.harness import apply, stays

KV = KVSpec((KVGroup((0,), 1, 8, 8), KVGroup((1,), 1, 8, 8, 32)), "float32", 16)
INPUTS = {
    "tokens": "n",
    "positions": "n",
    "slots.0": "n",
    "slots.1": "n",
    "context_lens": "b",
    "block_tables.0": "bw",
    "block_tables.1": "bw",
}


def model(names: list[str]) -> relax.Function:
    sizes = {name: tvm.tirx.Var(name, "int64") for name in "nbwr"}
    inputs = [relax.Var(name, relax.TensorType([sizes[size] for size in INPUTS[name]], "int32")) for name in names]
    logits, maxima = (relax.Var(name, relax.TensorType((sizes["r"], width), "float32")) for name, width in (("x", 128), ("y", 2)))
    builder = relax.BlockBuilder()
    with builder.function("forward", [*inputs, logits, maxima]):
        with builder.dataflow():
            results = [builder.emit_output(relax.op.nn.relu(x)) for x in (logits, maxima)]
        builder.emit_func_output(relax.Tuple(results))
    return builder.get()["forward"].with_attr("results", ["logits", "maxima"])


def test_the_tokens_come_beside_the_logits() -> None:
    func = apply(find_argmax(KV), model(list(INPUTS)))["forward"]
    call = Argmax.match(func.body.blocks[-1].bindings[-1].value)
    logits, maxima, chosen = func.body.body.fields
    inputs = {param.name: param for param in func.params}
    assert call is not None and call.block_size == 16
    assert call.logits.same_as(logits) and call.maxima.same_as(maxima)
    for field, name in {"slots": "slots.0", "block_tables": "block_tables.0"}.items():
        assert getattr(call, field).same_as(inputs[name])
    assert call.further is not None
    for field, name in zip(call.further, ("slots.1", "block_tables.1"), strict=True):
        assert field.same_as(inputs[name])
    for name in ("tokens", "positions", "context_lens"):
        assert getattr(call, name).same_as(inputs[name])
    assert int(chosen.ty.shape[0]) == MAX_STEPS and chosen.ty.shape[1].same_as(logits.ty.shape[0]) and str(chosen.ty.dtype) == "int32"
    assert len(func.ret_ty.fields) == 3


def test_without_a_cache_nothing_changes() -> None:
    stays(find_argmax(KV), model(["tokens", "positions"]))
