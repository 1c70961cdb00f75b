"""Tools that the passes share: rules by operation name, applied to every call of a module from first to last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, PyExprVisitor, mutator, visitor

from cupola.runtime.errors import OptionError, SourceError, UnsupportedError
from cupola.targets.ops import PREFIX, op_name

# An error of a pass goes through TVM's C++, which makes a RuntimeError of every type that it was not told of.
for _error in (OptionError, SourceError, UnsupportedError):
    tvm.error.register_error(_error.__name__, _error)

# Operations that make each element of the same element of their arguments, after broadcasting.
ELEMENTWISE = (
    "multiply", "add", "subtract", "divide", "power", "maximum", "minimum", "negative", "exp", "log", "cos", "sin", "tanh", "erf",
    "sigmoid", "sqrt", "rsqrt", "square", "abs", "sign", "floor", "ceil", "round", "clip", "astype", "where", "greater", "greater_equal",
    "less", "less_equal", "equal", "not_equal", "logical_and", "logical_not", "nn.silu", "nn.gelu", "nn.gelu_tanh", "nn.relu",
    "nn.softplus",
)  # fmt: skip

_RESULTS = "results"  # the attribute of a function that holds the names of its results

# Gets a call whose arguments are rewritten already; returns what replaces it, or None to keep it.
Rule = Callable[[relax.Call, "Scope"], relax.Expr | None]


class Scope:
    """A rule's view of the function that it rewrites."""

    def __init__(self, mutator: PyExprMutator) -> None:
        self._mutator = mutator
        self.original: relax.Call | None = None
        self.num_uses: Counter[relax.Var] = Counter()

    @property
    def builder(self) -> relax.BlockBuilder:
        """The builder that the function is being rebuilt with."""
        return self._mutator.builder_

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Binds `expr` to a new variable, whose type is inferred."""
        return self.builder.emit(expr)

    def value(self, expr: relax.Expr) -> relax.Expr:
        """The value that a variable is bound to, a field of a known tuple included; other expressions come back as they are."""
        bound = self._mutator.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        if isinstance(bound, relax.TupleGetItem):
            whole = self.value(bound.tuple_value)
            return self.value(whole.fields[bound.index]) if isinstance(whole, relax.Tuple) else bound
        return expr if bound is None else bound

    def call(self, expr: relax.Expr, name: str) -> relax.Call | None:
        """The call of operation `name` that `expr` is bound to, or None."""
        value = self.value(expr)
        return value if isinstance(value, relax.Call) and name_of(value) == name else None

    def used_once(self, index: int) -> bool:
        """True if argument `index` of the call being rewritten has no other use, so that it may be fused away."""
        assert self.original is not None
        return self.num_uses[self.original.args[index]] == 1


@mutator
class _RuleMutator(PyExprMutator):
    def __init__(self, mod: IRModule, rules: Mapping[str, Rule]) -> None:
        super().__init__(mod)
        self.rules, self.scope = rules, Scope(self)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = self.visit_expr_post_order(call)
        rule = self.rules.get(name_of(visited))
        self.scope.original = call
        replacement = rule(visited, self.scope) if rule else None
        return visited if replacement is None else replacement


@visitor
class _UseCounter(PyExprVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.num_uses: Counter[relax.Var] = Counter()

    def visit_var_(self, var: relax.Var) -> None:
        self.num_uses[var] += 1

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> None:
        self.num_uses[var] += 1


def count_uses(expr: relax.Expr) -> Counter[relax.Var]:
    """How often each variable is read in a function or another expression."""
    counter = _UseCounter()
    counter.visit_expr(expr)
    return counter.num_uses


def name_of(call: relax.Call) -> str:
    """The operation's name without `relax.`; a cupola operation's with `cupola.`."""
    ours = op_name(call)
    return PREFIX + ours if ours else str(getattr(call.op, "name", "")).removeprefix("relax.")


def rewrite_calls(mod: IRModule, rules: Mapping[str, Rule]) -> IRModule:
    """Applies `rules` (by operation name) to every Relax function of `mod`, then removes what became dead."""
    rewriter = _RuleMutator(mod, rules)
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            rewriter.scope.num_uses = count_uses(func)
            rewriter.builder_.update_func(var, rewriter.visit_expr(func))
    return tidy(rewriter.builder_.get())


def pass_of(name: str, run: Callable[[IRModule], IRModule]) -> tvm.transform.Pass:
    """A TVM module pass called `name`."""

    def transform(mod: IRModule, _: Any) -> IRModule:
        return run(mod)

    return tvm.transform.module_pass(transform, opt_level=0, name=name)


def result_names(func: relax.Function) -> list[str]:
    """The names of the results of `func`, under which a caller may bring their memory."""
    return [str(name) for name in func.attrs[_RESULTS]] if func.attrs and _RESULTS in func.attrs else ["logits"]


def results_of(func: relax.Function) -> dict[str, relax.Expr]:
    """The results of `func` by their names in the table of a step's outputs; `with_result` names what it adds to the logits."""
    result = func.body.body
    if isinstance(result, relax.Var):
        bound = {binding.var: binding.value for block in func.body.blocks for binding in block.bindings}
        result = bound[result] if isinstance(bound.get(result), relax.Tuple) else result
    return dict(zip(result_names(func), result.fields if isinstance(result, relax.Tuple) else [result], strict=False))


def with_result(func: relax.Function, name: str, call: relax.Call) -> relax.Function:
    """`func`, which now also gives the result of `call`, made behind all else and bound to `name`."""
    builder, results = relax.BlockBuilder(), results_of(func)
    *blocks, last = func.body.blocks
    call = builder.normalize(call)
    result = relax.Var(name, call.ty)
    blocks.append(type(last)([*last.bindings, relax.VarBinding(result, call)]))
    body = builder.normalize(relax.SeqExpr(blocks, relax.Tuple([*results.values(), result])))
    attributes = {**(func.attrs or {}), _RESULTS: [*results, name]}
    return relax.Function(list(func.params), body, body.ty).with_attrs(attributes)


def shape_of(expr: relax.Expr) -> list[Any]:
    """The dimensions of a tensor: ints where they are known, else TIR expressions."""
    return [int(size) if isinstance(size, tvm.tirx.IntImm) else size for size in expr.ty.shape]


def constant_of(expr: relax.Expr) -> float | None:
    """The value of a scalar constant, or None."""
    if isinstance(expr, tvm.ir.GenericConst) and expr.value.numpy().size == 1:
        return float(expr.value.numpy().reshape(()))
    return None


def tidy(mod: IRModule) -> IRModule:
    """Removes variables that only rename others, and calls whose results nobody reads."""
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(mod))
