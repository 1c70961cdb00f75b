"""Attends over what the keys and values of all heads are made of, in the place of these (multi-head latent attention, arXiv:2405.04434).

Before:  lv = R.matmul(c, R.permute_dims(w))                       # c [n, rank], w [H · (D + E), rank], a weight
         lv1 = R.split(R.reshape(lv, (n, H, D + E)), [D], axis=2)
         k = R.concat((lv1[0], R.broadcast_to(turned, (n, H, R))), axis=2);  v = lv1[1]
         lv2 = cupola.attention(q, k, v, …)                        # q [n, H, D + R] -> [n, H, E]
After:   lv = cupola.expert_linear(q[:, :, :D], heads, w_k)        # q · w_k of each head, [n, H, rank]
         lv1 = R.concat((lv, q[:, :, D:]), axis=2)
         lv2 = cupola.attention(lv1, R.concat((c, turned), axis=1), 0, …)      # [n, H, rank]
         lv3 = cupola.expert_linear(lv2, heads, w_v)               # [n, H, E]

Before stands with heads first, between transposes, as transformers has it. q · (w_k c) is (q w_k) · c, so a token's state is one row of
rank + R numbers for all heads, which is key and, in its first rank numbers, value. `heads` says that each token goes to the matrices of all
heads: to a kernel they are experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.passes.simplify import axes_of
from cupola.targets import ops


def keep_latents() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("keep_latents", lambda mod: rewrite_calls(mod, {"cupola.attention": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    marker = ops.Attention.match(call)
    assert marker is not None
    found = None if marker.v is None else _find(marker.k, marker.v, scope)
    if found is None or found.size >= sum(shape_of(x)[1] * shape_of(x)[2] for x in (marker.k, marker.v)):
        return None
    (n, num_heads, key_dim), rank, plain = shape_of(marker.q), shape_of(found.latents)[1], found.split_at
    every_head = scope.emit(relax.op.broadcast_to(relax.const(np.arange(num_heads, dtype="int32")[None]), [n, num_heads]))
    queries = scope.emit(relax.op.strided_slice(marker.q, [2], [0], [plain], assume_inbound=True))
    turned = scope.emit(relax.op.strided_slice(marker.q, [2], [plain], [key_dim], assume_inbound=True))
    w_k, w_v = found.matrices(num_heads, scope)
    absorbed = scope.emit(_per_head(queries, every_head, w_k, rank))
    q = scope.emit(relax.op.concat([absorbed, turned], axis=2))
    k = scope.emit(relax.op.concat([found.latents, found.turned], axis=1))
    k = scope.emit(relax.op.reshape(k, [n, 1, shape_of(k)[1]]))
    latent = replace(marker, q=q, k=k, v=None)
    attended = scope.emit(latent.emit(relax.TensorType([n, num_heads, rank], call.ty.dtype)))
    return _per_head(attended, every_head, w_v, shape_of(call)[2])


def _per_head(x: relax.Expr, heads: relax.Expr, weight: relax.Expr, size: int) -> relax.Call:
    """x [n, H, K], each head's times its own matrix of weight [H · size, K] -> [n, H, size]."""
    n, num_heads, _ = x.ty.shape
    return ops.ExpertLinear(x, heads, weight, None, int(num_heads)).emit(relax.TensorType([n, num_heads, size], x.ty.dtype))


