"""A tensor that a call gives a kernel several times becomes one parameter of it.

Browsers let a kernel have ten tensors, and memory that it may write to once.
"""

from __future__ import annotations

from functools import wraps

import tvm
import tvm_ffi
from tvm import relax, tirx

from cupola.targets.base import KernelRule

_CALL = tvm.ir.Op.get("relax.call_tir")


def merging(rule: KernelRule) -> KernelRule:
    """`rule`, whose calls give no tensor twice."""

    @wraps(rule)
    def lower(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
        lowered = rule(call, builder)
        if not isinstance(lowered, relax.Call) or lowered.op != _CALL:
            return lowered
        var, (given, *others) = lowered.args[0], lowered.args[1:]
        first = [next(i for i, earlier in enumerate(given.fields) if earlier.same_as(tensor)) for tensor in given.fields]
        if first == list(range(len(first))):
            return lowered
        merged = builder.add_func(_merge(builder.get()[var], first), var.name_hint)
        kept = [tensor for i, tensor in enumerate(given.fields) if first[i] == i]
        return relax.Call(_CALL, [merged, relax.Tuple(kept), *others], lowered.attrs, lowered.ty_args)

    return lower


def _merge(kernel: tirx.PrimFunc, first: list[int]) -> tirx.PrimFunc:
    """The kernel with parameter `first[i]` in place of each parameter i."""
    params = list(kernel.params)
    stands_for = {params[i]: params[earlier] for i, earlier in enumerate(first) if i != earlier}
    body = tvm_ffi.structural_map(kernel.body, (tirx.Var, lambda var: stands_for.get(var, var)))
    kept = [param for param in params if param not in stands_for]
    return tirx.PrimFunc(kept, body, kernel.ret_type, kernel.attrs)
