"""Decoding beside other busy programs on the same cores: `python benchmarks/company ARTIFACT`.

Busy programs are loops in processes of their own, which this one starts and stops. In each round decoding is timed alone and beside each
number of programs, in turns; a share is of the speed alone in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cupola

LOOP = "x = 0\nwhile True: x += 1"
SETTLE = 0.1  # seconds, for the system to share out its cores


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many programs that never wait."""
    programs = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(count)]
    try:
        time.sleep(SETTLE)
        yield
    finally:
        for program in programs:
            program.kill()
        for program in programs:
            program.wait()


def tokens_per_second(llm: cupola.LLM, seconds: float) -> float:
    """Of greedy decoding for about so long, the prompt's time apart."""
    params = cupola.SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, detokenize=False)
    prompt = {"prompt_token_ids": [1, 2, 3, 4]}
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        llm.generate(prompt, params)
        count += 64
    return count / (time.perf_counter() - start)


def show(programs: Sequence[int], speeds: dict[int, list[float]]) -> None:
    """Prints each number's share of the speed alone, round by round."""
    print(f"alone: {statistics.median(speeds[0]):.0f} tokens/s ({min(speeds[0]):.0f} to {max(speeds[0]):.0f})")
    for count in programs:
        shares = [beside / alone for beside, alone in zip(speeds[count], speeds[0], strict=True)]
        each = " ".join(f"{share:.2f}" for share in shares)
        print(f"{count} busy: {100 * statistics.median(shares):.0f} % of that ({each})", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/company", description="Decoding beside other busy programs.")
    parser.add_argument("artifact")
    parser.add_argument("-p", "--programs", type=int, nargs="*", default=[1, 2])
    parser.add_argument("-s", "--seconds", type=float, default=1.0)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    given = parser.parse_args()
    llm = cupola.LLM(given.artifact, max_num_seqs=1)
    tokens_per_second(llm, given.seconds / 2)
    speeds: dict[int, list[float]] = {count: [] for count in (0, *given.programs)}
    for _ in range(given.rounds):
        for count in speeds:
            with busy(count):
                speeds[count].append(tokens_per_second(llm, given.seconds))
    show(given.programs, speeds)


if __name__ == "__main__":
    main()
