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

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from cupola.passes.rewrite import pass_of, results_of


def give_outputs() -> tvm.transform.Pass:
    """The pass, for functions without branches whose memory is planned: results become parameters of their names, behind the
    `num_input` ones of a step. A function whose results are not all made for them (views of something else) stays as it is.
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
        if not all(_is_allocation(values.get(result)) for result in results.values()):
            return func
        self.given = {result: relax.Var(name, result.ty) for name, result in results.items()}
        self.replaced = {func.body.body} - self.given.keys()
        body = relax.BlockBuilder().normalize(relax.SeqExpr(self.visit_expr(func.body).blocks, relax.prim_value(0)))
        num_inputs = int(func.attrs["num_input"])
        params = [*func.params[:num_inputs], *self.given.values(), *func.params[num_inputs:]]
        new = relax.Function(params, body, body.ty, func.is_pure).with_attrs(func.attrs)
        return new.with_attr("num_input", num_inputs + len(self.given))

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.given:
            self.set_var_remap(binding.var, self.given[binding.var])
        elif binding.var not in self.replaced:
            super().visit_var_binding_(binding)


def _is_allocation(value: relax.Expr | None) -> bool:
    return isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.builtin.alloc_tensor")
