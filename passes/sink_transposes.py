"""Moves transposes past slices and concatenations, so that they meet and cancel.

Before:  lv1 = R.permute_dims(x, [1, 0, 2])
         lv2 = R.strided_slice(lv1, [2], [0], [8])
         lv3 = R.permute_dims(lv2, [1, 0, 2])
After:   lv3 = R.strided_slice(x, [2], [0], [8])
"""

from __future__ import annotations

import tvm
from tvm import relax

from cupola.passes import simplify
from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls
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


RULES: dict[str, Rule] = {"strided_slice": _strided_slice, "concat": _concat, "permute_dims": simplify.RULES["permute_dims"]}
