"""Matrix products of quantized weights and float32 activations: the weights become float32 on their way, as exactly as their format says.

A task takes a panel of 32 columns and a block of rows. It dequantizes the panel a few slices at a time into scratch that L1
holds and multiplies every row by them, in register tiles. Every output is one chain of multiply-adds over k, from 0 up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import in_tiles
from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, argument, local, name, prim_func, splat
from cupola.targets.cpu.emit.tables import CodeTable
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.epilogue import Epilogue, call_layer
from cupola.targets.cpu.linear.factors import Factors
from cupola.targets.cpu.linear.floats import ROW_BLOCK, float_tiles, normalized
from cupola.targets.cpu.linear.packing import PANEL, is_static
from cupola.targets.cpu.linear.quantized_packing import QUAD, QUADS, SLICE, codes_of, first_byte, pack_groups
from cupola.targets.cpu.linear.shape import QuantizedShape, packed_bias, quantized_shape, residual_of
from cupola.targets.ops import GatedLinear, Linear

SLICE_BLOCK = 6  # slices that are dequantized at once: 24 KB


def lower_dequantized_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` with quantized weights, whose activations stay what they are."""
    op = Linear.match(call) or GatedLinear.match(call)
    codes = None if op is None else codes_of(op)
    if op is None or codes is None or not (codes.is_plain or Weights.can_unpack(isa, codes)):
        return None
    if op.quantize_x or op.x.ty.ndim != 2 or not is_static(op.weight):
        return None
    kernel, residual = quantized_shape(isa, op, codes, call.ty), residual_of(op)
    arguments = [normalized(op, isa, builder), pack_groups(op, codes, builder), *packed_bias(op, builder)]
    arguments += [] if residual is None else [residual]
    function = builder.add_func(_build(kernel), f"{kernel.label}_{codes.label}a16")
    return call_layer(function, arguments, call.ty, residual if kernel.in_place else None)


