"""Experts of quantized weights and activations rounded to int8: the sums of linear layers, an expert's tokens after another.

Rows are rounded once, by all threads, whatever the number of experts that they go to. Up to FEW of an expert's rows multiply the packed
weights as they come from memory; more of them bytes that a block of rows was unpacked to. Either way gives a row the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import Simd, Value, argument, name, prim_func
from cupola.targets.cpu.experts.routing import Group, Routing
from cupola.targets.cpu.experts.shape import GroupEpilogue, Mixture, match_experts, mixture_of, packed_bias
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.int8 import FEW, ROW_BLOCK, Int8Product, Int8Shape
from cupola.targets.cpu.linear.int8_rows import Int8Rows, RowSource
from cupola.targets.cpu.linear.quantized_packing import SLICE, codes_of, pack_expert_groups


def lower_int8_expert_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`ExpertLinear` and `GatedExpertLinear` with quantized weights, whose activations are to be rounded."""
    op = match_experts(call)
    codes = None if op is None else codes_of(op)
    if op is None or codes is None or op.quantize_x != SLICE or not Weights.can_unpack(isa, codes):
        return None
    mixture, blocks = mixture_of(isa, op, call.ty), int(op.weight.ty.shape[1]) // codes.format.block_size
    layer, (x_dtype, _, out_dtype) = vars(mixture.layer), mixture.dtypes
    shape = Int8Shape(**layer, blocks=blocks, codes=codes, has_norm=False, epsilon=0.0, x_dtype=x_dtype, out_dtype=out_dtype)
    arguments = [op.x, op.index, pack_expert_groups(op, codes, builder), *packed_bias(op, builder)]
    function = builder.add_func(_build(mixture, shape), f"{mixture.label}_{codes.label}a8")
    return relax.op.call_tir(function, relax.Tuple(arguments), out_ty=call.ty)


@cache
def _build(mixture: Mixture, shape: Int8Shape) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n = T.int64()
        x, index = mixture.rows(n)
        weight = argument("weight", (mixture.num_panels, shape.blocks, shape.codes.group_bytes), "uint8")
        simd = Simd(shape.isa)
        whole, num_panels = mixture.epilogue(simd, n), shape.num_panels
        source = _Rows(simd, x, shape.depth, None, 0.0, mixture.choices, mixture.is_shared)
        product = Int8Product(shape, simd, weight, whole, source, Weights(shape.isa, shape.codes), n)
        num_rows = n if mixture.is_shared else n * mixture.choices
        routing = Routing.sort(index, n, mixture.num_experts, mixture.choices)
        claims, rows = routing.claims(num_panels), product.allocate(num_rows)
        with parallel_region():
            with shared_loop(num_rows) as row:
                rows.fill(source, row)
            with claims.threads.each(barrier=False) as thread, routing.each_group(claims, thread, num_panels) as group:
                _multiply(product, rows, group, mixture)

    return with_cost(prim_func(body), KernelCost("int8"))


def _multiply(product: Int8Product, rows: Int8Rows, group: Group, mixture: Mixture) -> None:
    """A panel of an expert with its rows."""
    known = replace(product, num_rows=group.count, epilogue=GroupEpilogue.of(product.epilogue, group))
    picked = _PickedRows(**vars(rows), group=group, divisor=mixture.choices if mixture.is_shared else 1)
    with T.If(group.count <= T.int64(FEW)):
        with T.Then():
            num_left = name(group.first_panel + product.kernel.num_panels - group.panel)
            known.panel(picked, group.panel, num_left, (product.kernel.isa.int8_row_tile, 4, 2, 1))
        with T.Else(), T.serial((group.count + ROW_BLOCK - 1) // ROW_BLOCK) as block:
            first = name(block * ROW_BLOCK)
            known.block(picked, group.panel, first, name(T.min(group.count - first, T.int64(ROW_BLOCK))))


@dataclass(frozen=True)
class _Rows(RowSource):
    """Rows of x [n, K], or [n, choices, K] one after the other."""

    choices: int
    is_shared: bool

    def place(self, row: Value) -> tuple[Value, ...]:
        return (row,) if self.is_shared else (row // self.choices, row % self.choices)


@dataclass(frozen=True)
class _PickedRows(Int8Rows):
    """A group's rows among all; `divisor` pairs share one."""

    group: Group
    divisor: int

    def place(self, row: Value, group: Value | int) -> Value:
        return name(self.group.pair(row) // self.divisor * self.groups + group)
