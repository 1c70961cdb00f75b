"""Lets activations pass between kernels in the target's type for them where every reader rounds them anyway.

Readers that do are quantized linear layers, and attention over K/V in bfloat16 or int8; rows may be taken for them on the way.

Before:  lv: R.Tensor((n, 1536), "float32") = cupola.gated_linear(x, …);  lv1 = cupola.linear(lv, …, quantize_x=32)
After:   lv: R.Tensor((n, 1536), "bfloat16") = cupola.gated_linear(x, …);  lv1 = cupola.linear(lv, …, quantize_x=32)

What a norm reads stays in float32: it is the residual stream, whose errors would add up.
"""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import count_uses, name_of, pass_of
from cupola.targets import ops
from cupola.targets.base import Target


def narrow_activations(target: Target) -> tvm.transform.Pass:
    """The pass; nothing changes for targets whose `activations` are float32."""
    return pass_of("narrow_activations", lambda mod: _run(mod, target))


def _run(mod: IRModule, target: Target) -> IRModule:
    if target.abilities.activations == "float32":
        return mod
    narrowing = _Narrowing(mod, target.abilities.activations)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            narrowing.find(func)
            narrowing.builder_.update_func(var, narrowing.visit_expr(func))
    return narrowing.builder_.get()


@mutator
class _Narrowing(PyExprMutator):
    def __init__(self, mod: IRModule, dtype: str) -> None:
        super().__init__(mod)
        self.dtype = dtype
        self.narrow: set[relax.Var] = set()

    def find(self, func: relax.Function) -> None:
        """Notes which variables of `func` only have readers that round them."""
        self.narrow = set()
        uses, rounded = count_uses(func), Counter[relax.Var]()
        for binding in reversed([binding for block in func.body.blocks for binding in block.bindings]):
            for x in [binding.value.args[0]] if self._picks_rows(binding) else _rounded(binding.value):
                rounded[x] += 1
                if rounded[x] == uses[x]:
                    self.narrow.add(x)

    def _picks_rows(self, binding: relax.Binding) -> bool:
        """True if it takes rows for readers that round them, which are known by now."""
        return binding.var in self.narrow and isinstance(binding.value, relax.Call) and name_of(binding.value) == "take"

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.narrow and _may_narrow(binding.value):
            call = self.visit_expr(binding.value)
            out = relax.TensorType(call.ty.shape, self.dtype)
            self.set_var_remap(binding.var, self.builder_.emit(relax.op.call_dps_packed(call.args[0], call.args[1], out_ty=out)))
        else:
            super().visit_var_binding_(binding)


def _rounded(call: relax.Expr) -> list[relax.Expr]:
    """The arguments that `call` rounds as it reads them, one as often as it does."""
    layer = ops.Linear.match(call) or ops.GatedLinear.match(call)
    if layer is not None and layer.quantize_x and layer.norm is None:
        return [layer.x]
    attention = ops.PagedAttention.match(call)
    if attention is not None and attention.kv_dtype in ("bfloat16", "int8"):
        return [x for x in (attention.q, attention.k, attention.v) if x is not None]
    return []


def _may_narrow(call: relax.Expr) -> bool:
    """True if a kernel of this kind can write the type."""
    layer = ops.Linear.match(call) or ops.GatedLinear.match(call)
    return bool(layer.quantize_x) if layer is not None else ops.op_name(call) == ops.PagedAttention.name
