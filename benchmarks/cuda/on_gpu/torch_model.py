"""The same shape in plain torch (2.5 or newer), in bf16: decode steps as CUDA graphs, prompts launched kernel by kernel.

Lines of JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEAST_SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 3, 50


class Model:
    """A decoder as Llama's, with random weights. What it leaves out, the angles of the rotary embedding, costs nothing beside the rest."""

    def __init__(self, torch: Any, config: dict[str, Any], device: str) -> None:
        self.torch, self.config, self.device = torch, config, device
        hidden, ffn, self.dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        joined = (self.heads + 2 * self.groups) * self.dim
        shapes = {"qkv": (joined, hidden), "out": (hidden, self.heads * self.dim), "up": (2 * ffn, hidden), "down": (hidden, ffn)}
        self.layers = [{name: self._random(*shape) for name, shape in shapes.items()} for _ in range(config["num_hidden_layers"])]
        self.embedding, self.head = self._random(config["vocab_size"], hidden), self._random(config["vocab_size"], hidden)
        self.norm = torch.ones(hidden, device=device, dtype=torch.bfloat16)

    def _random(self, *shape: int) -> Any:
        return self.torch.empty(*shape, device=self.device, dtype=self.torch.bfloat16).normal_(0, 0.02)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that a step reads whole."""
        return 2 * (sum(weight.numel() for layer in self.layers for weight in layer.values()) + self.head.numel())

    @property
    def num_operations(self) -> int:
        """Operations of a token, attention aside."""
        return self.num_bytes

    def pools(self, streams: int, length: int) -> list[tuple[Any, Any]]:
        """Memory for the keys and values of each layer."""
        shape = (streams, self.groups, length, self.dim)
        return [tuple(self.torch.zeros(shape, device=self.device, dtype=self.torch.bfloat16) for _ in range(2)) for _ in self.layers]  # type: ignore[misc]

    def step(self, tokens: Any, pools: list[tuple[Any, Any]], start: int) -> Any:
        """The next token of each stream; tokens [streams, n] come after `start` others."""
        functional = self.torch.nn.functional
        streams, count = tokens.shape
        x, end = functional.embedding(tokens, self.embedding), start + count
        sizes = [self.heads * self.dim, self.groups * self.dim, self.groups * self.dim]
        for layer, (keys, values) in zip(self.layers, pools, strict=True):
            q, k, v = functional.linear(functional.rms_norm(x, self.norm.shape, self.norm), layer["qkv"]).split(sizes, -1)
            q, k, v = (part.view(streams, count, -1, self.dim).transpose(1, 2) for part in (q, k, v))
            keys[:, :, start:end], values[:, :, start:end] = k, v
            seen = [part[:, :, :end].repeat_interleave(self.heads // self.groups, 1) for part in (keys, values)] if count > 1 else []
            attended = (
                functional.scaled_dot_product_attention(q, *seen, is_causal=start == 0)
                if count > 1
                else functional.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], enable_gqa=True)
            )
            x = x + functional.linear(attended.transpose(1, 2).reshape(streams, count, -1), layer["out"])
            gate, up = functional.linear(functional.rms_norm(x, self.norm.shape, self.norm), layer["up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.linear(functional.rms_norm(x[:, -1], self.norm.shape, self.norm), self.head).argmax(-1)


def timed(torch: Any, device: str, run: Callable[[], object]) -> list[float]:
    """Seconds of some runs, after two."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once(), once()
    found: list[float] = []
    while len(found) < LEAST_RUNS or (sum(found) < LEAST_SECONDS and len(found) < MOST_RUNS):
        found.append(once())
    return found


def captured(torch: Any, device: str, run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph; itself where there is no GPU."""
    if device != "cuda":
        return run
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay


def measure(torch: Any, options: argparse.Namespace, device: str) -> None:
    """Writes a line for each test."""
    model = Model(torch, json.loads(options.config.read_text(encoding="utf-8")), device)
    state = 2 * 2 * model.groups * model.dim * len(model.layers)  # bytes of a token's keys and values
    pairs = 2 * 2 * model.heads * model.dim * len(model.layers)  # operations of a token and one that it sees
    for streams in options.streams:
        tokens = torch.zeros((streams, 1), device=device, dtype=torch.int64)
        pools = model.pools(streams, options.context)

        def decode(tokens: Any = tokens, pools: Any = pools) -> None:
            tokens.copy_(model.step(tokens, pools, options.context - 1)[:, None])

        runs = timed(torch, device, captured(torch, device, decode))
        work = model.num_bytes + streams * state * (options.context + 1), streams * (model.num_operations + pairs * options.context)
        say(f"decode x {streams}", runs, streams, *work)
    for count in options.prompts:
        tokens, pools = torch.zeros((1, count), device=device, dtype=torch.int64), model.pools(1, count)
        runs = timed(torch, device, lambda tokens=tokens, pools=pools: model.step(tokens, pools, 0))
        operations = count * (model.num_operations - 2 * model.head.numel()) + 2 * model.head.numel() + pairs * count * (count + 1) // 2
        say(f"prompt {count}", runs, count, model.num_bytes + 2 * state * count, operations)


def say(test: str, runs: list[float], num_tokens: int, num_bytes: int, num_operations: int) -> None:
    """Writes a line for the one who started this."""
    seconds = min(runs)
    line = {"test": test, "seconds": seconds, "median_seconds": sorted(runs)[len(runs) // 2], "tokens_per_second": num_tokens / seconds}
    print(json.dumps({**line, "num_bytes": num_bytes, "num_operations": num_operations}), flush=True)


def main() -> int:
    """Measures, if there is torch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", required=True)
    parser.add_argument("--prompts", type=int, nargs="+", required=True)
    parser.add_argument("--context", type=int, required=True)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print(json.dumps({"left_out": "there is no torch"}))
        return 0
    is_tiny = json.loads(options.config.read_text(encoding="utf-8"))["hidden_size"] < 1024
    if not torch.cuda.is_available() and not is_tiny:
        print(json.dumps({"left_out": "torch finds no GPU"}))
        return 0
    with torch.no_grad():
        measure(torch, options, "cuda" if torch.cuda.is_available() else "cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
