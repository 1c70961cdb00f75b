"""Turns attention over the call's own tokens into attention over the pages of the K/V cache (PagedAttention; Kwon et al., 2023).

Before:  def forward(tokens, positions, logit_rows, weights…):
             lv = cupola.attention(q, k, v, layer=3)
After:   def forward(tokens, positions, query_starts, context_lens, logit_rows, slots.0, block_tables.0, k_pages.0, v_pages.0, weights…):
             lv1 = cupola.paged_attention(q, k, v, k_pages.0, v_pages.0, slots.0, query_starts, context_lens, block_tables.0, layer=3)
             lv = R.reshape(lv1, (n, H, E))         # q, k, v and lv1 are matrices, the heads side by side

Every group of layers of the K/V specification gets slots, block tables and two page pools of its own.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax, tirx

from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls, shape_of
from cupola.runtime.artifact import KVGroup, KVSpec
from cupola.targets import ops


def page_attention(kv: KVSpec) -> tvm.transform.Pass:
    """The pass, for the K/V cache `kv`."""
    return pass_of("page_attention", lambda mod: _run(mod, kv))


def _run(mod: IRModule, kv: KVSpec) -> IRModule:
    batch = tirx.Var("b", "int64")
    starts = relax.Var("query_starts", relax.TensorType([batch + 1], "int32"))
    lens = relax.Var("context_lens", relax.TensorType([batch], "int32"))
    num_tokens = mod["forward"].params[0].ty.shape[0]
    pools = {f"{i}": _group_inputs(i, group, kv, num_tokens, batch) for i, group in enumerate(kv.groups)}
    out = rewrite_calls(mod, {"cupola.attention": _rule(kv, list(pools.values()), starts, lens)})
    func = out["forward"]
    tokens, positions, rows, *weights = func.params
    inputs = [tokens, positions, starts, lens, rows, *(var for group in pools.values() for var in group)]
    out["forward"] = relax.Function([*inputs, *weights], func.body, func.ret_ty).with_attrs({**func.attrs, "num_input": len(inputs)})
    return out


def _group_inputs(index: int, group: KVGroup, kv: KVSpec, num_tokens: tirx.Expr, batch: tirx.Var) -> list[relax.Var]:
    max_blocks, num_blocks = tirx.Var("max_blocks", "int64"), tirx.Var("num_blocks", "int64")
    k_shape = [len(group.layers), num_blocks, group.num_kv_heads, group.key_dim, kv.block_size]
    v_shape = [len(group.layers), num_blocks, group.num_kv_heads, kv.block_size, group.value_dim]
    return [
        relax.Var(f"slots.{index}", relax.TensorType([num_tokens], "int32")),
        relax.Var(f"block_tables.{index}", relax.TensorType([batch, max_blocks], "int32")),
        relax.Var(f"k_pages.{index}", relax.TensorType(k_shape, kv.dtype)),
        relax.Var(f"v_pages.{index}", relax.TensorType(v_shape, kv.dtype)),
    ]


def _rule(kv: KVSpec, pools: list[list[relax.Var]], starts: relax.Var, lens: relax.Var) -> Rule:
    def rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
        marker = ops.Attention.match(call)
        assert marker is not None
        group, place = next((g, spec.layers.index(marker.layer)) for g, spec in enumerate(kv.groups) if marker.layer in spec.layers)
        slots, tables, k_pages, v_pages = pools[group]
        q, k, v = (_flatten_heads(x, scope) for x in (marker.q, marker.k, marker.v))
        paged = ops.PagedAttention(
            q, k, v, None, None, k_pages, v_pages, slots, starts, lens, tables, marker.slopes, marker.sinks, 0, 0, 0,
            place, marker.scale, marker.window, marker.softcap,
        )  # fmt: skip
        n, heads, dim = shape_of(call)
        return relax.op.reshape(scope.emit(paged.emit(relax.TensorType([n, heads * dim], "float32"))), [n, heads, dim])

    return rule


def _flatten_heads(x: relax.Expr, scope: Scope) -> relax.Expr:
    n, heads, dim = shape_of(x)
    return scope.emit(relax.op.reshape(x, [n, heads * dim]))
