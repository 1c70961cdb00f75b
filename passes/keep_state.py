"""Keeps the states of recurrences in slots, from step to step.

Before:  def forward(tokens, …, query_starts, context_lens, …, weights…):
             lv = cupola.causal_conv(3, 0, 0, 0, 0, x, weight, bias)
After:   def forward(tokens, …, query_starts, context_lens, …, state_slots.1, causal_conv_2x64.1, weights…):
             lv = cupola.causal_conv(2, causal_conv_2x64.1, state_slots.1, query_starts, context_lens, x, weight, bias)

A pool holds the layers of one kind and one shape, and a layer is numbered by its place there.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax, tirx

from cupola.passes.page_attention import declare
from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls
from cupola.runtime.artifact.inputs import state_slots
from cupola.runtime.artifact.state import NUM_BLOCKS, KVSpec
from cupola.targets.ops import PREFIX, RECURRENCES, match_recurrence


def keep_state(kv: KVSpec) -> tvm.transform.Pass:
    """The pass, for a `forward` that takes the K/V cache already; without a recurrent group it changes nothing."""
    return pass_of("keep_state", lambda mod: mod if kv.recurrent is None else _run(mod, kv, kv.recurrent))


def _run(mod: IRModule, kv: KVSpec, group: int) -> IRModule:
    func = mod["forward"]
    given = {param.name: param for param in func.params}
    sizes: dict[str, tirx.Expr] = {"b": given["context_lens"].ty.shape[0]}
    slots = declare(state_slots(group), sizes)
    pools = [declare(pool, sizes) for pool in kv.pools_of(group, f"{NUM_BLOCKS}_{group}")]
    places: dict[int, tuple[relax.Var, int]] = {}
    layers = iter(kv.groups[group].layers)
    for pool in pools:
        places |= {next(layers): (pool, place) for place in range(int(pool.ty.shape[0]))}
    rule = _rule(places, (slots, given["query_starts"], given["context_lens"]))
    out = rewrite_calls(mod, {PREFIX + op.name: rule for op in RECURRENCES})
    func, num_inputs = out["forward"], int(func.attrs["num_input"])
    params = [*func.params[:num_inputs], slots, *pools, *func.params[num_inputs:]]
    attrs = {**func.attrs, "num_input": num_inputs + 1 + len(pools)}
    out["forward"] = relax.Function(params, func.body, func.ret_ty).with_attrs(attrs)
    return out


def _rule(places: dict[int, tuple[relax.Var, int]], step: tuple[relax.Var, relax.Var, relax.Var]) -> Rule:
    def rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
        found = match_recurrence(call)
        assert found is not None
        (pool, place), (slots, query_starts, context_lens) = places[found.layer], step
        kept = replace(found, layer=place, pool=pool, slots=slots, query_starts=query_starts, context_lens=context_lens)
        return kept.emit(call.ty)

    return rule
