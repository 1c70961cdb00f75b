"""Lets the caller bring the memory that results go to: it then knows where they are, and no call takes or frees any.

Before:  def forward(x, w):
             a = R.builtin.alloc_tensor(R.shape([r, 64]), R.dtype("float32"), 0)
             cls.linear(x, w, a)
             return (a,)
After:   def forward(x, logits, w):
             cls.linear(x, w, logits)
             return 0
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import pass_of, results_of


def give_outputs() -> tvm.transform.Pass:
    """The pass, for functions without branches whose memory is planned: results become parameters of their names, behind the
    `num_input` ones of a step, under the shapes that the function returned. A function stays as it is where a result is not made in it,
    or two are views of one tensor.
    """
    return pass_of("give_outputs", _run)


def _run(mod: IRModule) -> IRModule:
    giving = _Giving(mod)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function) and func.attrs and "num_input" in func.attrs:
            giving.builder_.update_func(var, giving.rewrite(func))
    return giving.builder_.get()


@mutator
class _Giving(PyExprMutator):
    """`given` holds the parameters that take the place of allocations."""

    def rewrite(self, func: relax.Function) -> relax.Function:
        values = {binding.var: binding.value for block in func.body.blocks for binding in block.bindings}
        results = results_of(func)
        made = [_allocated(result, values) for result in results.values()]
        if None in made or len(set(made)) < len(made):
            return func
        self.given = {tensor: relax.Var(name, result.ty) for tensor, (name, result) in zip(made, results.items(), strict=True)}
        self.replaced = {func.body.body} - self.given.keys()
        body = relax.BlockBuilder().normalize(relax.SeqExpr(self.visit_expr(func.body).blocks, relax.prim_value(0)))
        num_inputs = int(func.attrs["num_input"])
        params = [*func.params[:num_inputs], *self.given.values(), *func.params[num_inputs:]]
        new = relax.Function(params, body, body.ty, func.is_pure).with_attrs(func.attrs)
        return new.with_attr("num_input", num_inputs + len(self.given))

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.given:
            param, shape = self.given[binding.var], binding.var.ty.shape
            same = tvm_ffi.structural_equal(param.ty, binding.var.ty)
            self.set_var_remap(binding.var, param if same else self.builder_.emit(relax.op.reshape(param, shape)))
        elif binding.var not in self.replaced:
            super().visit_var_binding_(binding)


def _allocated(tensor: relax.Expr, values: Mapping[relax.Var, relax.Expr]) -> relax.Var | None:
    """The tensor of this function's own that `tensor` is, or is a view of; None if there is none."""
    value = values.get(tensor)
    if not isinstance(value, relax.Call):
        return None
    if value.op == tvm.ir.Op.get("relax.reshape"):
        return _allocated(value.args[0], values)
    return tensor if value.op == tvm.ir.Op.get("relax.builtin.alloc_tensor") else None
