"""Linear layers by matrix units: weights in tiles (`tiles.py`), x rounded to 16 bits, sums in float32.

Few rows: the warps of a block share out the columns of x among them, and then add up what they found. Many rows: a warp takes all shares,
one after the other, and adds up their sums in the same order. So a row has the same bits in both, whatever stands beside it.
"""

from __future__ import annotations

import itertools

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.emit import Value, argument, prim_func
from cupola.targets.gpu.emit import blocks, cached, gpu, keep, registers, shared, synchronize
from cupola.targets.gpu.linear.fragments import MOST_FEW, SHARES, WARPS, Part, Rows, Sums, multiply, num_chunks
from cupola.targets.gpu.linear.layer import Layer, LayerTensors, match_layer
from cupola.targets.gpu.linear.stages import Stage
from cupola.targets.gpu.linear.tiles import Tiles, is_tileable
from cupola.targets.gpu.units import UNIT

_PAD = 4  # floats between the sums of two rows of x, so that lanes write to different banks
_IN_FLIGHT = 16  # words of a weight's tile that a lane asks for before it multiplies


def lower_matmul(call: relax.Call, builder: relax.BlockBuilder, stage: type[Stage] = Stage) -> relax.Expr | None:
    """`Linear` and `GatedLinear` of weights that there are tiles for. `stage` says how many rows are multiplied."""
    found = match_layer(call)
    if found is None or not is_tileable(found[1].kernel):
        return None
    layer, stored, x, others = found
    weight = Tiles.tensors_of(stored, builder, layer.parts)
    rounding, matmul = _rounding(layer, stage), _matmul(layer, stage)
    words = relax.TensorType(stage.rounded_shape(x.ty.shape[0], num_chunks(layer)), "int32")
    to_round = relax.Tuple([x, *others[: bool(layer.norm)]])
    rounded = builder.emit(relax.op.call_tir(builder.add_func(rounding, f"round_{layer.label}"), to_round, words))
    return relax.op.call_tir(builder.add_func(matmul, layer.label), relax.Tuple([x, rounded, *weight, *others]), out_ty=call.ty)


@cached
def _rounding(layer: Layer, stage: type[Stage]) -> tvm.tirx.PrimFunc:
    """x as many rows of it are multiplied: normalized, in 16 bits. Few rows are rounded as they are read: for them nothing is launched."""

    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        norm = argument("norm", (layer.width,), layer.norm) if layer.norm else None
        out = argument("out", stage.rounded_shape(m, num_chunks(layer)), "int32")
        # TVM looks whether a kernel of one tensor reshapes it, and for that wants to see a block.
        unit = gpu().matrix
        with T.sblock("root"), blocks(_groups(m, unit.rows, MOST_FEW), threads=WARPS * unit.lanes) as (group, thread):
            rows = Rows.of(layer, m, x, norm, group * unit.rows, 1, thread)
            with rows.chunks() as (chunk,), chunk.if_there(rows.row(0) < m):
                for piece in (0, 1):
                    (words,) = rows.words(chunk.index, piece)
                    for i, part in enumerate(unit.parts(rows.lane)):
                        stage.store_rounded(out, rows.row(0), chunk.index, piece, part, words, 4 * i)

    return prim_func(body)


