"""Linear layers by matrix units: weights in tiles (`tiles.py`), x rounded to 16 bits, sums in float32.

Few rows: the warps of a block share out the columns of x among them, and then add up what they found. Many rows: a warp takes all shares,
one after the other, and adds up their sums in the same order. So a row has the same bits in both, whatever stands beside it.
"""

from __future__ import annotations

import itertools
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.emit import Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, keep, registers, shared, synchronize
from cupola.targets.gpu.linear.fragments import GROUP, MOST_FEW, SHARES, WARPS, Part, Rows, Sums, multiply, num_chunks
from cupola.targets.gpu.linear.layer import Layer, LayerTensors, match_layer
from cupola.targets.gpu.linear.stages import STAGES, Stage
from cupola.targets.gpu.linear.tiles import ROWS, Tiles, is_tileable

FEW = (8, MOST_FEW)  # rows that a block takes, where there are no more
MANY = (64, 128)  # rows that a block takes, where there are more than those
UNIT = 2 * ROWS  # rows of the weight that a warp works on
_PAD = 4  # floats between the sums of two rows of x, so that lanes write to different banks
_IN_FLIGHT = 16  # words of a weight's tile that a lane asks for before it multiplies


def lower_matmul(call: relax.Call, builder: relax.BlockBuilder, stage: type[Stage] = Stage) -> relax.Expr | None:
    """`Linear` and `GatedLinear` of weights that there are tiles for. `stage` says how many rows are multiplied."""
    found = match_layer(call)
    if found is None or not is_tileable(found[1].kernel):
        return None
    layer, stored, x, others = found
    weight = Tiles.tensors_of(stored, builder, layer.parts)
    # mypy takes a class's __hash__ for that of its instances
    rounding, matmul = _rounding(layer, stage), _matmul(layer, stage)  # type: ignore[arg-type]
    words = relax.TensorType(stage.rounded_shape(x.ty.shape[0], num_chunks(layer)), "int32")
    to_round = relax.Tuple([x, *others[: bool(layer.norm)]])
    rounded = builder.emit(relax.op.call_tir(builder.add_func(rounding, f"round_{layer.label}"), to_round, words))
    return relax.op.call_tir(builder.add_func(matmul, layer.label), relax.Tuple([x, rounded, *weight, *others]), out_ty=call.ty)


@cache
def _rounding(layer: Layer, stage: type[Stage]) -> tvm.tirx.PrimFunc:
    """x as many rows of it are multiplied: normalized, in 16 bits. Few rows are rounded as they are read: for them nothing is launched."""

    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        norm = argument("norm", (layer.width,), layer.norm) if layer.norm else None
        out = argument("out", stage.rounded_shape(m, num_chunks(layer)), "int32")
        # TVM looks whether a kernel of one tensor reshapes it, and for that wants to see a block.
        with T.sblock("root"), blocks(_groups(m, GROUP, MOST_FEW), threads=WARPS * WARP) as (group, thread):
            rows = Rows.of(layer, m, x, norm, group * GROUP, 1, thread)
            with rows.chunks() as (chunk,), chunk.if_there(rows.row(0) < m):
                for piece in (0, 1):
                    (words,) = rows.words(chunk.index, piece)
                    stage.store_rounded(out, rows.row(0), chunk.index, piece, rows.part, words)

    return prim_func(body)


@cache
def _matmul(layer: Layer, stage: type[Stage]) -> tvm.tirx.PrimFunc:
    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        rounded = argument("rounded", stage.rounded_shape(m, num_chunks(layer)), "int32")
        weight = Tiles.arguments(layer.weight, layer.parts)
        tensors = LayerTensors.arguments(layer, m, x)
        for i, rows in enumerate(FEW):
            _few(layer, weight, tensors, rows, FEW[i - 1] if i else 0)
        for i, rows in enumerate(MANY):
            tiled = stage(weight, rounded, WARPS, rows)
            _many(layer, tiled, tensors, MANY[i - 1] if i else MOST_FEW, rows if i + 1 < len(MANY) else 0)

    return with_cost(prim_func(body), KernelCost("float16"))


def _groups(count: Value, size: int, over: int, most: int = 0) -> Value:
    """Groups of `size` in `count`; 0 unless it is more than `over` and, where there is a `most`, at most that."""
    groups = (count + T.int64(size - 1)) // T.int64(size) * T.cast(T.int64(over) < count, "int64")
    return groups * T.cast(count <= T.int64(most), "int64") if most else groups


