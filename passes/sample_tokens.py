"""Lets the model draw tokens from its logits as each row's sampling parameters say: then only token ids need come to the host.

Before:  def forward(tokens, …, weights…):
             argmax = cupola.argmax(logits, maxima, tokens, positions, …)
After:   def forward(tokens, …, draws, weights…):            # i32 [r, 21]
             chosen = cupola.sample(logits, maxima, draws)   # i32 [r]
             argmax = cupola.argmax(logits, maxima, tokens, positions, …, chosen, draws)

The likeliest token is a case of it. The host's numbers for further steps come along, so that the model can go on by itself.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax

from cupola.passes.rewrite import pass_of
from cupola.runtime.artifact.inputs import DRAW_COLUMNS
from cupola.targets.ops import Argmax, Sample


def sample_tokens() -> tvm.transform.Pass:
    """The pass, for functions whose last call is an `Argmax`; others stay as they are."""
    return pass_of("sample_tokens", lambda mod: IRModule({var: _sampling(func) for var, func in mod.functions_items()}, attrs=mod.attrs))


def _sampling(func: relax.Function) -> relax.Function:
    last = func.body.blocks[-1].bindings[-1] if isinstance(func, relax.Function) else None
    op = None if last is None else Argmax.match(last.value)
    if last is None or op is None:
        return func
    draws = relax.Var("draws", relax.TensorType((op.logits.ty.shape[0], DRAW_COLUMNS), "int32"))
    builder, block = relax.BlockBuilder(), func.body.blocks[-1]
    call = builder.normalize(Sample(op.logits, op.maxima, draws).call())
    chosen = relax.DataflowVar("chosen", call.ty) if isinstance(block, relax.DataflowBlock) else relax.Var("chosen", call.ty)
    taken = builder.normalize(replace(op, chosen=chosen, draws=draws).call())
    added = [relax.VarBinding(chosen, call), relax.VarBinding(last.var, taken)]
    body = builder.normalize(relax.SeqExpr([*func.body.blocks[:-1], type(block)([*block.bindings[:-1], *added])], func.body.body))
    num_inputs = int(func.attrs["num_input"])
    params = [*func.params[:num_inputs], draws, *func.params[num_inputs:]]
    return relax.Function(params, body, body.ty).with_attrs({**func.attrs, "num_input": num_inputs + 1})
