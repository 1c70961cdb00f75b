"""Replaces every operation that the target has a kernel for by a call of that kernel; the rules' order decides.

Before:  lv = cupola.linear(x, weight)
After:   lv1 = R.permute_dims(R.reshape(weight, (18, 32, 576)), (0, 2, 1))     # packing, lifted out later
         lv = R.call_tir(cls.linear_576x576, (x, lv1))
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import tidy
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target
from cupola.targets.ops import PREFIX, op_name

# TVM runs a pass from C++, which errors cross by the names of their types; one that it does not know arrives as a RuntimeError.
tvm_ffi.register_error("UnsupportedError", UnsupportedError)


def lower_ops(target: Target) -> tvm.transform.Pass:
    """The pass. Raises UnsupportedError for an operation of ours that no rule of `target` takes."""

    def transform(mod: IRModule, _: Any) -> IRModule:
        lowering = _Lowering(mod, target)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function):
                lowering.builder_.update_func(var, lowering.visit_expr(func))
        return relax.transform.EliminateCommonSubexpr()(tidy(lowering.builder_.get()))

    return tvm.transform.module_pass(transform, opt_level=0, name="lower_ops")


@mutator
class _Lowering(PyExprMutator):
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target = target

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        for rule in self.target.kernels:
            lowered = rule(call, self.builder_)
            if lowered is not None:
                return lowered
        name = op_name(call)
        if name is not None:
            raise UnsupportedError(f"has no kernel for {PREFIX}{name} of type {call.ty}", field=f"target {self.target.spec.name}")
        return call
