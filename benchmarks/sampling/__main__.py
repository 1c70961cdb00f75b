"""Sampled decoding beside greedy decoding, one stream: `python benchmarks/sampling ARTIFACT`.

Every way of sampling generates as many tokens as the others, in turns with them, after the same prompt: drift meets all. Whole steps of
the engine are timed, as `cupola bench` does.
"""

from __future__ import annotations

import argparse
import statistics
import time

import cupola

WAYS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-k 40, top-p 0.95, min-p 0.05": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "with log-probabilities": {"temperature": 0.8, "logprobs": 0},  # the host draws, a step at a time
}
PROMPT = "Once upon a time there was a"


def seconds(llm: cupola.LLM, num_tokens: int, seed: int, way: dict[str, float]) -> float:
    """Of generating so many tokens, after a prompt that is cached."""
    params = cupola.SamplingParams(max_tokens=num_tokens, ignore_eos=True, detokenize=False, seed=seed, **way)
    start = time.perf_counter()
    llm.generate(PROMPT, params)
    return time.perf_counter() - start


def main() -> None:
    """Prints the medians, and their ratio to greedy decoding."""
    parser = argparse.ArgumentParser(description="Sampled decoding beside greedy decoding, one stream.")
    parser.add_argument("artifact")
    parser.add_argument("-n", "--tokens", type=int, default=256)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    given = parser.parse_args()
    llm = cupola.LLM(given.artifact, max_num_seqs=1)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(given.rounds + 1):
        for name, way in WAYS.items():
            taken = seconds(llm, given.tokens, turn, way)
            found[name] += [taken] if turn else []  # the first round warms up
    for name, times in found.items():
        ratios = [taken / greedy for taken, greedy in zip(times, found["greedy"], strict=True)]
        print(f"{name:34} {given.tokens / statistics.median(times):7.1f} tokens/s, time x {statistics.median(ratios):.3f}", end=" ")
        print(f"({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
