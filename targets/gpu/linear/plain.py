"""Linear layers: a warp for each output, which it computes for some rows at once, so that a weight is read once for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, cached, gpu, keep, load, registers, strided, warp_sums
from cupola.targets.gpu.linear.layer import Layer, LayerTensors, match_layer
from cupola.targets.gpu.linear.weights import Weight, is_readable

STEP = 4  # elements that are multiplied at once, of those that one load brings: more of them want more registers
ROWS = 4  # of x that a warp multiplies with its weights at once


def lower_linear(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` of activations that are not quantized, and a weight of floats or of codes."""
    found = match_layer(call)
    if found is None or not is_readable(found[1].kernel):
        return None
    layer, stored, x, others = found
    given = [x, *Weight.tensors_of(stored, builder), *others]
    return relax.op.call_tir(builder.add_func(_layer(layer), layer.label), relax.Tuple(given), out_ty=call.ty)


@cached
def _layer(layer: Layer) -> tvm.tirx.PrimFunc:
    def body() -> None:
        m = T.int64()
        x = argument("x", (m, layer.width), layer.dtypes[0])
        weight = Weight.arguments(layer.weight)
        multiply_few(layer, weight, LayerTensors.arguments(layer, m, x))

    return prim_func(body)


def multiply_few(layer: Layer, weight: Weight, tensors: LayerTensors, most: int = 0) -> None:
    """Launches blocks for all rows, unless they are more than `most` (0: any number)."""
    m, x, width, outputs, warps = tensors.count, tensors.x, layer.width, layer.outputs, gpu().warps
    groups = (m + T.int64(ROWS - 1)) // T.int64(ROWS)
    groups = groups * T.cast(m <= T.int64(most), "int64") if most else groups
    with blocks(-(-outputs // warps), groups, threads=warps * WARP) as (block, group, thread):
        column, lane = keep(block * warps + thread // WARP), thread % WARP
        with T.If(column < T.int64(outputs)), T.Then():
            rows = Rows(m, keep(group * ROWS), x, tensors.norm)
            factors = rows.norm_factors(width, layer.epsilon, lane) if layer.norm else None

            def products(which: Value) -> list[Value]:
                sums = rows.products(weight, which, width, lane)
                return [keep(total if factors is None else total * factors[r]) for r, total in enumerate(sums)]

            biases = layer.biases(tensors, column)
            sums = [products(column + T.int64(part * outputs)) for part in range(layer.parts)]

            def write(r: int) -> None:
                layer.finish(tensors, rows.index(r), column, [total[r] for total in sums], biases)

            with T.If(lane == T.int64(0)), T.Then():
                rows.each(write)


@dataclass(frozen=True)
class Rows:
    """The rows of x from `start` on that a warp works on, at most `most` of `count`. All its lanes have the same ones."""

    count: Value
    start: Value
    x: Buffer
    norm: Buffer | None
    most: int = ROWS

    def index(self, r: int) -> Value:
        """Row `r` of the warp's."""
        return self.start + T.int64(r)

    def each(self, do: Callable[[int], None]) -> None:
        """Does something for each row that there is."""
        do(0)
        for r in range(1, self.most):
            with T.If(self.index(r) < self.count), T.Then():
                do(r)

    def norm_factors(self, width: int, epsilon: float, lane: Value) -> list[Value]:
        """The factor of each row by RMSNorm (arXiv:1910.07467). Every warp finds it for itself: rows are short, and in the cache."""
        sums = _Sums(self.most)
        with strided(width, lane, WARP) as k:

            def add(r: int) -> None:
                value = keep(load(self.x, self.index(r), k))
                sums.add(r, value * value)

            self.each(add)
        return [keep(T.float32(1) / T.sqrt(total * T.float32(1 / width) + T.float32(epsilon))) for total in sums.over_warp(self)]

    def products(self, weight: Weight, row: Value, width: int, lane: Value) -> list[Value]:
        """Each row's product with a row of the weight, x times `norm` where there is one."""
        sums, count = _Sums(self.most), weight.per_load
        if not count or width % count:  # rows that loads of 16 bytes do not divide
            with strided(width, lane, WARP) as k:
                value = keep(weight.element(row, k) * load(self.norm, k) if self.norm is not None else weight.element(row, k))
                self.each(lambda r: sums.add(r, load(self.x, self.index(r), k) * value))
            return sums.over_warp(self)
        with strided(width // count, lane, WARP) as i:
            first = i * T.int64(count)  # not kept: the code generator must see that loads are aligned
            scaled = weight.scale(row, first) if weight.format is not None else None  # before the codes: ptxas then spills nothing
            raw = weight.read(row, first)
            parts = _Sums(self.most) if scaled is not None else sums
            plain = _Sums(self.most) if weight.has_mins else None
            for start in range(0, count, STEP):
                values = [keep(weight.value(raw, j)) for j in range(start, min(count, start + STEP))]
                self._multiply(values, first + T.int64(start), parts, plain)
            if scaled is not None:
                scale, low = scaled
                self.each(lambda r: sums.add(r, parts[r] * scale if plain is None else parts[r] * scale + plain[r] * low))
        return sums.over_warp(self)

    def _multiply(self, values: Sequence[Value], place: Value, parts: _Sums, plain: _Sums | None) -> None:
        """Adds to each row's part its products with `values`, which stand from `place` on, and to `plain` the factors alone."""
        norms = _read(self.norm, (place,), len(values)) if self.norm is not None else None

        def add(r: int) -> None:
            xs = _read(self.x, (self.index(r), place), len(values))
            for j, value in enumerate(values):
                factor = keep(xs[j] * norms[j]) if norms is not None else xs[j]
                parts.add(r, factor * value)
                if plain is not None:
                    plain.add(r, factor)

        self.each(add)


def _read(buffer: Buffer, index: tuple[Value, ...], count: int) -> Buffer:
    """`count` elements from an index on as float32, in registers, by the widest loads."""
    raw, values = registers(count, str(buffer.dtype)), registers(count)
    lanes = min(count, 4 if str(buffer.dtype) == "float32" else 8, gpu().max_lanes)
    for start in range(0, count, lanes):
        source = (*index[:-1], T.ramp(index[-1] + T.int64(start), 1, lanes))
        T.buffer_store(raw, buffer[source], [T.ramp(start, 1, lanes)])
    for j in range(count):
        T.buffer_store(values, T.cast(raw[j], "float32"), [j])
    return values


class _Sums:
    """A sum of each row, in registers; each lane adds up its part."""

    def __init__(self, count: int) -> None:
        self._held = registers(count)
        for r in range(count):
            T.buffer_store(self._held, T.float32(0), [r])

    def __getitem__(self, r: int) -> Value:
        return self._held[r]

    def add(self, r: int, value: Value) -> None:
        T.buffer_store(self._held, self._held[r] + value, [r])

    def over_warp(self, rows: Rows) -> list[Value]:
        """The sums over all lanes."""
        warp_sums(self._held, rows.each)
        return [self._held[r] for r in range(rows.most)]
