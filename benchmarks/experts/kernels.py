"""How near the kernels of mixtures of experts come to the machine's limits: products of real models' shapes, with random codes.

    python -m benchmarks.experts.kernels --shape qwen3-30b-a3b --weights w4a8 --tokens 1 512

One token goes to the experts of several layers in turn, always to others, so that weights come from memory and not from caches: what is
read of them is held against how fast the machine reads memory, measured between the runs. Many tokens are held against dense layers of the
same arithmetic.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, tirx

from benchmarks.experts.reader import Reader
from cupola.compiler.native_function import compile_function
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import lift_weights
from cupola.runtime.artifact.arrays import aligned_zeros, numpy_dtype
from cupola.runtime.artifact.expressions import evaluate
from cupola.targets.base import Target
from cupola.targets.formats.format import WeightFormat
from cupola.targets.ops import ExpertLinear, GatedExpertLinear, GatedLinear, Linear
from cupola.targets.registry import get_target

Array = npt.NDArray[Any]
Tensors = Mapping[str, relax.Expr]
MEMORY, MOST_LAYERS, REPEATS = 1 << 30, 8, 9  # bytes of weights at least, more than caches have; results of a function at most
FORMATS = {"w4a8": "w4g32", "w4ma8": "w4g32m", "w8a8": "w8g32", "mxfp4": "w4g32-e2m1-bf16", "bf16": ""}


@dataclass(frozen=True)
class Product:
    """The first or the second product of a model's experts: [n, depth] or [n, k, depth] -> [n, k, outputs]."""

    experts: int
    choices: int
    outputs: int
    depth: int
    gated: bool = False
    bias: bool = False
    is_shared: bool = True

    @property
    def rows(self) -> int:
        """Rows of an expert's matrix."""
        return self.outputs * (2 if self.gated else 1)

    def operations(self, num_tokens: int) -> int:
        """Multiplications and additions."""
        return 2 * num_tokens * self.choices * self.rows * self.depth


SHAPES = {
    "qwen3-30b-a3b": {"up": Product(128, 8, 768, 2048, gated=True), "down": Product(128, 8, 2048, 768, is_shared=False)},
    "gpt-oss-20b": {"up": Product(32, 4, 5760, 2880, bias=True), "down": Product(32, 4, 2880, 2880, bias=True, is_shared=False)},
}