@cached
def _matmul(layer: Layer, stage: type[Stage]) -> tvm.tirx.PrimFunc:
    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        rounded = argument("rounded", stage.rounded_shape(m, num_chunks(layer)), "int32")
        weight = Tiles.arguments(layer.weight, layer.parts)
        tensors = LayerTensors.arguments(layer, m, x)
        for rows in range(gpu().matrix.rows, MOST_FEW + 1, gpu().matrix.rows):
            _few(layer, weight, tensors, rows, rows - gpu().matrix.rows)
        many = gpu().matrix.many
        for i, rows in enumerate(many):
            tiled = stage(weight, rounded, WARPS // 2 * gpu().matrix.tiles, rows)
            _many(layer, tiled, tensors, many[i - 1] if i else MOST_FEW, rows if i + 1 < len(many) else 0)

    return with_cost(prim_func(body), KernelCost("float16"))


def _groups(count: Value, size: int, over: int, most: int = 0) -> Value:
    """Groups of `size` in `count`; 0 unless it is more than `over` and, where there is a `most`, at most that."""
    groups = (count + T.int64(size - 1)) // T.int64(size) * T.cast(T.int64(over) < count, "int64")
    return groups * T.cast(count <= T.int64(most), "int64") if most else groups


def _few(layer: Layer, weight: Tiles, tensors: LayerTensors, rows: int, over: int) -> None:
    """A block multiplies a unit with all rows, more than `over` and at most `rows`; its weights go from memory to registers."""
    matrix, threads = gpu().matrix, WARPS * gpu().matrix.lanes
    groups, stride = rows // matrix.rows, UNIT + _PAD
    with blocks(weight.units, _groups(tensors.count, rows, over, rows), threads=threads) as (unit, _, thread):
        lane = thread % matrix.lanes
        xs = Rows.of(layer, tensors.count, tensors.x, tensors.norm, T.int64(0), groups, thread)
        sums, found = Sums(groups), shared(SHARES * rows * stride)
        with xs.chunks(max(1, _IN_FLIGHT // (4 * weight.loads))) as chunks:
            parts = [[Part.registers(weight) for _ in range(matrix.tiles)] for _ in chunks]
            for chunk, pair in zip(chunks, parts, strict=True):
                with chunk.if_there():
                    for tile, part in enumerate(pair):
                        part.read(unit * matrix.tiles + T.int64(tile), chunk.index, lane)
            for chunk, pair in zip(chunks, parts, strict=True):
                with chunk.if_there():
                    for piece in (0, 1):
                        multiply(sums, pair, piece, xs.words(chunk.index, piece))
        for sixteen, group, i in itertools.product((0, 1), range(groups), range(matrix.sums)):
            row = matrix.sum_row(xs.part, group * matrix.rows, i)
            place = (xs.share * rows + row) * stride + xs.place + T.int64(sixteen * 16 + matrix.sum_column(i))
            T.buffer_store(found, sums.held[sums.place(sixteen, group) + i], [place])
        synchronize()
        per_unit = UNIT // layer.parts
        for start in range(0, per_unit * rows, threads):
            element = thread + T.int64(start)
            row, column = keep(element // per_unit), keep(unit * per_unit + element % per_unit)
            with T.If(tvm.tirx.all(row < tensors.count, column < T.int64(layer.outputs))), T.Then():
                totals = []
                for first in range(0, layer.parts * 16, 16):
                    total = registers()
                    T.buffer_store(total, T.float32(0), [0])
                    for share in range(SHARES):
                        place = (row + T.int64(share * rows)) * stride + element % per_unit + T.int64(first)
                        T.buffer_store(total, total[0] + found[place], [0])
                    totals.append(total[0])
                layer.finish(tensors, row, column, totals, layer.biases(tensors, column))


def _many(layer: Layer, stage: Stage, tensors: LayerTensors, over: int, most: int) -> None:
    """A block multiplies four units with as many rows as its stages have, of more than `over` and at most `most` (0: any number). A warp
    has a unit and half of the rows."""
    matrix, weight, rows, strips, chunks = gpu().matrix, stage.weight, stage.rows, WARPS // 2, num_chunks(layer)
    groups, threads, per_share = rows // 2 // matrix.rows, WARPS * matrix.lanes, -(-chunks // SHARES)
    with blocks(_groups(tensors.count, rows, over, most), -(-weight.units // strips), threads=threads) as (block, strip, thread):
        memory = T.alloc_buffer((stage.shared_words,), "int32", scope="shared.dyn")
        lane, warp, first = thread % matrix.lanes, thread // matrix.lanes, keep(block * rows)
        sums, totals = Sums(groups), Sums(groups)

        def fetch(chunk: Value) -> None:
            stage.fetch(memory, chunk, chunks, strip * stage.tiles, first, tensors.count, thread)

        stage.begin(memory, thread)
        for ahead in range(stage.count - 1):
            fetch(T.int64(ahead))
        with T.serial(chunks) as i:
            chunk = T.cast(i, "int64")
            stage.wait(memory, chunk, lambda: fetch(chunk + T.int64(stage.count - 1)))
            tiles = [Part.registers(weight) for _ in range(matrix.tiles)]
            for tile, part in enumerate(tiles):
                stage.read(memory, chunk, part, warp % strips * matrix.tiles + T.int64(tile), lane)
            stage.multiply(memory, chunk, sums, tiles, warp // strips * (groups * matrix.rows), lane)
            with T.If(tvm.tirx.any(chunk % per_share == T.int64(per_share - 1), chunk == T.int64(chunks - 1))), T.Then():
                for j in range(sums.count):
                    T.buffer_store(totals.held, totals.held[j] + sums.held[j], [j])
                sums.clear()
        per_unit, unit = UNIT // layer.parts, keep(strip * strips + warp % strips)
        sixteens, place, part = ((0, 1),) if layer.gated else ((0,), (1,)), matrix.place(lane), matrix.part(lane)
        for (which, of_result), group, j in itertools.product(enumerate(sixteens), range(groups), range(matrix.sums)):
            row = first + (warp // strips * groups + T.int64(group)) * matrix.rows + matrix.sum_row(part, 0, j)
            column = unit * per_unit + place + T.int64(which * 16 + matrix.sum_column(j))
            with T.If(tvm.tirx.all(row < tensors.count, column < T.int64(layer.outputs))), T.Then():
                found = [totals.held[totals.place(sixteen, group) + j] for sixteen in of_result]
                layer.finish(tensors, row, column, found, layer.biases(tensors, column))