@cache
def _build(kernel: QuantizedShape) -> tvm.tirx.PrimFunc:
    k = kernel

    def body() -> None:
        num_rows = T.int64()
        x = argument("x", (num_rows, k.depth), "float32")
        weight = k.weight()
        bias, residual = k.bias_and_residual(num_rows)
        simd = Simd(k.isa)
        product = DequantizedProduct(k, simd, x, weight, k.epilogue(simd, num_rows, bias, residual))
        with T.parallel((num_rows + ROW_BLOCK - 1) // ROW_BLOCK * k.num_panels) as task:
            first = name(task // k.num_panels * ROW_BLOCK)
            product.block(name(task % k.num_panels), first, name(T.min(num_rows - first, T.int64(ROW_BLOCK))))

    return prim_func(body)


@dataclass(frozen=True)
class DequantizedProduct:
    """Emits the loops of one task."""

    kernel: QuantizedShape
    simd: Simd
    x: Buffer
    weight: Buffer
    epilogue: Epilogue

    def place(self, row: Value) -> tuple[Value, ...]:
        """Where a row stands in `x`."""
        return (row,)

    def block(self, panel: Value, first: Value, count: Value) -> None:
        """`count` rows from `first` on of one panel."""
        kernel, simd = self.kernel, self.simd
        products, weights = local((ROW_BLOCK, PANEL)), local((SLICE_BLOCK * SLICE, PANEL))
        with T.serial(count) as r:
            for start in range(0, PANEL, simd.lanes):
                simd.store(products, splat(0.0, simd.lanes), (r, start))
        with T.serial(-(-kernel.slices // SLICE_BLOCK)) as index:
            start = name(index * SLICE_BLOCK)
            with T.serial(T.min(T.int64(SLICE_BLOCK), T.int64(kernel.slices) - start)) as at:
                self.dequantize(panel, name(start + at), name(at * SLICE), weights)
            depth = name(T.min(T.int64(SLICE_BLOCK * SLICE), T.int64(kernel.depth) - start * SLICE))

            def tile(r: Value, size: int) -> None:
                self.tile(name(first + r), size, name(start * SLICE), depth, weights, products, r)

            in_tiles(count, float_tiles(kernel.isa), tile)
        with T.serial(count) as r:
            self.epilogue.finish(panel, first + r, r, products)

    def dequantize(self, panel: Value, at: Value, row: Value, weights: Buffer) -> None:
        """A slice's weights to the rows of `weights` from `row` on, an input each."""
        simd, codes, lanes = self.simd, self.kernel.codes, self.simd.lanes
        if not codes.is_plain:
            self.dequantize_unpacked(panel, at, row, weights)
            return
        group, first = codes.place(at, codes.slice_step)
        table = CodeTable.of(simd, codes.format)
        with T.serial(PANEL // lanes) as vector:
            column, factors = name(vector * lanes), Factors(simd, codes, self.weight)
            scale, low, zero = (read(panel, at, 0, column) for read in (factors.scale, factors.min, factors.zero))
            scale = scale if table is None else name(scale * splat(table.factor, lanes))
            with T.serial(QUADS * codes.bits // 8) as block:
                place = name(first_byte(0, column) + block * (PANEL * QUAD) + first)
                words = name(T.reinterpret(f"int32x{lanes}", self.weight[panel, group, T.ramp(place, 1, 4 * lanes)]))
                for quad in range(8 // codes.bits):
                    for byte in range(QUAD):
                        up = 32 - 8 * (byte + 1) + (4 if codes.bits == 4 and quad == 0 else 0)
                        down = 32 - codes.bits
                        value = T.cast(self.code(words, up, down), f"float32x{lanes}") if table is None else table.numbers(words, down - up)
                        value = (value if zero is None else value - zero) * scale
                        k = row + (block * (8 // codes.bits) + quad) * QUAD + byte
                        simd.store(weights, value if low is None else value + low, (k, column))

    def dequantize_unpacked(self, panel: Value, at: Value, row: Value, weights: Buffer) -> None:
        """The same of codes that lie in parts, or in super-blocks, by way of the integers of a dot product."""
        simd, codes, lanes = self.simd, self.kernel.codes, self.simd.lanes
        unpacked = Weights(self.kernel.isa, codes)
        factors = Factors(simd, codes, self.weight, unpacked.unit)
        with T.serial(PANEL // lanes) as vector:
            column = name(vector * lanes)
            for quad, numbers in enumerate(unpacked.unpack(self.weight, panel, at, column)):
                if quad % (QUADS // codes.parts) == 0:
                    part = quad * codes.parts // QUADS
                    scale, low = factors.scale(panel, at, part, column), factors.min(panel, at, part, column)
                words = name(T.reinterpret(f"int32x{lanes}", numbers))
                for byte in range(QUAD):
                    number = words << T.broadcast(T.int32(24 - 8 * byte), lanes)
                    if codes.is_signed and not unpacked.unsigned:
                        number = number >> T.broadcast(T.int32(24), lanes)
                    else:
                        number = T.reinterpret(f"uint32x{lanes}", number) >> T.broadcast(T.uint32(24), lanes)
                        number = T.reinterpret(f"int32x{lanes}", number) - T.broadcast(T.int32(unpacked.zero), lanes)
                    value = T.cast(number, f"float32x{lanes}") * scale
                    simd.store(weights, value if low is None else value + low, (row + quad * QUAD + byte, column))

    def code(self, words: Value, up: int, down: int) -> Value:
        """The bits that shifting `up` and then `down` leaves, less what stands for 0; codes of 8 bits have a sign."""
        lanes, codes = self.simd.lanes, self.kernel.codes
        shifted = words << T.broadcast(T.int32(up), lanes)
        if codes.bits == 8:
            return shifted >> T.broadcast(T.int32(down), lanes)
        unsigned = T.reinterpret(f"uint32x{lanes}", shifted) >> T.broadcast(T.uint32(down), lanes)
        return T.reinterpret(f"int32x{lanes}", unsigned) - T.broadcast(T.int32(codes.zero), lanes)

    def tile(self, row: Value, size: int, start: Value, depth: Value, weights: Buffer, products: Buffer, r: Value) -> None:
        """Adds the products of `size` rows and `depth` inputs from `start` on to rows `r`… of `products`."""
        simd, lanes = self.simd, self.simd.lanes
        vectors, registers = PANEL // lanes, self.kernel.isa.num_registers
        beside = max(count for count in (1, 2, 4) if count == 1 or (count <= vectors and size * count + count < registers))
        with T.serial(vectors // beside) as part:
            columns = [name((part * beside + vector) * lanes) for vector in range(beside)]
            sums = [[Register(lanes, None) for _ in columns] for _ in range(size)]
            for i, totals in enumerate(sums):
                for column, total in zip(columns, totals, strict=True):
                    total.set(simd.load(products, (r + i, column)))
            places = [self.place(row + i) for i in range(size)]
            with T.serial(depth) as k:
                loaded = [simd.load(weights, (k, column)) for column in columns]
                for i, totals in enumerate(sums):
                    value = name(splat(self.x[(*places[i], start + k)], lanes))
                    for total, w in zip(totals, loaded, strict=True):
                        total.set(simd.fma(value, w, total.get()))
            for i, totals in enumerate(sums):
                for column, total in zip(columns, totals, strict=True):
                    simd.store(products, total.get(), (r + i, column))
