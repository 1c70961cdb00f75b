"""Puts the inputs of layers in the order in which their quantized weights hold them (GPTQ's act-order).

Before:  lv = cupola.linear(x, w)
After:   lv = R.take(x, order, axis=1)                       # order i32 [K], a weight
         lv1 = R.take(w, order, axis=1)                      # done when weights are packed: blocks lie so already
         lv2 = cupola.linear(lv, lv1)

Groups that are no neighbours become such. Weights of one order share their inputs, so that gates stay beside what they gate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tvm
from tvm import IRModule, relax

from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops


def order_columns(orders: Mapping[str, str]) -> tvm.transform.Pass:
    """The pass. `orders` gives, by the weight's parameter, the name of a new parameter that is its order."""
    return pass_of("order_columns", lambda mod: _run(mod, orders) if orders else mod)


def _run(mod: IRModule, orders: Mapping[str, str]) -> IRModule:
    forward = mod["forward"]
    widths = {orders[param.name]: shape_of(param)[1] for param in forward.params if param.name in orders}
    added = {name: relax.Var(name, relax.TensorType([width], "int32")) for name, width in widths.items()}
    extended = relax.Function([*forward.params, *added.values()], forward.body, forward.ret_ty).with_attrs(forward.attrs)
    functions = {var: extended if var.name_hint == "forward" else func for var, func in mod.functions_items()}
    placed = _Placed({weight: added[order] for weight, order in orders.items() if order in added})
    return rewrite_calls(IRModule(functions, attrs=mod.attrs), {"cupola.linear": placed.rule})


class _Placed:
    """Remembers inputs that were put in order."""

    def __init__(self, orders: Mapping[str, relax.Var]) -> None:
        self.orders = orders
        self.inputs: dict[tuple[relax.Expr, str], relax.Var] = {}

    def rule(self, call: relax.Call, scope: Scope) -> relax.Expr | None:
        linear = ops.Linear.match(call)
        assert linear is not None
        order = self.orders.get(linear.weight.name) if isinstance(linear.weight, relax.Var) else None
        if order is None:
            return None
        key = (linear.x, order.name)
        if key not in self.inputs:
            self.inputs[key] = scope.emit(relax.op.take(linear.x, order, axis=1, mode="fast"))
        weight = scope.emit(relax.op.take(linear.weight, order, axis=1, mode="fast"))
        return dataclasses.replace(linear, x=self.inputs[key], weight=weight).emit(call.ty)
