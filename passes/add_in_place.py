"""Lets a linear layer add its products to the residual stream where that stands, if nobody reads what stood there.

Before:  lv2: R.Tensor((n, 576), "float32") = cupola.linear(lv1, weight, residual=lv)                  # lv is not read again
After:   lv2: R.Tensor((n, 576), "float32") = cupola.linear(lv1, weight, residual=lv, in_place=1)

A prompt's residual stream takes as much of the cache as its weights do: a second one beside it would drive out what comes next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import count_uses, pass_of
from cupola.targets import ops


def add_in_place() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("add_in_place", _run)


def _run(mod: IRModule) -> IRModule:
    adding = _Adding(mod)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            adding.find(func)
            adding.builder_.update_func(var, adding.visit_expr(func))
    return adding.builder_.get()


@mutator
class _Adding(PyExprMutator):
    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self.sums: set[relax.Var] = set()

    def find(self, func: relax.Function) -> None:
        """Notes the sums whose residual is a result of ours, which shares its memory with nothing, and is read for the last time."""
        self.sums, unread = set(), count_uses(func)
        own: set[Any] = set()
        for binding in (binding for block in func.body.blocks for binding in block.bindings):
            unread.subtract(count_uses(binding.value))
            layer = ops.Linear.match(binding.value)
            residual: Any = layer and layer.residual
            if layer is not None and residual in own - {layer.x} and not unread[residual] and binding.var.ty == residual.ty:
                self.sums.add(binding.var)
            if ops.op_name(binding.value) is not None:
                own.add(binding.var)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.sums:
            layer = ops.Linear.match(self.visit_expr(binding.value))
            assert layer is not None
            self.set_var_remap(binding.var, self.builder_.emit(replace(layer, in_place=1).emit(binding.var.ty)))
        else:
            super().visit_var_binding_(binding)
