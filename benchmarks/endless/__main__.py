"""Feeds a model a text far longer than its context, with attention sinks, and prints what every thousand tokens cost.

    python benchmarks/endless ARTIFACT --attention-sinks 4 --attention-window 1024

The text is Python's own documentation, as it stands, in steps of a few tokens, as an answer would come. Its last two thousand tokens are
those of its beginning again, so that the last thousand's perplexity compares with that of the second one.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import cupola

PART = 1000  # tokens


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/endless", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--attention-sinks", type=int, default=4)
    parser.add_argument("--attention-window", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--step", type=int, default=16, help="tokens of a step; more than the window's hop are never taken")
    parser.add_argument("--every", type=int, default=10_000, help="print a line after so many tokens")
    options = parser.parse_args()
    llm = cupola.LLM(
        options.artifact,
        max_num_seqs=1,
        max_num_batched_tokens=options.step,
        attention_sinks=options.attention_sinks,
        attention_window=options.attention_window,
        enable_prefix_caching=False,
    )
    print(llm.notes[0])
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = llm.get_tokenizer().encode(text, max_tokens=len(text))
    ids = [*ids[: options.tokens - 2 * PART], *ids[: 2 * PART]]
    print(f"{'tokens':>8} {'ms a token':>10} {'perplexity':>10} {'resident MB':>11} {'K/V blocks':>10}")
    parts: list[Part] = []
    for part in measure(llm, ids):
        parts.append(part)
        if part.end <= 2 * PART or part.end % options.every == 0:
            print(
                f"{part.end:>8} {part.milliseconds:>10.2f} {part.perplexity:>10.2f} {part.resident / 1e6:>11.1f} {part.num_blocks:>10}",
                flush=True,
            )
    print(f"the last thousand against the second: perplexity × {parts[-1].perplexity / parts[1].perplexity:.3f}")
    half = len(parts) // 2
    early, late = (sum(p.milliseconds for p in some) / len(some) for some in (parts[2:half], parts[half:]))
    print(f"the second half against the first: time × {late / early:.3f}")


@dataclass(frozen=True)
class Part:
    """A thousand tokens, up to `end`; bytes that the process holds, and blocks that the sequence does."""

    end: int
    milliseconds: float  # a token
    perplexity: float
    resident: int
    num_blocks: int


def measure(llm: cupola.LLM, ids: list[int]) -> Iterator[Part]:
    """Runs the tokens as one prompt, whose log-probabilities are asked for."""
    engine = llm.engine
    request = engine.add_request("text", ids, cupola.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False))
    (pool,), found, end, start = engine.scheduler.states.pools, 0.0, 0, time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
        for entry in request.prompt_logprobs:
            found += next(iter(entry.values())).logprob if entry else 0.0
            end += 1
            if end % PART == 0:
                seconds = time.perf_counter() - start
                yield Part(end, 1e3 * seconds / PART, math.exp(-found / PART), resident_bytes(), pool.num_blocks - pool.num_free_blocks)
                found, start = 0.0, time.perf_counter()
        request.prompt_logprobs.clear()


def resident_bytes() -> int:
    """Memory of this process, on Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
