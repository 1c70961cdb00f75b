"""Measures the cost of HTTP: an engine's output tokens a second by itself, and behind a server whose clients stream."""

from __future__ import annotations

import random
import time

from server import Server

import cupola


def measure_alone(llm: cupola.LLM, streams: int, num_in: int, num_out: int, randomness: random.Random) -> float:
    """Output tokens a second of an engine that is handed all prompts at once."""
    prompts = [[randomness.randrange(1000, 10000) for _ in range(num_in)] for _ in range(streams)]
    params = cupola.SamplingParams(temperature=0, max_tokens=num_out, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, params)
    return streams * num_out / (time.perf_counter() - start)


def measure_served(server: Server, streams: int, num_in: int, num_out: int, randomness: random.Random) -> float:
    """Output tokens a second of a server that gets as many requests at once. Raises RuntimeError if one fails."""
    test = cupola.LoadTest(
        base_url=f"http://{server.host}:{server.port}",
        num_prompts=streams,
        input_len=num_in,
        output_len=num_out,
        num_warmups=0,
        seed=randomness.randrange(2**31),
    )
    report = cupola.run_load_test(test).as_dict()
    if report["completed"] != streams or report["total_output_tokens"] != streams * num_out:
        raise RuntimeError(f"of {streams} requests {report['completed']} were answered, with {report['total_output_tokens']} tokens")
    return float(report["output_throughput"])
