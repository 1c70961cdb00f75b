"""One model of the package, measured: lines of JSON on standard output."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cupola.runtime.artifact.arrays import num_bytes, numpy_dtype
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.inputs import MAX_STEPS
from cupola.runtime.artifact.manifest import MANIFEST, Manifest
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.artifact.read import parse_manifest
from cupola.runtime.device.executor import NativeExecutor, open_library
from cupola.runtime.device.interface import Batch, SamplingPlan, Tensor
from cupola.runtime.measure.bound import StepWork, decode_work, prompt_work

LEAST_SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 3, 50  # of a measurement
ROOM = 256  # tokens beside the context, which measuring generates
PIECE = 16 << 20  # bytes that are random; the weights repeat them, each from another place


def random_bytes(dtype: str, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Numbers of a type: such as weights are, small ones for scales; all codes."""
    count = PIECE // numpy_dtype(dtype).itemsize
    if dtype in ("int8", "uint8"):
        return random.integers(0, 256, count, np.uint8).view(dtype)
    floats = (5e-4 if dtype == "float16" else 0.02) * random.standard_normal(count, np.float32)  # of codes, the scales are float16
    if dtype == "bfloat16":
        return (floats.view(np.uint32) >> 16).astype(np.uint16)
    return floats.astype(dtype)


def make_weights(manifest: Manifest, device: Any) -> dict[str, Tensor]:
    """Weights that the device copies together from one random piece of each type. Raises EngineError if there is no room."""
    random, pieces, found = np.random.default_rng(0), dict[str, Tensor](), dict[str, Tensor]()
    for spec in manifest.weights:
        if spec.dtype not in pieces:
            piece = random_bytes(spec.dtype, random)
            pieces[spec.dtype] = device.empty(spec.dtype, piece.shape)
            device.upload(piece, pieces[spec.dtype])
        found[spec.name] = device.empty(spec.dtype, spec.shape)
        whole, source = num_bytes(spec.dtype, spec.shape), pieces[spec.dtype].address
        for start in range(0, whole, PIECE):
            device.copy(found[spec.name].address + start, source, min(PIECE, whole - start))
    device.synchronize()
    return found


