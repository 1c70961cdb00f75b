"""Time of each CPU kernel at SmolLM2-135M's sizes, against this machine's memory.

    python benchmarks/kernels.py [TARGET] [--dtype float32|float16|bfloat16] [--threads N]

`GB/s` counts weights and K/V, which a kernel for one token must read; `of memory` is their share of the read bandwidth,
measured in the same run with a kernel that adds up 256 MB.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import tvm
from tvm import relax

from cupola.runtime.environment import num_threads
from cupola.targets.base import Target
from cupola.targets.ops import GatedLinear, Linear, PagedAttention, Rotary
from cupola.targets.registry import get_target

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCABULARY, BLOCK, CONTEXT = 576, 9, 3, 64, 1536, 49152, 16, 512
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Case:
    """One call: its inputs (None: a weight or page pool to fill at random), and what it must do."""

    name: str
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    make: Callable[..., relax.Call]
    bytes: int
    operations: int
    integers: tuple[np.ndarray, ...] = ()


def cases(m: int, dtype: str) -> Iterator[Case]:
    """Every kernel of a layer, for m tokens (one sequence; with m = 1 after 511 others)."""
    item, f32 = np.dtype(DTYPES[dtype]).itemsize, "float32"

    def tensor(*shape: int) -> relax.TensorType:
        return relax.TensorType(shape, f32)

    for name, n, k in (("q/k/v", 960, HIDDEN), ("output", HIDDEN, HIDDEN), ("down", HIDDEN, FFN), ("vocabulary", VOCABULARY, HIDDEN)):
        rows = 1 if name == "vocabulary" else m

        def linear(x: relax.Var, w: relax.Var, rows: int = rows, n: int = n) -> relax.Call:
            return Linear(x, w, None, None, "").emit(tensor(rows, n))

        yield Case(f"linear {name}", (((rows, k), f32), ((n, k), dtype)), linear, n * k * item, 2 * rows * n * k)
    inputs = (((m, HIDDEN), f32), ((2 * FFN, HIDDEN), dtype))
    work = 2 * FFN * HIDDEN
    yield Case("gate/up", inputs, lambda x, w: GatedLinear(x, w, None, "silu").emit(tensor(m, FFN)), work * item, 2 * m * work)
    yield Case("rms_norm", (((m, HIDDEN), f32), ((HIDDEN,), f32)), lambda x, w: relax.op.nn.rms_norm(x, w, [-1], 1e-5), 0, 4 * m * HIDDEN)
    inputs = (((m, HEADS, HEAD_DIM), f32), ((m, HEAD_DIM), f32), ((m, HEAD_DIM), f32))
    yield Case("rotary", inputs, lambda x, c, s: Rotary(x, c, s).emit(tensor(m, HEADS, HEAD_DIM)), 0, 3 * m * HEADS * HEAD_DIM)
    tokens = (np.random.default_rng(0).integers(0, VOCABULARY, m).astype("int32"),)
    yield Case("embedding", (((VOCABULARY, HIDDEN), dtype),), lambda w, t: relax.op.take(w, t, axis=0), 0, 0, tokens)
    yield attention(m, dtype)


def attention(m: int, dtype: str) -> Case:
    """The last m of 512 tokens."""
    blocks, item = CONTEXT // BLOCK, np.dtype(DTYPES[dtype]).itemsize
    shapes = [(m, HEADS, HEAD_DIM), (m, KV_HEADS, HEAD_DIM), (m, KV_HEADS, HEAD_DIM)]
    pages = [(1, blocks, KV_HEADS, HEAD_DIM, BLOCK), (1, blocks, KV_HEADS, BLOCK, HEAD_DIM)]
    integers = (np.arange(CONTEXT - m, CONTEXT), np.array([0, m]), np.array([CONTEXT]), np.arange(blocks)[None])
    seen = sum(range(CONTEXT - m + 1, CONTEXT + 1))

    def make(*t: relax.Var) -> relax.Call:
        return PagedAttention(*t, None, None, 0, 0.125, 0, 0.0).emit(relax.TensorType((m, HEADS, HEAD_DIM), "float32"))

    inputs = tuple((shape, "float32") for shape in shapes) + tuple((shape, dtype) for shape in pages)
    num_bytes = 2 * CONTEXT * KV_HEADS * HEAD_DIM * item
    return Case("attention at 512", inputs, make, num_bytes, 4 * seen * HEADS * HEAD_DIM, tuple(i.astype("int32") for i in integers))


def seconds(target: Target, case: Case) -> float:
    """The fastest of several runs of a case, weights packed before."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(case.inputs)]
    variables += [relax.Var(f"i{i}", relax.TensorType(array.shape, "int32")) for i, array in enumerate(case.integers)]
    with builder.function("main", variables):
        with builder.dataflow():
            call = builder.normalize(case.make(*variables))
            lowered = next(result for rule in target.kernels if (result := rule(call, builder)) is not None)
            result = builder.emit_output(lowered)
        builder.emit_func_output(result)
    mod = builder.get()
    [(gv, kernel)] = [(gv, f) for gv, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    arguments = [_random(a.ty) if not _is_integer(a) else _integer(a, case, variables) for a in lowered.args[1]]
    arguments.append(_random(lowered.ty_args[0]))
    library = tvm.tirx.build(tvm.IRModule({gv.name_hint: kernel.with_attr("global_symbol", gv.name_hint)}), target=target.tvm)
    return timed(library, gv.name_hint, arguments)


def timed(library: tvm.runtime.Module, name: str, arguments: Sequence[object]) -> float:
    """The fastest of several runs, seconds."""
    evaluator = library.time_evaluator(name, tvm.cpu(), number=1, repeat=5, min_repeat_ms=40)
    return float(min(evaluator(*arguments).results))


def _is_integer(argument: relax.Expr) -> bool:
    return not isinstance(argument.ty, relax.TensorType) or argument.ty.dtype == "int32"


def _integer(argument: relax.Expr, case: Case, variables: list[relax.Var]) -> object:
    if not isinstance(argument, relax.Var):
        return int(argument.value)
    position = next(i for i, variable in enumerate(variables) if variable.same_as(argument))
    return tvm.runtime.tensor(case.integers[position - len(case.inputs)])


def _random(kind: relax.TensorType) -> tvm.runtime.Tensor:
    shape = [int(size) for size in kind.shape]
    return tvm.runtime.tensor(np.random.default_rng(0).standard_normal(shape, dtype=np.float32).astype(DTYPES[str(kind.dtype)]))


def read_bandwidth(target: Target) -> float:
    """Bytes a second that all threads together read from memory: a matrix-vector product over 256 MB."""
    n, k = 1 << 14, 1 << 12

    def matvec(x: relax.Var, w: relax.Var) -> relax.Call:
        return Linear(x, w, None, None, "").emit(relax.TensorType((1, n), "float32"))

    case = Case("", (((1, k), "float32"), ((n, k), "float32")), matvec, 0, 0)
    return 4 * n * k / seconds(target, case)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=num_threads())
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    target = get_target(options.target)
    bandwidth = read_bandwidth(target)
    print(f"{target.spec.name}, {options.threads} threads, {options.dtype}; memory reads at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'tokens':>6}  {'kernel':<20}{'µs':>10}{'GB/s':>8}{'of memory':>11}{'GFLOP/s':>9}")
    for m in (1, 512):
        for case in cases(m, options.dtype):
            time = seconds(target, case)
            speed = f"{case.bytes / time / 1e9:8.1f}{case.bytes / time / bandwidth:11.0%}" if case.bytes and m == 1 else " " * 19
            print(f"{m:>6}  {case.name:<20}{time * 1e6:>10.1f}{speed}{case.operations / time / 1e9:>9.1f}")


if __name__ == "__main__":
    main()
