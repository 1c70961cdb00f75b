"""Rows of an embedding, read from the panels that linear kernels multiply with: a tied weight is stored once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Simd, Value, argument, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.factors import Factors
from cupola.targets.cpu.linear.packing import PANEL, is_static, num_panels, pack_panels, shape_of
from cupola.targets.cpu.linear.quantized_packing import QUAD, SLICE, Codes, codes_of, first_byte, pack_groups
from cupola.targets.generic.weights import table_entry
from cupola.targets.ops import Embedding


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

    return prim_func(body)


def lower_embedding(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Embedding` of a quantized table."""
    op = Embedding.match(call)
    codes = None if op is None else codes_of(op)
    if op is None or codes is None:
        return None
    num_entries, padded = shape_of(op.weight)
    width, blocks = int(call.ty.shape[1]), padded // codes.format.block_size
    gv = builder.add_func(_build_quantized(isa, num_entries, width, blocks, codes), f"embedding_{num_entries}x{width}_{codes.label}")
    return relax.op.call_tir(gv, relax.Tuple([pack_groups(op, codes, builder), op.tokens]), out_ty=call.ty)


@cache
def _build_quantized(isa: ISA, num_entries: int, width: int, blocks: int, codes: Codes) -> tvm.tirx.PrimFunc:
    """A row is scale · (code − zero) + min, rounded as a linear kernel's float weights are."""
    simd, form = Simd(isa), codes.format
    size = min(form.group_size, SLICE) if form.super_size else form.group_size  # inputs at a time, of the same scale

    def body() -> None:
        n = T.int64()
        weight = argument("weight", (num_panels(num_entries), blocks, codes.group_bytes), "uint8")
        tokens = argument("tokens", (n,), "int32")
        out = argument("out", (n, width), "float32")
        factors = Factors(simd, codes, weight)

        def row(i: Value) -> None:
            token = name(T.cast(tokens[i], "int64"))
            panel, column = name(token // PANEL), name(token % PANEL)
            with T.serial(-(-width // size)) as group:
                scale, low, zero = factors.of_group(panel, group, column)
                start = 0 if form.super_size == 0 else name(group * size % form.block_size)
                block = group if form.super_size == 0 else name(group * size // form.block_size)
                with T.serial(T.min(T.int64(size), T.int64(width) - group * size)) as k:
                    code = number(panel, block, column, start + k)
                    value = name((code if zero is None else code - zero) * scale)
                    T.buffer_store(out, value if low is None else value + low, [i, group * size + k])

        def number(panel: Value, block: Value, column: Value, k: Value) -> Value:
            """The number that the scale of input k of a block multiplies."""
            if codes.bits == 8:
                raw = weight[panel, block, first_byte(k // QUAD, column) + k % QUAD]
                code = T.cast(T.reinterpret(form.code_dtype, raw), "int32")
            else:
                code = codes.code(weight, (panel, block), column, k)
            return table_entry(form.table, name(code)) if form.table else T.cast(code - T.int32(codes.zero), "float32")

        for_each(n, width, row)

    return prim_func(body)
