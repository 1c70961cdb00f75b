"""Replaces every operation that the target has a kernel for by a call of that kernel; the rules' order decides.

Before:  lv = cupola.linear(x, weight)
After:   lv1 = R.permute_dims(R.reshape(weight, (18, 32, 576)), (0, 2, 1))     # packing, lifted out later
         lv = R.call_tir(cls.linear_576x576, (x, lv1))

Each kernel is given the cost of the operations that it does (`targets/cost.py`).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import pass_of, tidy
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target
from cupola.targets.cost import with_cost_of
from cupola.targets.ops import PREFIX, op_name
from cupola.targets.weight_functions import function_of


def lower_ops(target: Target) -> tvm.transform.Pass:
    """The pass. Raises UnsupportedError for an operation of ours that no rule of `target` takes."""
    return pass_of("lower_ops", lambda mod: _run(mod, target))


def _run(mod: IRModule, target: Target) -> IRModule:
    lowering = _Lowering(mod, target)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            lowering.builder_.update_func(var, lowering.visit_expr(func))
    lowered = lowering.builder_.get()
    for kernel, call in lowering.calls.items():
        lowered.update_func(kernel, with_cost_of(lowered[kernel], call))
    return relax.transform.EliminateCommonSubexpr()(tidy(lowered))


class _Kernels:
    """A block builder that knows the kernels which it was given before: comparing code takes it longer than writing a layer's calls."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self._builder = builder
        self._known: dict[int, tuple[tirx.PrimFunc, tvm.ir.GlobalVar]] = {}  # by identity: rules keep what they have built

    def add_func(self, func: tirx.PrimFunc, name: str) -> tvm.ir.GlobalVar:
        """The variable of `func` in the module."""
        if id(func) not in self._known:
            self._known[id(func)] = func, self._builder.add_func(func, name)
        return self._known[id(func)][1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)


@mutator
class _Lowering(PyExprMutator):
    def __init__(self, mod: IRModule, target: Target) -> None:
        super().__init__(mod)
        self.target, self.kernels = target, _Kernels(self.builder_)
        self.calls: dict[tvm.ir.GlobalVar, relax.Call] = {}  # by kernel, one of those that it does

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        for rule in self.target.rules:
            lowered = rule(call, self.kernels)
            if lowered is not None:
                if isinstance(lowered, relax.Call) and isinstance(lowered.args[0], tvm.ir.GlobalVar):
                    self.calls[lowered.args[0]] = call
                return lowered
        name = op_name(call)
        if name is not None and function_of(call) is None:
            raise UnsupportedError(f"has no kernel for {PREFIX}{name} of type {call.ty}", field=f"target {self.target.spec.name}")
        return call
