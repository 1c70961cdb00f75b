"""Turns attention over the call's own tokens into attention over the pages of the K/V cache (PagedAttention; Kwon et al., 2023).

Before:  def forward(tokens, positions, logit_rows, weights…):
             lv = cupola.attention(q, k, v, layer=3)
After:   def forward(tokens, positions, query_starts, context_lens, logit_rows, slots.0, block_tables.0, k_pages.0, v_pages.0, weights…):
             lv1 = cupola.paged_attention(q, k, v, k_pages.0, v_pages.0, slots.0, query_starts, context_lens, block_tables.0, layer=3)
             lv = R.reshape(lv1, (n, H, E))         # q, k, v and lv1 are matrices, the heads side by side

Every group of layers of the K/V specification gets slots, block tables and page pools of its own; pages of int8 have pools of
scales beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx

from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls, shape_of
from cupola.runtime.artifact.state import KVSpec
from cupola.targets import ops


def page_attention(kv: KVSpec) -> tvm.transform.Pass:
    """The pass, for the K/V cache `kv`."""
    return pass_of("page_attention", lambda mod: _run(mod, kv))


def _run(mod: IRModule, kv: KVSpec) -> IRModule:
    batch = tirx.Var("b", "int64")
    starts = relax.Var("query_starts", relax.TensorType([batch + 1], "int32"))
    lens = relax.Var("context_lens", relax.TensorType([batch], "int32"))
    num_tokens = mod["forward"].params[0].ty.shape[0]
    groups = [_Group.declare(i, kv, num_tokens, batch) for i in range(len(kv.groups))]
    out = rewrite_calls(mod, {"cupola.attention": _rule(kv, groups, starts, lens)})
    func = out["forward"]
    tokens, positions, rows, *weights = func.params
    inputs = [tokens, positions, starts, lens, rows, *(var for g in groups for var in (g.slots, g.tables, *g.pools))]
    out["forward"] = relax.Function([*inputs, *weights], func.body, func.ret_ty).with_attrs({**func.attrs, "num_input": len(inputs)})
    return out


@dataclass(frozen=True)
class _Group:
    """The inputs of one group of layers; `pools` are pages of keys and of values, and perhaps their scales."""

    slots: relax.Var
    tables: relax.Var
    pools: tuple[relax.Var, ...]

    @staticmethod
    def declare(index: int, kv: KVSpec, num_tokens: tirx.Expr, batch: tirx.Var) -> _Group:
        sizes = {"num_blocks": tirx.Var("num_blocks", "int64")}
        specs = (pool for pool in kv.pools("num_blocks") if pool.name.endswith(f".{index}"))
        pools = (relax.Var(p.name, relax.TensorType([sizes.get(str(size), size) for size in p.shape], p.dtype)) for p in specs)
        slots = relax.Var(f"slots.{index}", relax.TensorType([num_tokens], "int32"))
        tables = relax.Var(f"block_tables.{index}", relax.TensorType([batch, tirx.Var("max_blocks", "int64")], "int32"))
        return _Group(slots, tables, tuple(pools))


def _rule(kv: KVSpec, groups: list[_Group], starts: relax.Var, lens: relax.Var) -> Rule:
    def rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
        marker = ops.Attention.match(call)
        assert marker is not None
        pairs = zip(groups, kv.groups, strict=True)
        group, place = next((group, spec.layers.index(marker.layer)) for group, spec in pairs if marker.layer in spec.layers)
        k_pages, v_pages, k_scales, v_scales = (*group.pools, None, None)[:4]
        q, k, v = (_flatten_heads(x, scope) for x in (marker.q, marker.k, marker.v))
        paged = ops.PagedAttention(
            q, k, v, None, None, k_pages, v_pages, k_scales, v_scales, group.slots, starts, lens, group.tables,
            marker.slopes, marker.sinks, 0, 0, 0, place, marker.scale, marker.window, marker.softcap,
        )  # fmt: skip
        n, heads, dim = shape_of(call)
        return relax.op.reshape(scope.emit(paged.emit(relax.TensorType([n, heads * dim], "float32"))), [n, heads, dim])

    return rule


def _flatten_heads(x: relax.Expr, scope: Scope) -> relax.Expr:
    n, heads, dim = shape_of(x)
    return scope.emit(relax.op.reshape(x, [n, heads * dim]))
