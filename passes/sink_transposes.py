"""Moves transposes past slices, splits, concatenations, norms over the last axis, products and elementwise operations, so that they
meet and cancel.

Before:  lv1 = R.permute_dims(x, [1, 0, 2])
         lv2 = R.strided_slice(lv1, [2], [0], [8])
         lv3 = R.permute_dims(lv2, [1, 0, 2])
After:   lv3 = R.strided_slice(x, [2], [0], [8])
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from cupola.passes import simplify
from cupola.passes.rewrite import ELEMENTWISE, Rule, Scope, constant_of, pass_of, rewrite_calls
from cupola.passes.simplify import axes_of


def sink_transposes() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("sink_transposes", lambda mod: rewrite_calls(mod, RULES))


def _strided_slice(call: relax.Call, scope: Scope) -> relax.Expr | None:
    inner = scope.call(call.args[0], "permute_dims")
    if inner is None:
        return None
    axes = axes_of(inner)
    moved = [axes[int(axis.value)] for axis in call.args[1]]
    out = relax.op.strided_slice(inner.args[0], moved, *call.args[2:], assume_inbound=call.attrs.assume_inbound)
    return relax.op.permute_dims(scope.emit(out), axes)


def _concat(call: relax.Call, scope: Scope) -> relax.Expr | None:
    value = scope.value(call.args[0])
    inner = [scope.call(field, "permute_dims") for field in value.fields] if isinstance(value, relax.Tuple) else []
    axes = axes_of(inner[0]) if inner and inner[0] is not None else None
    if axes is None or any(part is None or axes_of(part) != axes for part in inner):
        return None
    axis = axes[int(call.attrs.axis) % len(axes)]
    return relax.op.permute_dims(scope.emit(relax.op.concat([part.args[0] for part in inner if part is not None], axis)), axes)


def _split(call: relax.Call, scope: Scope) -> relax.Expr | None:
    inner = scope.call(call.args[0], "permute_dims")
    if inner is None:
        return None
    axes, where = axes_of(inner), call.attrs.indices_or_sections
    sections = [int(index) for index in where] if isinstance(where, Sequence) else int(where)
    parts = scope.emit(relax.op.split(inner.args[0], sections, axes[int(call.attrs.axis)]))
    items = [scope.emit(relax.TupleGetItem(parts, index)) for index in range(len(parts.ty.fields))]
    return relax.Tuple([scope.emit(relax.op.permute_dims(item, axes)) for item in items])


def _norm(call: relax.Call, scope: Scope) -> relax.Expr | None:
    inner = scope.call(call.args[0], "permute_dims")
    axes = axes_of(inner) if inner is not None else []
    if inner is None or [int(axis) % len(axes) for axis in call.attrs.axes] != [len(axes) - 1] or axes[-1] != len(axes) - 1:
        return None
    return relax.op.permute_dims(scope.emit(relax.Call(call.op, [inner.args[0], *call.args[1:]], call.attrs)), axes)


def _elementwise(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """All operands are transposed alike, or numbers."""
    inner = [scope.call(arg, "permute_dims") for arg in call.args]
    transposed = [value for value in inner if value is not None]
    axes = axes_of(transposed[0]) if transposed else []
    numbers = [constant_of(arg) is not None and not arg.ty.shape for arg in call.args]
    if not transposed or any(axes_of(value) != axes for value in transposed) or len(transposed) + sum(numbers) < len(call.args):
        return None
    args = [arg if value is None else value.args[0] for arg, value in zip(call.args, inner, strict=True)]
    return relax.op.permute_dims(scope.emit(relax.Call(call.op, args, call.attrs)), axes)


def _matmul(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """A weight times turned rows, which is a linear layer, turned."""
    weight, inner = call.args[0], scope.call(call.args[1], "permute_dims")
    is_weight = isinstance(weight, relax.Var) and not isinstance(weight, relax.DataflowVar) and len(weight.ty.shape) == 2
    if inner is None or not is_weight or axes_of(inner) != [1, 0] or not isinstance(inner.args[0], relax.DataflowVar):
        return None
    turned = scope.emit(relax.op.permute_dims(weight, [1, 0]))
    return relax.op.permute_dims(scope.emit(relax.op.matmul(inner.args[0], turned)), [1, 0])


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "strided_slice": _strided_slice,
    "concat": _concat,
    "split": _split,
    "matmul": _matmul,
    "nn.rms_norm": _norm,
    "nn.layer_norm": _norm,
    "permute_dims": simplify.RULES["permute_dims"],
}
