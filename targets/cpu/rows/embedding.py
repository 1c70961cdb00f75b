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
from cupola.targets.cpu.linear.packing import PANEL, is_static, num_panels, pack_panels, shape_of
from cupola.targets.cpu.linear.quantized_packing import QUAD, Codes, codes_of, first_byte, pack_groups
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
    width, groups = int(call.ty.shape[1]), padded // codes.format.group_size
    gv = builder.add_func(_build_quantized(isa, num_entries, width, groups, codes), f"embedding_{num_entries}x{width}_{codes.label}")
    return relax.op.call_tir(gv, relax.Tuple([pack_groups(op, codes, builder), op.tokens]), out_ty=call.ty)


@cache
def _build_quantized(isa: ISA, num_entries: int, width: int, groups: int, codes: Codes) -> tvm.tirx.PrimFunc:
    """A row is scale · (code − zero) + min, rounded as a linear kernel's float weights are."""
    simd, size = Simd(isa), codes.format.group_size

    def body() -> None:
        n = T.int64()
        weight = argument("weight", (num_panels(num_entries), groups, codes.group_bytes), "uint8")
        tokens = argument("tokens", (n,), "int32")
        out = argument("out", (n, width), "float32")

        def factor(panel: Value, group: Value, column: Value, offset: int) -> Value:
            place = codes.code_bytes + offset + 2 * column
            raw = T.cast(weight[panel, group, place], "uint16") | T.cast(weight[panel, group, place + 1], "uint16") << T.uint16(8)
            return name(simd.widen(T.reinterpret("float16", raw), "float16", 1))

        def row(i: Value) -> None:
            token = name(T.cast(tokens[i], "int64"))
            panel, column = name(token // PANEL), name(token % PANEL)
            with T.serial(-(-width // size)) as group:
                scale = factor(panel, group, column, 0)
                low = factor(panel, group, column, 2 * PANEL) if codes.has_mins else None
                with T.serial(T.min(T.int64(size), T.int64(width) - group * size)) as k:
                    value = name(number(panel, group, column, k) * scale)
                    T.buffer_store(out, value if low is None else value + low, [i, group * size + k])

        def number(panel: Value, group: Value, column: Value, k: Value) -> Value:
            if table := codes.format.table:
                return table_entry(table, name(code(panel, group, column, k)))
            return T.cast(code(panel, group, column, k) - T.int32(codes.zero), "float32")

        def code(panel: Value, group: Value, column: Value, k: Value) -> Value:
            quad, byte = k // QUAD, k % QUAD
            if codes.bits == 8:
                raw = weight[panel, group, first_byte(quad, column) + byte]
                return T.cast(T.reinterpret(codes.format.code_dtype, raw), "int32")
            both = T.cast(weight[panel, group, first_byte(quad // 2, column) + byte], "int32")
            return (both >> T.cast(quad % 2 * 4, "int32")) & T.int32(15)

        for_each(n, width, row)

    return prim_func(body)
