"""Tokens a second of a compiled model, one sequence: prefill of a prompt, and decoding after it.

    python benchmarks/end_to_end.py ARTIFACT [--prompt-len 512] [--output-len 128] [--repeat 5] [--json]

Each repeat times both in turn; the medians are printed. Sampling (greedy) and scheduling are in the times, tokenizing is not.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Annotated

import typer

import cupola


def main(
    artifact: Annotated[str, typer.Argument(help="An artifact's folder.", show_default=False)],
    prompt_len: Annotated[int, typer.Option(help="Tokens to prefill.")] = 512,
    output_len: Annotated[int, typer.Option(help="Tokens to decode.")] = 128,
    repeat: Annotated[int, typer.Option(help="Times to measure.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure prefill and decoding of one sequence."""
    llm = cupola.LLM(artifact, enable_prefix_caching=False, max_num_batched_tokens=max(prompt_len, 1))
    seconds_of(llm, prompt_len, 2)
    rates: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(repeat):
        rates["prefill"].append(prompt_len / seconds_of(llm, prompt_len, 1))
        short, long = seconds_of(llm, 1, 1), seconds_of(llm, 1, output_len + 1)
        rates["decode"].append(output_len / (long - short))
    weight_bytes = sum(file.num_bytes for file in llm.artifact.manifest.files if file.name.endswith(".safetensors"))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    read = medians["decode"] * weight_bytes / 1e9
    if as_json:
        typer.echo(json.dumps({"tokens_per_second": medians, "weight_gigabytes_per_second": read, "all": rates}))
        return
    for name, values in rates.items():
        typer.echo(f"{name:8} {medians[name]:8.1f} tokens/s  (from {min(values):.1f} to {max(values):.1f})")
    typer.echo(f"decoding read weights at {read:.1f} GB/s")


def seconds_of(llm: cupola.LLM, prompt_len: int, output_len: int) -> float:
    """Seconds to complete a prompt of `prompt_len` tokens with `output_len` more."""
    params = cupola.SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    prompt = [(7 * i) % (llm.artifact.manifest.model.vocab_size - 1) for i in range(prompt_len)]
    start = time.perf_counter()
    llm.generate([prompt], params)
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