def _few(layer: Layer, weight: Tiles, tensors: LayerTensors, rows: int, over: int) -> None:
    """A block multiplies a unit with all rows, more than `over` and at most `rows`; its weights go from memory to registers."""
    groups, stride = rows // GROUP, UNIT + _PAD
    with blocks(weight.units, _groups(tensors.count, rows, over, rows), threads=WARPS * WARP) as (unit, _, thread):
        lane = thread % WARP
        xs = Rows.of(layer, tensors.count, tensors.x, tensors.norm, T.int64(0), groups, thread)
        sums, found = Sums(groups), shared(SHARES * rows * stride)
        with xs.chunks(max(1, _IN_FLIGHT // (4 * weight.loads))) as chunks:
            parts = [[Part.registers(weight) for _ in (0, 1)] for _ in chunks]
            for chunk, pair in zip(chunks, parts, strict=True):
                with chunk.if_there():
                    for tile, part in enumerate(pair):
                        part.read(unit * 2 + T.int64(tile), chunk.index, lane)
            for chunk, pair in zip(chunks, parts, strict=True):
                with chunk.if_there():
                    for piece in (0, 1):
                        multiply(sums, pair, piece, xs.words(chunk.index, piece))
        for tile, group, i in itertools.product((0, 1), range(groups), range(4)):
            row = xs.part * 2 + T.int64(group * GROUP + i % 2)
            place = (xs.share * rows + row) * stride + xs.place + T.int64(tile * ROWS + i // 2 * 8)
            T.buffer_store(found, sums.held[sums.place(tile, group) + i], [place])
        synchronize()
        per_unit = UNIT // layer.parts
        for start in range(0, per_unit * rows, WARPS * WARP):
            element = thread + T.int64(start)
            row, column = keep(element // per_unit), keep(unit * per_unit + element % per_unit)
            with T.If(tvm.tirx.all(row < tensors.count, column < T.int64(layer.outputs))), T.Then():
                totals = []
                for first in range(0, layer.parts * ROWS, ROWS):
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
    weight, rows, strips, groups, chunks = stage.weight, stage.rows, WARPS // 2, stage.rows // 2 // GROUP, num_chunks(layer)
    per_share = -(-chunks // SHARES)
    with blocks(_groups(tensors.count, rows, over, most), -(-weight.units // strips), threads=WARPS * WARP) as (block, strip, thread):
        memory = T.alloc_buffer((stage.shared_words,), "int32", scope="shared.dyn")
        lane, warp, first = thread % WARP, thread // WARP, keep(block * rows)
        sums, totals = Sums(groups), Sums(groups)

        def fetch(chunk: Value) -> None:
            stage.fetch(memory, chunk, chunks, strip * stage.tiles, first, tensors.count, thread)

        stage.begin(memory, thread)
        for ahead in range(STAGES - 1):
            fetch(T.int64(ahead))
        with T.serial(chunks) as i:
            chunk = T.cast(i, "int64")
            stage.wait(memory, chunk, lambda: fetch(chunk + T.int64(STAGES - 1)))
            pair = [Part.registers(weight) for _ in (0, 1)]
            for tile, part in enumerate(pair):
                stage.read(memory, chunk, part, warp % strips * 2 + T.int64(tile), lane)
            stage.multiply(memory, chunk, sums, pair, warp // strips * (groups * GROUP), lane)
            with T.If(tvm.tirx.any(chunk % per_share == T.int64(per_share - 1), chunk == T.int64(chunks - 1))), T.Then():
                for j in range(2 * groups * 4):
                    T.buffer_store(totals.held, totals.held[j] + sums.held[j], [j])
                sums.clear()
        per_unit, unit = UNIT // layer.parts, keep(strip * strips + warp % strips)
        tiles = ((0, 1),) if layer.gated else ((0,), (1,))
        for (which, of_result), group, j in itertools.product(enumerate(tiles), range(groups), range(4)):
            row = first + (warp // strips * groups + T.int64(group)) * GROUP + lane % 4 * 2 + T.int64(j % 2)
            column = unit * per_unit + lane // 4 + T.int64(which * ROWS + j // 2 * 8)
            with T.If(tvm.tirx.all(row < tensors.count, column < T.int64(layer.outputs))), T.Then():
                found = [totals.held[totals.place(tile, group) + j] for tile in of_result]
                layer.finish(tensors, row, column, found, layer.biases(tensors, column))