class Model:
    """A model, loaded, with room for the longest test."""

    def __init__(self, folder: Path, streams: Sequence[int], prompts: Sequence[int], context: int) -> None:
        self.manifest = manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"), folder / MANIFEST)
        opened = open_library(Artifact(folder, manifest))
        self._block = manifest.kv.block_size
        num_blocks = 1 + max(max(streams) * self._blocks_of(context), *(self._blocks_of(prompt) for prompt in prompts))
        self.plan: Plan = opened.library.plan
        self.device = opened.device
        weights = make_weights(manifest, opened.device)
        self.executor: NativeExecutor = opened.executor([num_blocks] * len(manifest.kv.groups), weights=weights)
        self._random = np.random.default_rng(1)

    def batch(self, num_streams: int, num_tokens: int, depth: int) -> Batch:
        """Streams that each bring so many tokens after `depth` others; block 0 is nobody's."""
        tables = 1 + np.arange(num_streams * self._blocks_of(depth + num_tokens), dtype=np.int32).reshape(num_streams, -1)
        one = np.arange(depth, depth + num_tokens, dtype=np.int32)
        slots = (tables[:, one // self._block] * self._block + one % self._block).reshape(-1).astype(np.int32)
        count, groups = num_streams * num_tokens, len(self.manifest.kv.groups)
        starts = np.arange(num_streams + 1, dtype=np.int32) * np.int32(num_tokens)
        tokens = self._random.integers(0, self.manifest.model.vocab_size, count).astype(np.int32)
        lens = np.full(num_streams, depth + num_tokens, np.int32)
        return Batch(tokens, np.tile(one, num_streams), (slots,) * groups, starts, lens, (tables,) * groups, starts[1:] - np.int32(1))

    def _blocks_of(self, num_tokens: int) -> int:
        """Of a sequence of so many tokens, and some that it generates."""
        return -(-min(num_tokens + ROOM, self.manifest.model.context_length) // self._block)

    def decode(self, num_streams: int, context: int) -> dict[str, Any]:
        """A step of streams that have `context` tokens each; the model goes on by itself for some."""
        steps, batch = min(MAX_STEPS, self.executor.max_steps), self.batch(num_streams, 1, context - 1)
        tokens = np.zeros(0)

        def run() -> None:
            nonlocal tokens
            tokens = self.executor.submit(batch, SamplingPlan(steps)).argmax()

        runs = [seconds / steps for seconds in timed(run)]
        work = decode_work(self.manifest, self.plan, num_streams, context)
        return {"test": f"decode x {num_streams}", **figures(runs, work), "has_nan": bool((np.asarray(tokens)[-steps:] < 0).any())}

    def prompt(self, num_tokens: int) -> dict[str, Any]:
        """A prompt, in one step, and its first token."""
        batch = self.batch(1, num_tokens, 0)
        runs = timed(lambda: self.executor.submit(batch, SamplingPlan()).argmax())
        return {"test": f"prompt {num_tokens}", **figures(runs, prompt_work(self.manifest, self.plan, num_tokens, num_tokens))}

    def kernels(self, num_streams: int, num_tokens: int, depth: int, work: StepWork) -> dict[str, Any]:
        """Seconds of each kernel's calls in one step, one by one: with a launch and a wait for each, which small ones mostly are."""
        found: list[list[int]] = []
        batch = self.batch(num_streams, num_tokens, depth)
        with self.executor.clocked(lambda nanoseconds, _: found.append(list(nanoseconds))):
            for _ in range(LEAST_RUNS):
                self.executor.submit(batch, SamplingPlan()).argmax()
        best = [1e-9 * min(times) for times in zip(*found, strict=True)]
        seconds: dict[str, float] = {}
        for call, taken in zip(self.plan.calls, best, strict=True):
            seconds[call.kernel] = seconds.get(call.kernel, 0.0) + taken
        costs = {kernel.name: (kernel.num_calls, kernel.cost) for kernel in work.kernels}
        lines = [
            {"kernel": name, "calls": costs[name][0], "seconds": taken, "num_bytes": costs[name][1].num_bytes}
            for name, taken in sorted(seconds.items(), key=lambda item: -item[1])
        ]
        return {"kernels": lines, "streams": num_streams, "tokens": num_tokens, "depth": depth}

    def copying(self) -> dict[str, Any]:
        """Bytes a second that the device reads and writes as it copies memory: near the most that it can."""
        size = min(256 << 20, max(PIECE, self.device.memory_budget() // 4))
        source, target = (self.device.empty("uint8", (size,)) for _ in range(2))

        def copy() -> None:
            for _ in range(8):
                self.device.copy(target.address, source.address, size)  # type: ignore[attr-defined]
            self.device.synchronize()

        return {"copy_bytes_per_second": 2 * 8 * size / min(timed(copy))}


def timed(run: Callable[[], object]) -> list[float]:
    """Seconds of some runs, after two that bring code and graphs."""
    for _ in range(2):
        run()
    found: list[float] = []
    while len(found) < LEAST_RUNS or (sum(found) < LEAST_SECONDS and len(found) < MOST_RUNS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def figures(runs: Sequence[float], work: StepWork) -> Mapping[str, Any]:
    """The fastest run: what else the machine does only ever adds time."""
    seconds, cost = min(runs), work.cost
    counts = {"num_bytes": cost.num_bytes, "num_operations": cost.num_operations, "num_launches": cost.num_launches}
    return {"seconds": seconds, "median_seconds": sorted(runs)[len(runs) // 2], "tokens_per_second": work.num_tokens / seconds, **counts}


def say(line: Mapping[str, Any]) -> None:
    """Writes a line for the one who started this."""
    print(json.dumps(line), flush=True)


def main() -> None:
    """Measures what it is asked for, decoding first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompts", type=int, nargs="+", required=True)
    parser.add_argument("--context", type=int, required=True)
    options = parser.parse_args()
    start = time.perf_counter()
    model = Model(options.model, options.streams, options.prompts, options.context)
    say({"load_seconds": time.perf_counter() - start, "target": model.manifest.libraries[0].target.name})
    for num_streams in options.streams:
        say(model.decode(num_streams, options.context))
    for num_tokens in options.prompts:
        say(model.prompt(num_tokens))
    say(model.copying())
    say(model.kernels(1, 1, options.context - 1, decode_work(model.manifest, model.plan, 1, options.context)))
    shortest = min(options.prompts)
    say(model.kernels(1, shortest, 0, prompt_work(model.manifest, model.plan, shortest, shortest)))


if __name__ == "__main__":
    main()