@dataclass(frozen=True)
class _Latents:
    """The making of keys and values.

    Attributes:
        latents: c [n, rank].
        turned: the rest of every head's key, [n, R].
        weight: [H · (D + E), rank].
        split_at: D.
    """

    latents: relax.Expr
    turned: relax.Expr
    weight: relax.Var
    split_at: int

    @property
    def size(self) -> int:
        """Numbers of a token."""
        return int(self.latents.ty.shape[1]) + int(self.turned.ty.shape[1])

    def matrices(self, num_heads: int, scope: Scope) -> tuple[relax.Expr, relax.Expr]:
        """The weights of keys, [H · rank, D], turned, and those of values, [H · E, rank]."""
        rows, rank = shape_of(self.weight)
        apart = scope.emit(relax.op.reshape(self.weight, [num_heads, rows // num_heads, rank]))
        keys, values = (
            scope.emit(relax.op.strided_slice(apart, [1], [start], [end], assume_inbound=True))
            for start, end in ((0, self.split_at), (self.split_at, rows // num_heads))
        )
        keys = scope.emit(relax.op.permute_dims(keys, [0, 2, 1]))
        flat = (relax.op.reshape(x, [num_heads * shape_of(x)[1], shape_of(x)[2]]) for x in (keys, values))
        w_k, w_v = (scope.emit(x) for x in flat)
        return w_k, w_v


def _find(k: relax.Expr, v: relax.Expr, scope: Scope) -> _Latents | None:
    """The making of k and v [n, H, …], if they are made so."""
    key, value = (_heads_first(x, scope) for x in (k, v))
    joined = None if key is None else scope.call(key, "concat")
    parts = None if joined is None else scope.value(joined.args[0])
    if joined is None or value is None or not isinstance(parts, relax.Tuple):
        return None
    if len(parts.fields) != 2 or int(joined.attrs.axis) % 3 != 2:
        return None
    split, turned = _same_split(parts.fields[0], value, scope), _one_for_all_heads(parts.fields[1], scope)
    expanded = None if split is None else _heads_first(split.args[0], scope)
    product = None if expanded is None else _through_reshape(expanded, scope)
    matmul = None if product is None else scope.call(product, "matmul")
    turned_weight = None if matmul is None else scope.call(matmul.args[1], "permute_dims")
    if matmul is None or turned_weight is None or turned is None or axes_of(turned_weight) != [1, 0]:
        return None
    weight, n = turned_weight.args[0], k.ty.shape[0]
    if not isinstance(weight, relax.Var) or isinstance(weight, relax.DataflowVar):
        return None
    latents, rest = (scope.emit(relax.op.reshape(x, [n, x.ty.shape[-1]])) for x in (matmul.args[0], turned))
    return _Latents(latents, rest, weight, shape_of(parts.fields[0])[2])


def _heads_first(x: relax.Expr, scope: Scope) -> relax.Expr | None:
    """The tensor that x is with its first two axes swapped; None if it is none."""
    call = scope.call(x, "permute_dims")
    return call.args[0] if call is not None and axes_of(call) == [1, 0, 2] else None


def _through_reshape(x: relax.Expr, scope: Scope) -> relax.Expr:
    call = scope.call(x, "reshape")
    return x if call is None else call.args[0]


def _same_split(first: relax.Expr, second: relax.Expr, scope: Scope) -> relax.Call | None:
    """The split in two along the last axis whose halves these are."""
    halves = [scope.value(half) for half in (first, second)]
    if not all(isinstance(half, relax.TupleGetItem) and half.index == i for i, half in enumerate(halves)):
        return None
    split, same = (scope.call(half.tuple_value, "split") for half in halves)
    is_one = split is not None and same is not None and split.same_as(same) and len(halves[0].tuple_value.ty.fields) == 2
    return split if split is not None and is_one and int(split.attrs.axis) % len(split.args[0].ty.shape) == 2 else None


def _one_for_all_heads(x: relax.Expr, scope: Scope) -> relax.Expr | None:
    """The tensor of which x [H, n, R] has a copy a head."""
    call = scope.call(_through_reshape(x, scope), "broadcast_to")
    if call is None:
        return None
    *outer, heads, _, dim = shape_of(call)
    source = shape_of(call.args[0])
    is_one = all(size == 1 for size in (*source[:-2], *outer)) and source[-1] == dim and shape_of(x)[0] == heads
    return call.args[0] if is_one and tvm_ffi.structural_equal(call.args[0].ty.shape[-2], call.ty.shape[-2]) else None
