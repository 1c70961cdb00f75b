"""Joins linear layers that read the same input (q, k and v) into one, whose result is sliced.

Before:  lv = cupola.linear(x, wq);  lv1 = cupola.linear(x, wk);  lv2 = cupola.linear(x, wv)
After:   lv = cupola.linear(x, R.concat((wq, wk, wv), axis=0))
         lv1 = lv[:, :q];  lv2 = lv[:, q : q + k];  lv3 = lv[:, q + k :]

Where a scheme keeps the formats that weights come in, those are joined that share one.
"""

from __future__ import annotations

from collections import defaultdict

import tvm
from tvm import IRModule, relax

from cupola.passes.fuse_gated_linear import KindOf, is_plain
from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops


def join_projections(kind_of: KindOf = lambda weight: "") -> tvm.transform.Pass:
    """The pass. Weights are joined with others of their kind only."""
    return pass_of("join_projections", lambda mod: _run(mod, kind_of))


def _run(mod: IRModule, kind_of: KindOf) -> IRModule:
    groups = [group for _, func in mod.functions_items() if isinstance(func, relax.Function) for group in _groups(func, kind_of)]
    joined = _Join(groups)
    return rewrite_calls(mod, {"cupola.linear": joined.rule}) if groups else mod


def _groups(func: relax.Function, kind_of: KindOf) -> list[list[ops.Linear]]:
    """Plain linear layers by input, where there are at least two, weights in the order of their use."""
    by_input: dict[tuple[relax.Expr, bool, str, str], list[ops.Linear]] = defaultdict(list)
    for block in func.body.blocks:
        for binding in block.bindings:
            linear = ops.Linear.match(binding.value)
            if linear is not None and is_plain(linear) and _is_weight(linear, func):
                by_input[linear.x, linear.bias is None, linear.weight.ty.dtype, kind_of(linear.weight)].append(linear)
    return [group for group in by_input.values() if len(group) > 1]


def _is_weight(linear: ops.Linear, func: relax.Function) -> bool:
    """Joined weights must be known where the first layer of the group stands: parameters are."""
    return all(part is None or any(part.same_as(param) for param in func.params) for part in (linear.weight, linear.bias))


class _Join:
    """Remembers, for every input and weight of a group, the joined result and the columns in it."""

    def __init__(self, groups: list[list[ops.Linear]]) -> None:
        self.group_of = {(linear.x, linear.weight): group for group in groups for linear in group}
        self.joined: dict[int, relax.Var] = {}

    def rule(self, call: relax.Call, scope: Scope) -> relax.Expr | None:
        linear, before = ops.Linear.match(call), ops.Linear.match(scope.original)
        if linear is None or before is None or not is_plain(linear):
            return None
        group = self.group_of.get((before.x, before.weight))
        if group is None:
            return None
        if id(group) not in self.joined:
            self.joined[id(group)] = self._emit(linear, group, scope)
        widths = [shape_of(member.weight)[0] for member in group]
        place = next(i for i, member in enumerate(group) if member.weight.same_as(linear.weight))
        start = sum(widths[:place])
        return relax.op.strided_slice(self.joined[id(group)], [1], [start], [start + widths[place]], assume_inbound=True)

    def _emit(self, linear: ops.Linear, group: list[ops.Linear], scope: Scope) -> relax.Var:
        weight = scope.emit(relax.op.concat([member.weight for member in group], axis=0))
        bias = scope.emit(relax.op.concat([member.bias for member in group], axis=0)) if linear.bias is not None else None
        rows, width = list(linear.x.ty.shape)[0], shape_of(weight)[0]
        return scope.emit(ops.Linear(linear.x, weight, bias, None, "").emit(relax.TensorType([rows, width], "float32")))
