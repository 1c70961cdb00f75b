"""Lets attention read its inputs where a joined projection left them, and rotate them itself (Su et al., 2021).

Before:  q, k, v = lv[:, :64], lv[:, 64:96], lv[:, 96:]                     # lv [n, 128], e.g. cupola.linear(x, wqkv)
         lv1 = R.reshape(cupola.rotary(R.reshape(q, (n, 4, 16)), cos, sin), (n, 64))
         lv2 = R.reshape(cupola.rotary(R.reshape(k, (n, 2, 16)), cos, sin), (n, 32))
         lv3 = cupola.paged_attention(lv1, lv2, v, …)
After:   lv3 = cupola.paged_attention(lv, lv, lv, cos, sin, …, q_start=0, k_start=64, v_start=96)

Each part may be missing. Of a head that is rotated in its first dimensions alone, Before has
R.concat((cupola.rotary(x[:, :, :8], cos, sin), x[:, :, 8:]), axis=2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import tvm
import tvm_ffi
from tvm import relax

from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops

Rotated: TypeAlias = tuple[relax.Expr, ops.Rotary]  # x [n, heads · dim], and how it is rotated


def fuse_attention_inputs() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_attention_inputs", lambda mod: rewrite_calls(mod, {"cupola.paged_attention": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    paged = ops.PagedAttention.match(call)
    assert paged is not None
    if paged.v is None:  # queries and keys are joined of parts, in matrices of their own
        return None
    q, k = (_rotation(matrix, scope) for matrix in (paged.q, paged.k))
    if q is not None and k is not None and paged.cos is None and _same_angles(q[1], k[1]):
        paged = replace(paged, q=q[0], k=k[0], cos=q[1].cos, sin=q[1].sin, interleaved=q[1].interleaved)
    (q_in, q_at), (k_in, k_at), (v_in, v_at) = (_slice(matrix, 1, scope) for matrix in (paged.q, paged.k, paged.v))
    q_at, k_at, v_at = paged.q_start + q_at, paged.k_start + k_at, paged.v_start + v_at
    return replace(paged, q=q_in, k=k_in, v=v_in, q_start=q_at, k_start=k_at, v_start=v_at).emit(call.ty)


def _rotation(matrix: relax.Expr, scope: Scope) -> Rotated | None:
    """The heads that `matrix` rotates and how, if it is rotated heads side by side."""
    flat = scope.call(matrix, "reshape")
    found = _rotated_heads(flat.args[0], scope) if flat is not None else None
    if flat is None or found is None:
        return None
    x, rotary = found
    source = scope.call(x, "reshape")
    if source is not None and tvm_ffi.structural_equal(source.args[0].ty.shape, flat.args[1]):
        return source.args[0], rotary
    return scope.emit(relax.op.reshape(x, flat.args[1])), rotary


def _same_angles(a: ops.Rotary, b: ops.Rotary) -> bool:
    return bool(a.cos.same_as(b.cos) and a.sin.same_as(b.sin) and a.interleaved == b.interleaved)


def _rotated_heads(heads: relax.Expr, scope: Scope) -> tuple[relax.Expr, ops.Rotary] | None:
    """x [n, heads, dim] and how it is rotated, if `heads` is all of it rotated, or the first dimensions and the others as they are."""
    concat = scope.call(heads, "concat")
    if concat is None:
        rotary = ops.Rotary.match(scope.value(heads))
        return None if rotary is None else (rotary.x, rotary)
    parts = scope.value(concat.args[0])
    if not isinstance(parts, relax.Tuple) or len(parts.fields) != 2 or int(concat.attrs.axis) not in (-1, 2):
        return None
    rotary = ops.Rotary.match(scope.value(parts.fields[0]))
    if rotary is None:
        return None
    (x, first), (same, second) = (_slice(part, 2, scope) for part in (rotary.x, parts.fields[1]))
    whole = first == 0 and second == shape_of(rotary.x)[2] and x.same_as(same) and shape_of(x) == shape_of(heads)
    return (x, rotary) if whole else None


def _slice(part: relax.Expr, axis: int, scope: Scope) -> tuple[relax.Expr, int]:
    """The tensor that `part` is a slice of along `axis` alone, and where it begins there; else itself."""
    call = scope.call(part, "strided_slice")
    steps = [int(step.value) for step in call.args[4]] if call is not None and len(call.args) > 4 else []
    if call is None or [int(a.value) for a in call.args[1]] != [axis] or any(step != 1 for step in steps):
        return part, 0
    return call.args[0], int(call.args[2][0].value)
