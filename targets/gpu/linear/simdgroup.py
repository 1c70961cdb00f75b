"""Linear layers of many rows by matrices of SIMD groups (`targets/gpu/simdgroup.py`), in float32 as those of few rows: nothing is rounded.

A block multiplies 64 rows of the weight with rows of x, 32 columns at a time. Both come through its memory as tiles of 8 x 8, one after the
other; the weight is dequantized on the way, and the next 32 columns are under way while these are multiplied. A row's products are added up
in one order, whatever stands beside it; for few rows (`plain.py`), in another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, cached, from_lane, keep, registers, shared, synchronize
from cupola.targets.gpu.linear.layer import Layer, LayerTensors, match_layer
from cupola.targets.gpu.linear.plain import multiply_few
from cupola.targets.gpu.linear.weights import Weight, is_readable
from cupola.targets.gpu.simdgroup import SIDE, SIZE, Matrices

FEW_ROWS = 8  # rows up to which a warp takes an output each: such steps wait for memory, and matrices would be half empty
MANY = (32, 64)  # rows of x that a block takes, where there are more than those
STRIP = 64  # rows of the weight that a block takes
COLUMNS = 32  # that are multiplied at a time
_WARPS = 4  # of a block: two halves of the rows of x, by two of the weight's
_THREADS = _WARPS * WARP
_STEPS = COLUMNS // SIDE
_PIECE = 4  # of x, that a thread reads at once


def lower_matmul(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` whose rows are whole loads of 16 bytes, and groups of codes whole steps of 32."""
    found = match_layer(call)
    if found is None or not _is_loadable(found[0]):
        return None
    layer, stored, x, others = found
    given = [x, *Weight.tensors_of(stored, builder), *others]
    return relax.op.call_tir(builder.add_func(_layer(layer), layer.label), relax.Tuple(given), out_ty=call.ty)


def _is_loadable(layer: Layer) -> bool:
    form, columns = layer.weight.weight_format, layer.weight.shape[1]
    if not is_readable(layer.weight) or layer.width % _PIECE:
        return False
    return columns % Weight.count_per_load(layer.weight) == 0 if form is None else form.group_size % COLUMNS == 0


@cached
def _layer(layer: Layer) -> tvm.tirx.PrimFunc:
    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        weight = Weight.arguments(layer.weight)
        tensors = LayerTensors.arguments(layer, m, x)
        multiply_few(layer, weight, tensors, FEW_ROWS)
        for i, rows in enumerate(MANY):
            _multiply_many(layer, weight, tensors, rows, MANY[i - 1] if i else FEW_ROWS, rows if i + 1 < len(MANY) else 0)

    return prim_func(body)


