"""Matrix products with a constant weight: one kernel from a single row (memory-bound) to hundreds (compute-bound).

A task takes a panel of 32 columns and a block of rows. It walks the rows in register tiles, `row_tile` at a time and the
rest in tiles of 8, 4, 2 and 1, so that up to eight rows read the weight from memory once. Every output is one chain of
multiply-adds over k, from 0 up, whatever the tile: a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.cpu.emit.loops import in_tiles
from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Register, Simd, Value, argument, local, name, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.epilogue import Epilogue, call_layer
from cupola.targets.cpu.linear.packing import AHEAD, PANEL, is_static, pack_gated_panels, pack_panels
from cupola.targets.cpu.linear.shape import LayerShape, layer_shape, packed_bias, residual_of
from cupola.targets.cpu.rows.norm import lower_rms_norm
from cupola.targets.ops import GatedLinear, Linear

ROW_BLOCK = 96  # rows of a task: their activations stay in L2 while panels stream by


@dataclass(frozen=True)
class _Kernel(LayerShape):
    """The parameters of a kernel."""

    weight_dtype: str


def lower_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` with a weight of known shape, float32 activations of rank 2."""
    op = Linear.match(call) or GatedLinear.match(call)
    if op is None or not _fits(op.x, op.weight):
        return None
    kernel = _Kernel(**vars(layer_shape(isa, op, call.ty)), weight_dtype=str(op.weight.ty.dtype))
    residual, pack = residual_of(op), pack_gated_panels if kernel.gated else pack_panels
    arguments = [normalized(op, isa, builder), pack(op.weight, builder), *packed_bias(op, builder)]
    arguments += [] if residual is None else [residual]
    function = builder.add_func(_build(kernel), f"{kernel.label}_{kernel.weight_dtype}")
    return call_layer(function, arguments, call.ty, residual if kernel.in_place else None)


def normalized(op: Linear | GatedLinear, isa: ISA, builder: relax.BlockBuilder) -> relax.Expr:
    """The operation's rows after its norm, which float kernels leave to a kernel of its own."""
    if op.norm is None:
        return op.x
    call = relax.op.nn.rms_norm(op.x, op.norm, axes=[-1], epsilon=op.epsilon)
    return builder.emit(lower_rms_norm(isa, builder.normalize(call), builder))


def float_tiles(isa: ISA) -> tuple[int, ...]:
    """Rows of register tiles, the largest first."""
    return (isa.row_tile, *(rows for rows in (8, 4, 2, 1) if rows < isa.row_tile))


def _fits(x: relax.Expr, weight: relax.Expr) -> bool:
    return x.ty.ndim == 2 and x.ty.dtype == "float32" and is_static(weight) and weight.ty.dtype in ("float32", "float16", "bfloat16")


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    def body() -> None:
        num_rows = T.int64()
        x = argument("x", (num_rows, kernel.depth), "float32")
        weight = argument("weight", (kernel.num_panels, kernel.depth, PANEL), kernel.weight_dtype)
        bias, residual = kernel.bias_and_residual(num_rows)
        simd = Simd(kernel.isa)
        epilogue = kernel.epilogue(simd, num_rows, bias, residual)
        panels = Panels(kernel, simd, x, weight, epilogue)
        with T.parallel((num_rows + ROW_BLOCK - 1) // ROW_BLOCK * kernel.num_panels) as task:
            panel, first = name(task % kernel.num_panels), name(task // kernel.num_panels * ROW_BLOCK)
            panels.rows(panel, first, name(T.min(num_rows - first, T.int64(ROW_BLOCK))))

    return prim_func(body)


@dataclass(frozen=True)
class Panels:
    """Emits the loops of one task."""

    kernel: LayerShape
    simd: Simd
    x: Buffer
    weight: Buffer
    epilogue: Epilogue

    def place(self, row: Value) -> tuple[Value, ...]:
        """Where a row stands in `x`."""
        return (row,)

    def rows(self, panel: Value, first: Value, count: Value) -> None:
        in_tiles(count, float_tiles(self.kernel.isa), lambda row, rows: self.tile(panel, name(first + row), rows))

    def tile(self, panel: Value, row: Value, rows: int) -> None:
        """`rows` rows of one panel: the products into a scratch tile, and that through the epilogue."""
        products = local((rows, PANEL))
        for columns in self.column_groups(rows):
            self.multiply(panel, row, rows, columns, products)
        with T.serial(rows) as r:
            self.epilogue.finish(panel, row + r, r, products)

    def column_groups(self, rows: int) -> list[list[int]]:
        """The panel's columns in groups of vectors whose accumulators fit the registers."""
        lanes, registers = self.kernel.isa.lanes, self.kernel.isa.num_registers
        vectors = PANEL // lanes
        fitting = max(size for size in (1, 2, 4, 8) if size <= min(vectors, 4) and rows * size + size < registers)
        return [[v * lanes for v in range(start, start + fitting)] for start in range(0, vectors, fitting)]

    def multiply(self, panel: Value, row: Value, rows: int, columns: list[int], products: Buffer) -> None:
        simd = self.simd
        sums = [[Register(simd.lanes) for _ in columns] for _ in range(rows)]
        places = [self.place(row + r) for r in range(rows)]
        row_bytes = PANEL * ITEM_BYTES[str(self.weight.dtype)]
        with T.serial(self.kernel.depth) as k:
            for byte in range(0, row_bytes if columns[0] == 0 else 0, CACHE_LINE):  # past the panel's end it is one of the next
                column = byte * PANEL // row_bytes
                simd.prefetch(self.weight, (panel, k + AHEAD // row_bytes, column), near=2)
            weights = [simd.load(self.weight, (panel, k, column)) for column in columns]
            for r in range(rows):
                value = name(splat(self.x[(*places[r], k)], simd.lanes))
                for total, w in zip(sums[r], weights, strict=True):
                    total.set(simd.fma(value, w, total.get()))
        for r in range(rows):
            for column, total in zip(columns, sums[r], strict=True):
                simd.store(products, total.get(), (r, column))
