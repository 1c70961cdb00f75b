"""The pass that puts inputs in the order of their weights' columns."""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from cupola.passes.order_columns import order_columns
from cupola.targets import ops
from tests.passes.harness import verified


def module(*, ordered: bool) -> tvm.IRModule:
    """Two layers of one input, of which the first two have one order, and one that has none."""
    builder, n = relax.BlockBuilder(), tirx.Var("n", "int64")
    x, *weights = (relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in (("x", (n, 64)), *((w, (32, 64)) for w in "abc")))
    order = relax.Var("order.1", relax.TensorType([64], "int32"))
    with builder.function("forward", [x, *weights, *([order] if ordered else [])], {"num_input": 1}):
        with builder.dataflow():
            out = []
            placed = None
            for weight in weights:
                left, right = x, weight
                if ordered and weight.name != "c":
                    placed = builder.emit(relax.op.take(x, order, axis=1, mode="fast")) if placed is None else placed
                    left = placed
                    right = builder.emit(relax.op.take(weight, order, axis=1, mode="fast"))
                out.append(builder.emit(ops.Linear(left, right, None, None, "").emit(relax.TensorType((n, 32), "float32"))))
            result = builder.emit_output(relax.Tuple(out))
        builder.emit_func_output(result)
    return builder.get()


def test_inputs_are_put_in_order_once() -> None:
    tvm.ir.assert_structural_equal(
        verified(order_columns({"a": "order.1", "b": "order.1"}), module(ordered=False)), module(ordered=True), map_free_vars=True
    )


def test_without_orders_nothing_changes() -> None:
    before = module(ordered=False)
    tvm.ir.assert_structural_equal(verified(order_columns({}), before), before)
    tvm.ir.assert_structural_equal(verified(order_columns({"elsewhere": "order.1"}), before), before, map_free_vars=True)
