"""Where layers end among a plan's calls; nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from tvm import IRModule, relax, tirx

from cupola.compiler.build import plan_memory
from cupola.compiler.exits import find_exits
from cupola.compiler.plan import extract_plan
from cupola.runtime.artifact.plan import Plan

Layer = Callable[[relax.Expr, relax.Expr, relax.Expr], relax.Expr]


def gated(x: relax.Expr, weight: relax.Expr, angles: relax.Expr) -> relax.Expr:
    """Two values are read behind the last weight: the layer ends with their sum."""
    return relax.op.add(x, relax.op.sin(relax.op.multiply(relax.op.multiply(relax.op.exp(x), weight), angles)))


def exits(layer: Layer, names: Sequence[str], skips: bool = False) -> tuple[Plan, list[tuple[int, str]]]:
    """The plan of layers on an embedding, rows of the last one and a head; and the exits, by call and by what the call there computes."""
    builder, n, r = relax.BlockBuilder(), tirx.Var("n", "int64"), tirx.Var("r", "int64")
    x, rows = relax.Var("x", relax.TensorType([n, 8], "float32")), relax.Var("rows", relax.TensorType([r], "int32"))
    weights = [relax.Var(f"w{i}", relax.TensorType([8], "float32")) for i in range(len(names))]
    with builder.function("forward", [x, rows, *weights], attrs={"num_input": 2}):
        with builder.dataflow():
            angles, hidden = builder.emit(relax.op.cos(x)), builder.emit(relax.op.tanh(x))
            handed_on = []
            for weight in weights[:-1]:
                handed_on.append(hidden := builder.emit(builder.normalize(layer(hidden, weight, angles))))
            last = relax.op.add(hidden, handed_on[0]) if skips else hidden
            picked = builder.emit(relax.op.take(builder.emit(last), rows, axis=0, mode="clip"))
            result = builder.emit_output(relax.op.sqrt(builder.emit(relax.op.multiply(picked, weights[-1]))))
        builder.emit_func_output(result)
    lowered = relax.transform.LegalizeOps()(relax.transform.Normalize()(builder.get()))
    plan = extract_plan(plan_memory(IRModule(dict(lowered.functions_items())))).plan
    found = find_exits(lowered["forward"], names, plan)
    assert all(plan.buffers[one.buffer].shape == ("n", 8) for one in found)
    return replace(plan, exits=found), [(one.call, plan.calls[one.call].kernel) for one in found]


def test_a_layer_ends_where_one_value_is_left() -> None:
    plan, found = exits(gated, ["model.layers.0.a.weight", "model.layers.1.a.weight", "norm.weight"])
    kernels = [call.kernel for call in plan.calls]
    ends = [i + 1 for i, kernel in enumerate(kernels) if kernel == "add"]
    assert [call for call, _ in found] == ends and kernels[ends[-1]] == "take"


@pytest.mark.parametrize(
    "names",
    [
        ["a.weight", "b.weight", "norm.weight"],  # none has a number
        ["layers.1.a", "layers.0.a", "norm"],  # not in order
        ["layers.0.a", "layers.2.a", "norm"],  # one is missing
    ],
)
def test_what_has_no_layers_has_no_exits(names: list[str]) -> None:
    assert exits(gated, names)[1] == []


def test_layers_that_share_more_than_one_value_have_no_exits() -> None:
    assert len(exits(gated, ["layers.0.a", "layers.1.a", "layers.2.a", "norm"])[1]) == 3
    assert exits(gated, ["layers.0.a", "layers.1.a", "layers.2.a", "norm"], skips=True)[1] == []
