"""Experts of quantized weights and activations rounded to int8: the sums of linear layers, an expert's tokens after another.

Rows are rounded once, by all threads, whatever the number of experts that they go to; those of a single token by every thread for itself.
Up to FEW of an expert's rows multiply the packed weights as they come from memory; more of them bytes that a block of rows was unpacked
to. Either way gives a row the same bits, unless the machine has tiles for more of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument, name, prim_func
from cupola.targets.cpu.experts.routing import Group, Routing, Runs, each_panel
from cupola.targets.cpu.experts.shape import GroupEpilogue, Mixture, match_experts, mixture_of, packed_bias
from cupola.targets.cpu.experts.tiles import GroupProduct
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.amx import Scratch
from cupola.targets.cpu.linear.int8 import FEW, ROW_BLOCK, Int8Product, Int8Shape
from cupola.targets.cpu.linear.int8_rows import Int8Rows, RowSource
from cupola.targets.cpu.linear.packing import AHEAD
from cupola.targets.cpu.linear.quantized_packing import SLICE, codes_of, pack_expert_groups
from cupola.targets.cpu.linear.stream import ABREAST, Run, Stream


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
    in_tiles = shape.isa.bf16_tiles

    def body() -> None:
        n = T.int64()
        x, index = mixture.rows(n)
        weight = argument("weight", (mixture.num_panels, shape.blocks, shape.codes.group_bytes), "uint8")
        simd = Simd(shape.isa)
        whole = mixture.epilogue(simd, n)
        source = _Rows(simd, x, shape.depth, None, 0.0, mixture.choices, mixture.is_shared)
        routing = Routing.sort(index, n, mixture.num_experts, mixture.choices, tiles.MANY if in_tiles else 0)
        runs = routing.runs(shape.num_panels, n <= T.int64(FEW), ABREAST)
        product = Int8Product(shape, simd, Weights(shape.isa, shape.codes), weight, whole, source, n)
        in_bf16 = GroupProduct(simd, weight, shape.codes, shape.slices, source, whole, n, mixture.divisor) if in_tiles else None
        _multiply(mixture, product, in_bf16, runs, index)

    return with_cost(prim_func(body), KernelCost("bfloat16" if in_tiles else "int8"))


def _multiply(mixture: Mixture, product: Int8Product, in_bf16: GroupProduct | None, runs: Runs, index: Buffer) -> None:
    """One region: rows, a barrier, then runs of panels."""
    routing, threads, num_pairs = runs.routing, runs.claims.threads, product.num_rows * mixture.choices
    num_rows = product.num_rows if mixture.is_shared else num_pairs
    rows = product.allocate(num_rows)
    rounded = None if in_bf16 is None else in_bf16.allocate_rows(num_pairs, product.kernel.slices)
    with parallel_region():
        with threads.each(barrier=False) as thread, T.If(num_pairs > T.int64(0)), T.Then():  # unless no token is asked for
            first = runs.first(thread)
            with T.If(_is_abreast(first)):
                with T.Then():
                    product.fetch_first_block(_abreast(first))
                with T.Else():
                    product.fetch_first(GroupStream.of(product, first, first.start), AHEAD)
        with shared_loop(num_rows, barrier=in_bf16 is None) as row:
            rows.fill(product.source, row)
        if in_bf16 is not None:
            with shared_loop(num_pairs) as at:
                in_bf16.round_pair(routing, index, rounded, at)
        with threads.each(barrier=False) as thread:
            if in_bf16 is None:
                size = product.lone_row_tile
                lone = product.allocate(size) if size > 1 else None
                with runs.each(thread) as group:
                    _panels(product, rows, lone, group, mixture)
            else:
                _with_tiles(product, in_bf16, rows, rounded, runs, thread, mixture)


def _with_tiles(
    product: Int8Product, in_bf16: GroupProduct, rows: Int8Rows, rounded: Buffer, runs: Runs, thread: Value, mixture: Mixture
) -> None:
    """A thread's runs, those of experts with many rows in tiles."""
    num_tiles = runs.routing.num_tiles
    scratch = Scratch.allocate(in_bf16)
    with T.If(num_tiles > T.int64(0)), T.Then():
        tiles.configure()
    with runs.each(thread) as group, T.If(group.count <= T.int64(FEW)):
        with T.Then():
            _panels(product, rows, None, group, mixture)
        with T.Else():
            in_bf16.multiply_group(group, rounded, scratch)
    with T.If(num_tiles > T.int64(0)), T.Then():
        tiles.release()


def _panels(product: Int8Product, rows: Int8Rows, lone: Int8Rows | None, group: Group, mixture: Mixture) -> None:
    """The panels of a run with its rows, in dot products. `lone` has room for a row alone, where its tile wants it more than once."""
    known = replace(product, num_rows=group.count, epilogue=GroupEpilogue.of(product.epilogue, group))
    picked = _PickedRows(**vars(rows), group=group, divisor=mixture.divisor)
    with T.If(_is_abreast(group)):
        with T.Then():
            in_expert = name(group.first_panel + product.kernel.num_panels - group.stop)
            next_one = Run(group.following, T.int64(ABREAST)).or_else(in_expert > 0, Run(group.stop, T.min(in_expert, T.int64(ABREAST))))
            following = _abreast(group).or_else(group.num_left > group.stop - group.start, next_one)
            if lone is not None:
                for to in range(product.lone_row_tile):
                    lone.copy(picked, T.int64(0), to)
            known.run_alone(picked if lone is None else lone, _abreast(group), following)
        with T.Else():
            _one_by_one(known, picked, group)


def _is_abreast(group: Group) -> Value:
    """True if a run is a single row's, and short."""
    return T.And(group.count == 1, group.stop - group.start <= T.int64(ABREAST))


def _abreast(group: Group) -> Run:
    """The panels of a short run."""
    return Run(group.start, name(group.stop - group.start))


def _one_by_one(known: Int8Product, picked: Int8Rows, group: Group) -> None:
    """The panels of a run one after the other."""
    isa = known.kernel.isa
    sizes = (isa.int8_row_tile, 4, 2, 1)
    with each_panel(group) as panel:
        if isa.bf16_tiles:
            known.panel(picked, panel, GroupStream.of(known, group, panel), sizes)
            return
        with T.If(group.count <= T.int64(FEW)):
            with T.Then():
                known.panel(picked, panel, GroupStream.of(known, group, panel), sizes)
            with T.Else(), T.serial((group.count + ROW_BLOCK - 1) // ROW_BLOCK) as block:
                first = name(block * ROW_BLOCK)
                count = name(T.min(group.count - first, T.int64(ROW_BLOCK)))
                known.block(picked, panel, first, count, GroupStream.of(known, group, panel))


@dataclass(frozen=True)
class GroupStream(Stream):
    """From a panel of an expert on to those of the next one: after `until_next` slices comes panel `following`."""

    until_next: Value
    following: Value

    @staticmethod
    def of(product: Int8Product, group: Group, panel: Value) -> GroupStream:
        """The panels that a thread has left of its share, from one of a run's on."""
        slices, end = product.stream_slices, group.first_panel + product.kernel.num_panels
        num_left, until_next = name((group.num_left - (panel - group.start)) * slices), name((end - panel) * slices)
        return GroupStream(panel, num_left, until_next, group.following)

    def place(self, at: Value | int) -> tuple[Value, Value | int]:
        """As for a layer."""
        at = name(T.cast(at, "int64"))
        is_own = at < self.until_next
        return name(T.Select(is_own, self.panel, self.following)), name(T.Select(is_own, at, at - self.until_next))


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
