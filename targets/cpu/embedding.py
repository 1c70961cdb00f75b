"""Rows of an embedding, read from the panels that `linear.py` multiplies with: a tied weight is stored once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact import ITEM_BYTES, Work
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.loops import for_each
from cupola.targets.cpu.packing import PANEL, is_static, num_panels, pack_panels, shape_of
from cupola.targets.cpu.simd import Simd, Value, argument, name, prim_func
from cupola.targets.work import with_work


@dataclass(frozen=True)
class _Kernel:
    isa: ISA
    num_entries: int
    width: int
    weight_dtype: str
    out_dtype: str


def lower_take(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.take(weight[V, K], tokens[n], axis=0)` of a weight of known shape. Token ids are trusted."""
    if call.op.name != "relax.take" or call.attrs.axis is None or int(call.attrs.axis) != 0:
        return None
    weight, tokens = call.args
    if not isinstance(tokens.ty, relax.TensorType) or tokens.ty.ndim != 1 or weight.ty.ndim != 2:
        return None
    if not is_static(weight) or weight.ty.dtype not in ("float32", "float16", "bfloat16"):
        return None
    num_entries, width = shape_of(weight)
    kernel = _Kernel(isa, num_entries, width, str(weight.ty.dtype), str(call.ty.dtype))
    gv = builder.add_func(_build(kernel, str(tokens.ty.dtype)), f"embedding_{num_entries}x{width}_{kernel.weight_dtype}")
    return relax.op.call_tir(gv, relax.Tuple([pack_panels(weight, builder), tokens]), out_ty=call.ty)


@cache
def _build(kernel: _Kernel, token_dtype: str) -> tvm.tirx.PrimFunc:
    simd = Simd(kernel.isa)

    def body() -> None:
        n = T.int64()
        weight = argument("weight", (num_panels(kernel.num_entries), kernel.width, PANEL), kernel.weight_dtype)
        tokens = argument("tokens", (n,), token_dtype)
        out = argument("out", (n, kernel.width), kernel.out_dtype)

        def row(i: Value) -> None:
            token = name(T.cast(tokens[i], "int64"))
            with T.serial(kernel.width) as k:
                simd.store(out, simd.load(weight, (token // PANEL, k, token % PANEL), 1), (i, k))

        for_each(n, kernel.width, row)

    return with_work(prim_func(body), Work(gathered_bytes_per_row=kernel.width * ITEM_BYTES[kernel.weight_dtype]))