class Layers:
    """The same product of `count` layers, on the same rows; `dense`, without experts: one matrix of as many rows as a token meets."""

    def __init__(self, product: Product, form: str, target: Target, *, dense: bool = False) -> None:
        self.product, self.form, self.dense, self.target = product, form, dense, target
        bits = WeightFormat.parse(form).bits + 1 if form else 16
        layer_bytes = product.rows * product.depth * bits // 8 * (product.choices if dense else product.experts)
        self.count = 1 if dense else min(max(-(-MEMORY // layer_bytes), 2), MOST_LAYERS)
        self.lazy: dict[str, LazyTensor] = {}
        lifted, packed = lift_weights(self._module(), self.lazy)
        self.function = compile_function(lifted, target)
        self.weights = [_filled(weight.spec.dtype, tuple(map(int, weight.spec.shape))) for weight in packed]
        self.pick_bytes = sum(array.nbytes for array in self.weights) / (self.count * (1 if dense else product.experts))

    def runner(self, num_tokens: int) -> Callable[[int], float]:
        """A function that runs all layers with the experts of a turn, and gives the seconds of one."""
        p, random = self.product, np.random.default_rng(0)
        shape = (num_tokens, p.depth) if p.is_shared else (num_tokens, p.choices, p.depth)
        shape = (num_tokens, p.depth if p.is_shared else p.choices * p.depth) if self.dense else shape
        x = aligned_zeros("float32", shape)
        x[...] = random.standard_normal(shape, "float32")
        indices = [] if self.dense else [aligned_zeros("int32", (num_tokens, p.choices))]
        plan, library, signature = self.function.extracted.plan, self.function.library, self.function.signature
        sizes = dict.fromkeys(plan.dims, num_tokens)
        outputs = [_filled(spec.dtype, tuple(evaluate(size, sizes) for size in spec.shape)) for spec in signature.outputs]
        dims = (ctypes.c_int64 * len(plan.dims))(*sizes.values())
        scratch = aligned_zeros("uint8", (library.cupola_workspace_bytes(dims),))
        results = {spec.name: array for spec, array in zip(signature.outputs, outputs, strict=True)}
        given = iter([x, *indices, *self.weights])
        tensors = [results[spec.name] if spec.name in results else next(given) for spec in signature.inputs]

        def run(turn: int) -> float:
            pointers = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
            for index in indices:
                index[...] = picked(p, num_tokens, turn)
            start = time.perf_counter()
            failed = library.cupola_run(ctypes.c_int64(1), dims, pointers, ctypes.c_void_p(scratch.ctypes.data), None)
            seconds = time.perf_counter() - start
            assert not failed
            return seconds / self.count

        return run

    def _module(self) -> tvm.IRModule:
        p, builder, n = self.product, relax.BlockBuilder(), tirx.Var("n", "int64")
        rows, depth = p.rows * (1 if self.dense else p.experts), p.depth
        if self.dense:
            rows, depth = (rows * p.choices, depth) if p.is_shared else (rows, depth * p.choices)
        x = relax.Var("x", relax.TensorType((n, depth) if self.dense or p.is_shared else (n, p.choices, depth), "float32"))
        index = relax.Var("index", relax.TensorType((n, p.choices), "int32"))
        weights = [self._weight(str(layer), rows, depth) for layer in range(self.count)]
        given = [x] if self.dense else [x, index]
        params = [*given, *(tensor for weight in weights for tensor in weight.values())]
        with builder.function("forward", params, attrs={"num_input": len(given)}):
            with builder.dataflow():
                results = [self._call(builder, (n, x, index), weight) for weight in weights]
                result = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(result)
        return builder.get()

    def _weight(self, name: str, rows: int, depth: int) -> dict[str, relax.Var]:
        form = WeightFormat.parse(self.form) if self.form else None
        shapes = {"weight": (rows, form.padded(depth) if form else depth, form.code_dtype if form else "bfloat16")}
        for factor, size, dtype in form.factors if form else ():
            shapes[factor] = (rows, form.padded(depth) // size, dtype)
        if self.product.bias:
            shapes["bias"] = (rows, 0, "float32")
        tensors = {}
        for part, (*dims, dtype) in shapes.items():
            shape = tuple(size for size in dims if size)
            self.lazy[f"{part}{name}"] = LazyTensor(f"{part}{name}", shape, dtype, _never)
            tensors[part] = relax.Var(f"{part}{name}", relax.TensorType(shape, dtype))
        return tensors

    def _call(self, builder: relax.BlockBuilder, rows: tuple[Any, ...], weight: dict[str, relax.Var]) -> relax.Expr:
        p, (n, x, index) = self.product, rows
        common = {"bias": None, "format": self.form, "quantize_x": 32 if self.form else 0, **weight}
        outputs = p.outputs * (p.choices if self.dense and p.is_shared else 1)
        out = relax.TensorType((n, outputs) if self.dense else (n, p.choices, outputs), "float32")
        if self.dense:
            op = GatedLinear(x, activation="silu", **common) if p.gated else Linear(x, activation="", residual=None, **common)
        elif p.gated:
            op = GatedExpertLinear(x, index, num_experts=p.experts, activation="silu", **common)
        else:
            op = ExpertLinear(x, index, num_experts=p.experts, **common)
        call = builder.normalize(op.emit(out))
        return builder.emit(next(lowered for rule in self.target.rules if (lowered := rule(call, builder)) is not None))


def picked(p: Product, num_tokens: int, turn: int) -> Array:
    """The experts of a turn: of few tokens the next ones each time, of many at random."""
    if num_tokens * p.choices <= p.experts:
        return (np.arange(num_tokens * p.choices).reshape(num_tokens, -1) + turn * num_tokens * p.choices) % p.experts
    random = np.random.default_rng(turn)
    return np.argsort(random.random((num_tokens, p.experts)), axis=1)[:, : p.choices]


def _filled(dtype: str, shape: tuple[int, ...]) -> Array:
    """Memory in large pages; bytes are random, the same in every block, and floats small."""
    kind, random = numpy_dtype(dtype), np.random.default_rng(0)
    size = int(np.prod(shape)) * kind.itemsize
    memory = mmap.mmap(-1, -(-size // (2 << 20)) * (2 << 20) + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    start = -np.frombuffer(memory, np.uint8).ctypes.data % (2 << 20)
    array = np.frombuffer(memory, np.uint8)[start : start + size].view(kind).reshape(shape)
    if dtype == "uint8":  # any bytes are codes, and any two of these a small float16 or bfloat16, as scales are
        array.reshape(-1, shape[-1])[...] = random.integers(0x10, 0x20, shape[-1], np.uint8)
    else:
        array[...] = 0x3C23 if dtype == "bfloat16" else 0.01
    return array


def _never() -> Array:
    raise AssertionError("weights are filled as they are packed")


class Memory:
    """A buffer larger than caches."""

    def __init__(self) -> None:
        self._words, self._reader = _filled("uint64", (MEMORY // 8,)), Reader()

    def bytes_per_second(self) -> float:
        """At which it is read."""
        return self._reader.bytes_per_second(self._words)


def _decode(shape: str, weights: str, target: Target, memory: Memory, choices: tuple[int, ...]) -> None:
    for which, product in SHAPES[shape].items():
        for count in choices:
            p = Product(**{**vars(product), "choices": count})
            layers = Layers(p, FORMATS[weights], target)
            run = layers.runner(1)
            turns = range(max(p.experts // count, 1))
            for turn in turns:
                run(turn)
            rates, times, num_bytes = [], [], count * layers.pick_bytes
            for _ in range(REPEATS):
                rates.append(memory.bytes_per_second())
                times.append(statistics.mean(run(turn) for turn in turns))
            seconds, rate = min(times), max(rates)  # other programs make both slower
            found = f"{1e6 * seconds:8.1f} us {num_bytes / 1e6:7.2f} MB {num_bytes / seconds / 1e9:5.1f} GB/s of {rate / 1e9:5.1f}"
            print(f"{shape} {which:4} {weights:6} {count} picked {found}: {num_bytes / seconds / rate:4.0%}", flush=True)


def _prompt(shape: str, weights: str, target: Target, num_tokens: int) -> None:
    for which, product in SHAPES[shape].items():
        pair = [Layers(product, FORMATS[weights], target, dense=dense) for dense in (False, True)]
        runs = [layers.runner(num_tokens) for layers in pair]
        for run in runs:
            run(0)
        times = [[run(1 + repeat) for run in runs] for repeat in range(REPEATS)]
        experts, dense = (min(column) for column in zip(*times, strict=True))
        operations = product.operations(num_tokens)
        found, beside = (f"{1e3 * seconds:7.2f} ms {operations / seconds / 1e9:7.0f} Gop/s" for seconds in (experts, dense))
        print(f"{shape} {which:4} {weights:6} {num_tokens} tokens {found}, dense {beside}: {dense / experts:4.0%}", flush=True)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--weights", nargs="+", choices=FORMATS, default=["w4a8"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1])
    parser.add_argument("--choices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--target", default="cpu")
    arguments = parser.parse_args()
    target, memory = get_target(arguments.target), Memory()
    for weights in arguments.weights:
        for num_tokens in arguments.tokens:
            if num_tokens == 1:
                _decode(arguments.shape, weights, target, memory, tuple(arguments.choices))
            else:
                _prompt(arguments.shape, weights, target, num_tokens)


if __name__ == "__main__":
    main()
