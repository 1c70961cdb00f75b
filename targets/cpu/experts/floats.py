"""Experts whose weights are floats, or codes that become floats on their way, in the tiles of linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import parallel_region
from cupola.targets.cpu.emit.simd import Simd, Value, argument, name, prim_func
from cupola.targets.cpu.experts.routing import Group, Routing, each_panel
from cupola.targets.cpu.experts.shape import GroupEpilogue, Mixture, match_experts, mixture_of, pack_expert_panels, packed_bias
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.dequantized import DequantizedProduct
from cupola.targets.cpu.linear.floats import ROW_BLOCK, Panels
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import codes_of, pack_expert_groups
from cupola.targets.cpu.linear.shape import QuantizedShape
from cupola.targets.ops import GatedExpertLinear


def lower_expert_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`ExpertLinear` and `GatedExpertLinear` of floats, or of codes where activations stay what they are; x in float32."""
    op = match_experts(call)
    if op is None or op.quantize_x or op.x.ty.dtype != "float32":
        return None
    mixture, gated = mixture_of(isa, op, call.ty), isinstance(op, GatedExpertLinear)
    if op.format:
        codes = codes_of(op)
        if codes is None or not Weights.can_unpack(isa, codes):
            return None
        shape = QuantizedShape(**vars(mixture.layer), blocks=int(op.weight.ty.shape[1]) // codes.format.block_size, codes=codes)
        kernel, weight, label = _build(mixture, "uint8", shape), pack_expert_groups(op, codes, builder), f"{codes.label}a16"
    elif op.weight.ty.dtype in ("float32", "float16", "bfloat16"):
        label = str(op.weight.ty.dtype)
        kernel, weight = _build(mixture, label, None), pack_expert_panels(op.weight, op.num_experts, gated, builder)
    else:
        return None
    arguments = [op.x, op.index, weight, *packed_bias(op, builder)]
    return relax.op.call_tir(builder.add_func(kernel, f"{mixture.label}_{label}"), relax.Tuple(arguments), out_ty=call.ty)


@cache
def _build(mixture: Mixture, dtype: str, codes: QuantizedShape | None) -> tvm.tirx.PrimFunc:
    """Of weights of a type, or of codes."""

    def body() -> None:
        n = T.int64()
        x, index = mixture.rows(n)
        inner = (mixture.layer.depth, PANEL) if codes is None else (codes.blocks, codes.codes.group_bytes)
        weight = argument("weight", (mixture.num_panels, *inner), dtype)
        simd = Simd(mixture.layer.isa)
        whole = mixture.epilogue(simd, n)
        runs = Routing.sort(index, n, mixture.num_experts, mixture.choices).runs(mixture.layer.num_panels, T.bool(True))
        with parallel_region(), runs.claims.threads.each(barrier=False) as thread, runs.each(thread) as group:
            given = (simd, x, weight, GroupEpilogue.of(whole, group), mixture, group)
            with each_panel(group) as panel, T.serial((group.count + ROW_BLOCK - 1) // ROW_BLOCK) as block:
                first = name(block * ROW_BLOCK)
                count = name(T.min(group.count - first, T.int64(ROW_BLOCK)))
                if codes is None:
                    _Panels(mixture.layer, *given).rows(panel, first, count)
                else:
                    _Dequantized(codes, *given).block(panel, first, count)

    return prim_func(body)


@dataclass(frozen=True)
class _Panels(Panels):
    """Rows of a group, wherever they stand in x."""

    mixture: Mixture
    group: Group

    def place(self, row: Value) -> tuple[Value, ...]:
        return self.mixture.source(self.group, row)


@dataclass(frozen=True)
class _Dequantized(DequantizedProduct):
    """The same, of codes."""

    mixture: Mixture
    group: Group

    def place(self, row: Value) -> tuple[Value, ...]:
        return self.mixture.source(self.group, row)
