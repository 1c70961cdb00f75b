"""Kernels that find out what the machine can do, with as many threads as models use: how fast it reads, how fast it multiplies.

All take x f32 [n] and write out f32 [tasks]; each task is a row. `read` adds up its share of x, which should be larger than any
cache. The others multiply what stays in registers, in more chains than an instruction takes cycles.
"""

from __future__ import annotations

from functools import cache

import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.dot import Weights, bf16_dots, dot_bf16
from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, argument, local, name, prim_func, tree
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.quantized_packing import COLUMNS, SLICE, Codes
from cupola.targets.formats.format import WeightFormat

CHAINS = 12  # at least latency times instructions a cycle, and few enough for 16 registers
READ_VECTORS = 8
MULTIPLICATIONS = CHAINS << 19  # of a task, on every instruction set: longer than it takes to start it
TILE_MULTIPLICATIONS = 32 * MULTIPLICATIONS


@cache
def probes(isa: ISA) -> tvm.IRModule:
    """Every probe of an instruction set, by the name that it has in the library."""
    simd = Simd(isa)
    functions = {
        "probe_read": _kernel(simd, _read),
        "probe_float32": _with_operations(_kernel(simd, _multiply), "float32", MULTIPLICATIONS),
        "probe_int8": _with_operations(_kernel(simd, _multiply_bytes), "int8", 4 * MULTIPLICATIONS),
    }
    if isa.bf16_tiles:
        functions["probe_bfloat16"] = _with_operations(_kernel(simd, _multiply_tiles), "bfloat16", TILE_MULTIPLICATIONS)
    if isa.bf16_dot:
        functions["probe_bfloat16_pairs"] = _with_operations(_kernel(simd, _multiply_pairs), "bfloat16", 2 * MULTIPLICATIONS)
    return tvm.IRModule({gv: function.with_attr("global_symbol", gv) for gv, function in functions.items()})


def steps(isa: ISA) -> int:
    """Multiplications of vectors, one after the other, of a chain in a task."""
    return MULTIPLICATIONS // (CHAINS * isa.lanes)


def _with_operations(kernel: tvm.tirx.PrimFunc, arithmetic: str, multiplications: int) -> tvm.tirx.PrimFunc:
    return with_cost(kernel, KernelCost(arithmetic, operations_per_row=2 * multiplications))


def _kernel(simd, task) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n, tasks = T.int64(), T.int64()
        x, out = argument("x", (n,), "float32"), argument("out", (tasks,), "float32")
        with T.parallel(tasks) as index:
            T.buffer_store(out, task(simd, x, index, name(n // tasks)), [index])

    return prim_func(body)


def _read(simd: Simd, x: Buffer, task: Value, count: Value) -> Value:
    """The sum of `count` elements, the task's own."""
    totals = [Register(simd.lanes) for _ in range(READ_VECTORS)]
    start, step = name(task * count), READ_VECTORS * simd.lanes
    with T.serial(count // step) as i:
        for vector, total in enumerate(totals):
            total.set(total.get() + simd.load(x, (start + i * step + vector * simd.lanes,)))
    return _sum(totals)


def _multiply(simd: Simd, x: Buffer, task: Value, count: Value) -> Value:
    """Multiply-adds of float32."""
    a, b = (name(simd.load(x, (at * simd.lanes,))) for at in range(2))
    chains = [Register(simd.lanes, float(i)) for i in range(CHAINS)]
    with T.serial(steps(simd.isa)):
        for chain in chains:
            chain.set(simd.fma(chain.get(), a, b))
    return _sum(chains)


def _multiply_pairs(simd: Simd, x: Buffer, task: Value, count: Value) -> Value:
    """Products of pairs of bfloat16, those of x with themselves."""
    pairs = name(T.reinterpret(f"int32x{simd.lanes}", x[T.ramp(0, 1, simd.lanes)]))
    chains = [Register(simd.lanes, float(i)) for i in range(CHAINS)]
    with bf16_dots(), T.serial(steps(simd.isa)):
        for chain in chains:
            chain.set(dot_bf16(chain.get(), pairs, pairs))
    return _sum(chains)


def _multiply_bytes(simd: Simd, x: Buffer, task: Value, count: Value) -> Value:
    """Dot products of the bytes of x with small constants."""
    lanes, weights = simd.lanes, Weights(simd.isa, Codes(WeightFormat(4, SLICE)))  # 4 bits: what goes in as it is
    chains = [Register(lanes, None, "int32") for _ in range(CHAINS)]
    for i, chain in enumerate(chains):
        chain.set(T.broadcast(T.int32(i), lanes))
    with T.serial(steps(simd.isa)) as step:  # other bytes each time, or half of the work could be done before
        some = name(T.reinterpret(f"int8x{4 * lanes}", x[T.ramp(step % 8 * lanes, 1, lanes)]))
        for i, chain in enumerate(chains):
            chain.set(weights.dot(chain.get(), some, T.int32(0x01010101 * (i + 1))))
    return T.cast(_sum(chains), "float32")


def _multiply_tiles(simd: Simd, x: Buffer, task: Value, count: Value) -> Value:
    """Products of tiles of bfloat16, the first kilobyte of x with itself, in six chains: as many as leave room for both factors."""
    left, right, *sums = tiles.TILES
    tiles.configure()
    for tile in (left, right):
        tiles.load(tile, x[0])
    for tile in sums:
        tiles.clear(tile)
    with T.serial(TILE_MULTIPLICATIONS // (tiles.ROWS * COLUMNS * SLICE * len(sums))):
        for tile in sums:
            tiles.multiply_bf16(tile, left, right)
    totals = local((tiles.ROWS, COLUMNS))
    result = Register(1)
    for tile in sums:
        tiles.store(tile, totals[0, 0])
        with T.serial(tiles.ROWS * COLUMNS) as i:
            result.set(result.get() + totals[i // COLUMNS, i % COLUMNS])
    tiles.release()
    return name(result.get())


def _sum(totals: list[Register]) -> Value:
    total = totals[0].get()
    for other in totals[1:]:
        total = name(total + other.get())
    return tree(total, lambda a, b: a + b)
