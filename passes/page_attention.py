"""Turns attention over the call's own tokens into attention over the pages of the K/V cache (PagedAttention; Kwon et al., 2023).

Before:  def forward(tokens, positions, logit_rows, weights…):
             lv = cupola.attention(q, k, v, layer=3)
After:   def forward(tokens, positions, query_starts, context_lens, logit_rows, slots.0, block_tables.0, k_pages.0, v_pages.0, weights…):
             lv1 = cupola.paged_attention(q, k, v, (k_pages.0, v_pages.0), slots.0, query_starts, context_lens, block_tables.0, layer=3)
             lv = R.reshape(lv1, (n, H, E))         # q, k, v and lv1 are matrices, the heads side by side

Every paged group of layers of the K/V specification gets slots, block tables and pools of its own; which pools, and of what shape, is the
target's affair.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax, tirx

from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls, shape_of
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.inputs import input_specs
from cupola.runtime.artifact.state import NUM_BLOCKS, KVSpec
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.targets import ops


def page_attention(kv: KVSpec) -> tvm.transform.Pass:
    """The pass, for the K/V cache `kv`."""
    return pass_of("page_attention", lambda mod: _run(mod, kv))


def _run(mod: IRModule, kv: KVSpec) -> IRModule:
    tokens, positions, rows, *weights = mod["forward"].params
    sizes = {"n": tokens.ty.shape[0], "b": tirx.Var("b", "int64"), "r": rows.ty.shape[0]}
    inputs = {param.name: param for param in (tokens, positions, rows)}
    for spec in input_specs(len(kv.paged)):
        inputs.setdefault(spec.name, declare(spec, sizes))
    groups = [_Group.declare(i, kv, inputs) for i in range(len(kv.paged))]
    out = rewrite_calls(mod, {"cupola.attention": _rule(kv, groups, inputs["query_starts"], inputs["context_lens"])})
    func = out["forward"]
    once = [inputs[spec.name] for spec in input_specs(0)]
    params = [*once, *(var for group in groups for var in (group.slots, group.tables, *group.pools))]
    out["forward"] = relax.Function([*params, *weights], func.body, func.ret_ty).with_attrs({**func.attrs, "num_input": len(params)})
    return out


def declare(spec: TensorSpec, sizes: dict[str, tirx.Expr]) -> relax.Var:
    """A parameter; sizes that nobody named before are new variables."""
    for size in spec.shape:
        if isinstance(size, str) and size.isidentifier():
            sizes.setdefault(size, tirx.Var(size, "int64"))
    return relax.Var(spec.name, relax.TensorType([evaluate(size, sizes) for size in spec.shape], spec.dtype))


@dataclass(frozen=True)
class _Group:
    """The inputs of one group of layers."""

    slots: relax.Var
    tables: relax.Var
    pools: tuple[relax.Var, ...]

    @staticmethod
    def declare(index: int, kv: KVSpec, inputs: dict[str, relax.Var]) -> _Group:
        sizes: dict[str, tirx.Expr] = {}
        pools = (declare(pool, sizes) for pool in kv.pools_of(index, f"{NUM_BLOCKS}_{index}"))
        return _Group(inputs[f"slots.{index}"], inputs[f"block_tables.{index}"], tuple(pools))


def _rule(kv: KVSpec, groups: list[_Group], starts: relax.Var, lens: relax.Var) -> Rule:
    def rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
        marker = ops.Attention.match(call)
        assert marker is not None
        pairs = zip(groups, kv.paged, strict=True)
        group, place = next((group, spec.layers.index(marker.layer)) for group, spec in pairs if marker.layer in spec.layers)
        q, k, v = (None if x is None else _flatten_heads(x, scope) for x in (marker.q, marker.k, marker.v))
        paged = ops.PagedAttention(
            q, k, v, None, None, group.pools, group.slots, starts, lens, group.tables,
            marker.slopes, marker.sinks, 0, 0, 0, kv.dtype, place, marker.scale, marker.window, marker.softcap,
        )  # fmt: skip
        n, heads, dim = shape_of(call)
        return relax.op.reshape(scope.emit(paged.emit(relax.TensorType([n, heads * dim], "float32"))), [n, heads, dim])

    return rule


def _flatten_heads(x: relax.Expr, scope: Scope) -> relax.Expr:
    n, heads, dim = shape_of(x)
    return scope.emit(relax.op.reshape(x, [n, heads * dim]))