def _multiply_many(layer: Layer, weight: Weight, tensors: LayerTensors, rows: int, over: int, most: int) -> None:
    """A block takes `rows` rows of more than `over`, and at most `most` (0: any number)."""
    m, chunks = tensors.count, -(-layer.width // COLUMNS)
    groups = (m + T.int64(rows - 1)) // T.int64(rows) * T.cast(T.int64(over) < m, "int64")
    groups = groups * T.cast(m <= T.int64(most), "int64") if most else groups
    per_strip = STRIP // layer.parts
    with blocks(groups, -(-layer.outputs // per_strip), threads=_THREADS) as (group, strip, thread):
        memory = shared((rows + STRIP) * COLUMNS + rows)  # tiles of x and of the weight, then results; behind them the rows' factors
        xs = _Rows(layer, tensors, memory, keep(group * rows), rows, thread)
        strips = _Strip(layer, weight, memory, rows * COLUMNS, strip, thread)
        products = _Products(memory, rows, thread // WARP)
        for part in (xs, strips):
            part.fetch(T.int64(0))
        with T.serial(chunks) as i:
            chunk = T.cast(i, "int64")
            synchronize()  # nobody multiplies any more
            for part in (xs, strips):
                part.put(chunk)
            synchronize()
            with T.If(chunk + T.int64(1) < T.int64(chunks)), T.Then():
                for part in (xs, strips):
                    part.fetch(chunk + T.int64(1))
            products.add()
        synchronize()
        products.store()
        xs.put_factors((rows + STRIP) * COLUMNS)
        synchronize()
        with T.serial(rows * per_strip // _THREADS) as i:
            element = thread + T.cast(i, "int64") * _THREADS
            place, column = keep(element // per_strip), keep(strip * per_strip + element % per_strip)
            row = keep(xs.first + place)
            with T.If(tvm.tirx.all(row < m, column < T.int64(layer.outputs))), T.Then():
                sums = [memory[place * STRIP + element % per_strip + T.int64(part * per_strip)] for part in range(layer.parts)]
                if layer.norm:
                    sums = [keep(total * memory[T.int64((rows + STRIP) * COLUMNS) + place]) for total in sums]
                layer.finish(tensors, row, column, sums, layer.biases(tensors, column))


def _place(row: Value, column: Value) -> Value:
    """Where an element of a step's columns lies among tiles, which are whole one after the other."""
    return (row // SIDE * _STEPS + column // SIDE) * SIZE + row % SIDE * SIDE + column % SIDE


@dataclass(frozen=True)
class _Piece:
    """Registers that a thread fills at once, and the place in the block's memory that their numbers go to."""

    raw: Buffer
    row: Value
    column: Value


class _Rows:
    """The rows of x that a block multiplies, from `first` on; in place of those that there are not comes the last one."""

    def __init__(self, layer: Layer, tensors: LayerTensors, memory: Buffer, first: Value, rows: int, thread: Value) -> None:
        self._layer, self._tensors, self._memory, self.first = layer, tensors, memory, first
        per_row = COLUMNS // _PIECE
        self._lane_column = thread % per_row * _PIECE
        self._pieces = [
            _Piece(registers(_PIECE, layer.dtypes[0]), (thread + T.int64(start)) // per_row, self._lane_column)
            for start in range(0, rows * per_row, _THREADS)
        ]
        self._norm = registers(_PIECE, layer.norm) if layer.norm else None
        self._squares = registers(len(self._pieces))
        for i in range(len(self._pieces)):
            T.buffer_store(self._squares, T.float32(0), [i])

    def _column(self, chunk: Value) -> Value:
        """The first of a thread's columns; behind the last ones, those."""
        width, column = self._layer.width, chunk * COLUMNS + self._lane_column
        return column if width % COLUMNS == 0 else T.min(column // _PIECE, T.int64(width // _PIECE - 1)) * _PIECE

    def fetch(self, chunk: Value) -> None:
        """Asks for a step's columns."""
        whole, source = T.ramp(0, 1, _PIECE), T.ramp(self._column(chunk), 1, _PIECE)
        for piece in self._pieces:
            row = T.min(self.first + piece.row, self._tensors.count - T.int64(1))
            T.buffer_store(piece.raw, self._tensors.x[row, source], [whole])
        if self._norm is not None and self._tensors.norm is not None:
            T.buffer_store(self._norm, self._tensors.norm[source], [whole])

    def put(self, chunk: Value) -> None:
        """Writes them to the block's memory, by the norm's weights; zeros behind the last column, where stored weights may have more."""
        width, values = self._layer.width, registers(_PIECE)
        is_there = chunk * COLUMNS + self._lane_column < T.int64(width)
        for i, piece in enumerate(self._pieces):
            for j in range(_PIECE):
                value = keep(T.cast(piece.raw[j], "float32"))
                value = value if width % COLUMNS == 0 else keep(T.Select(is_there, value, T.float32(0)))
                if self._norm is not None:
                    T.buffer_store(self._squares, self._squares[i] + value * value, [i])
                    value = value * T.cast(self._norm[j], "float32")
                T.buffer_store(values, value, [j])
            T.buffer_store(self._memory, values[T.ramp(0, 1, _PIECE)], [T.ramp(_place(piece.row, piece.column), 1, _PIECE)])

    def put_factors(self, start: int) -> None:
        """Writes the rows' factors by RMSNorm (arXiv:1910.07467), of the squares that the eight threads of a row have seen."""
        if self._norm is None:
            return
        for i, piece in enumerate(self._pieces):
            for distance in (4, 2, 1):
                T.buffer_store(self._squares, self._squares[i] + from_lane(self._squares[i], distance), [i])
            mean = self._squares[i] * T.float32(1 / self._layer.width)
            with T.If(self._lane_column == T.int64(0)), T.Then():
                T.buffer_store(self._memory, T.float32(1) / T.sqrt(mean + T.float32(self._layer.epsilon)), [T.int64(start) + piece.row])


class _Strip:
    """The rows of the weight that a block multiplies: of each part as many, one part's behind the other's. In place of those that there are
    not comes the last one. A thread reads 16 bytes at once."""

    def __init__(self, layer: Layer, weight: Weight, memory: Buffer, start: int, strip: Value, thread: Value) -> None:
        self._layer, self._weight, self._memory, self._start, self._strip, self._thread = layer, weight, memory, start, strip, thread
        self._count = weight.per_load
        per_row = COLUMNS // self._count
        self._num_pieces = STRIP * per_row
        self._pieces = []
        self._scales = [registers(1 + weight.has_mins) for _ in range(0, self._num_pieces, _THREADS) if weight.format is not None]
        for start_of in range(0, self._num_pieces, _THREADS):
            i = thread + T.int64(start_of)
            self._pieces.append(_Piece(weight.registers(), i // per_row, i % per_row * self._count))

    def _row(self, piece: _Piece) -> Value:
        parts, outputs = self._layer.parts, self._layer.outputs
        per_part = STRIP // parts
        within = T.min(self._strip * per_part + piece.row % per_part, T.int64(outputs - 1))
        return within if parts == 1 else piece.row // per_part * outputs + within

    def _is_busy(self) -> Value:
        """Where a step has fewer pieces than threads, the last warps have none."""
        return self._thread < T.int64(self._num_pieces)

    def fetch(self, chunk: Value) -> None:
        """Asks for a step's columns."""
        weight, columns, count = self._weight, self._layer.weight.shape[1], self._count
        with T.If(self._is_busy()), T.Then():
            for i, piece in enumerate(self._pieces):
                column = chunk * COLUMNS + piece.column
                column = column if columns % COLUMNS == 0 else T.min(column // count, T.int64(columns // count - 1)) * count
                row = self._row(piece)
                weight.read(row, column, piece.raw)
                if weight.format is not None:
                    for j, value in enumerate(weight.scale(row, chunk * COLUMNS)):
                        if value is not None:
                            T.buffer_store(self._scales[i], value, [j])

    def put(self, chunk: Value) -> None:
        """Writes them to the block's memory, in float32."""
        weight, values = self._weight, registers(_PIECE)
        with T.If(self._is_busy()), T.Then():
            for i, piece in enumerate(self._pieces):
                for start in range(0, self._count, _PIECE):
                    for j in range(_PIECE):
                        value = weight.value(piece.raw, start + j)
                        if weight.format is not None:
                            value = value * self._scales[i][0]
                            value = value + self._scales[i][1] if weight.has_mins else value
                        T.buffer_store(values, value, [j])
                    place = T.int64(self._start) + _place(piece.row, piece.column + T.int64(start))
                    T.buffer_store(self._memory, values[T.ramp(0, 1, _PIECE)], [T.ramp(place, 1, _PIECE)])


class _Products:
    """A warp's sums: half of a block's rows of x by half of its rows of the weight."""

    def __init__(self, memory: Buffer, rows: int, warp: Value) -> None:
        self._memory, self._rows = memory, rows
        self._height, self._width = rows // 2 // SIDE, STRIP // 2 // SIDE
        self._row, self._column = warp // 2 * self._height, warp % 2 * self._width  # the first tiles
        self._sums = Matrices(self._height * self._width)
        self._a, self._b = Matrices(self._height), Matrices(self._width)
        self._sums.clear()

    def add(self) -> None:
        """Adds the products of a step's columns, eight at a time."""
        for step in range(_STEPS):
            for i in range(self._height):
                self._a.load(i, self._memory, ((self._row + T.int64(i)) * _STEPS + T.int64(step)) * SIZE)
            for j in range(self._width):
                place = ((self._column + T.int64(j)) * _STEPS + T.int64(step)) * SIZE
                self._b.load(j, self._memory, T.int64(self._rows * COLUMNS) + place, turned=True)
            for i in range(self._height):
                for j in range(self._width):
                    self._sums.multiply(i * self._width + j, self._a, i, self._b, j)

    def store(self) -> None:
        """Writes the sums over the tiles: of each row of x one for each row of the strip."""
        for i in range(self._height):
            for j in range(self._width):
                place = (self._row + T.int64(i)) * (SIDE * STRIP) + (self._column + T.int64(j)) * SIDE
                self._sums.store(i * self._width + j, self._memory, place, STRIP)
