"""One GGUF file by cupola beside llama.cpp, both loaded, in turns: decode steps, a prompt, and the shares of what the machine can do.

    python -m benchmarks.large_models.speed llama.gguf artifact --llama-python build/peers/llama.cpp/bin/python

Large models take too long to load for a process of each turn's own, as `benchmarks/peers` has them. Both see contexts of a few tokens. A
row for each library of the artifact that this machine can run; medians. Prompts are held against the int8 peak, and decode steps against
the bandwidth, that the artifact's probes measure meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola import Artifact, Benchmark, SpeedTest
from cupola.runtime.environment import num_threads
from cupola.runtime.errors import CupolaError
from cupola.runtime.measure.bound import decode_work, prompt_work
from cupola.runtime.measure.profile import Roofline, measure_roofline

PEERS = Path(__file__).parents[1] / "peers"
PEER = "llama.cpp"
STEP_TOKENS, PAUSE = 512, 0.3  # seconds, for threads that watch for work to sleep
Rates = dict[str, list[float]]  # tokens a second by "engine test"


@dataclass(frozen=True)
class Pair:
    """The two speeds to measure: of a prompt, and of tokens generated one by one."""

    prompt: SpeedTest
    decode: SpeedTest


class LlamaCpp:
    """The worker of `benchmarks/peers` that a command starts; it loads the file at once."""

    def __init__(self, command: Sequence[str], file: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.about = self._answer()
        self._ask({"do": "load", "model": file, "threads": num_threads(), "setting": "flash f16", "prompt": [1, 2, 3]})

    def tokens_per_second(self, test: SpeedTest) -> float:
        """One measurement, as `Benchmark` takes it."""
        generates = test.kind == "tg"
        prompt = list(range(300, 301 if generates else 300 + test.num_tokens))
        found = self._ask({"do": "run", "prompts": [prompt], "num_tokens": test.num_tokens + 1 if generates else 1})
        return test.num_tokens / (found["total"] - found["first"] if generates else found["first"])

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: Mapping[str, object]) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        answer = json.loads(self._process.stdout.readline() or '{"error": "llama.cpp ended"}')
        if "error" in answer:
            sys.exit(f"llama.cpp: {answer['error']}")
        return answer


class Contest:
    """Both engines, loaded, and what was measured so far."""

    def __init__(self, artifact: Artifact, peer: LlamaCpp, tests: Pair) -> None:
        self.tests, self.peer, self.rates = tests, peer, Rates()
        self.benchmarks = dict(_benchmarks(artifact, tests))
        self.rooflines: dict[str, Roofline] = {}
        for test in (tests.prompt, tests.decode):
            for benchmark in self.benchmarks.values():
                benchmark.warm_up(test)

    def round(self, test: SpeedTest) -> None:
        """A turn for everyone."""
        for name, benchmark in self.benchmarks.items():
            found = measure_roofline(benchmark)
            self.rooflines[name] = found.best(self.rooflines.get(name, found))
        engines: dict[str, Callable[[SpeedTest], float]] = {name: each.tokens_per_second for name, each in self.benchmarks.items()}
        for name, measure in (engines | {PEER: self.peer.tokens_per_second}).items():
            time.sleep(PAUSE)
            self.rates.setdefault(f"{name} {test.name}", []).append(measure(test))

    def table(self) -> str:
        """Medians of tokens a second, beside llama.cpp's and the limits."""
        prompt, decode = self.tests.prompt, self.tests.decode
        head = ("engine", decode.name, "beside llama.cpp", "of bandwidth", prompt.name, "beside llama.cpp", "of the int8 peak")
        rows = [_row([PEER, f"{self._median(PEER, decode):.2f}", "", "", f"{self._median(PEER, prompt):.1f}", "", ""])]
        for name, benchmark in self.benchmarks.items():
            manifest, plan, roofline = benchmark.artifact.manifest, benchmark.executor.plan, self.rooflines[name]
            own = {test: self._median(name, test) for test in (decode, prompt)}
            read = decode_work(manifest, plan, 1, decode.num_tokens // 2).cost.num_bytes * own[decode]
            done = prompt_work(manifest, plan, prompt.num_tokens, STEP_TOKENS).cost.num_operations * own[prompt] / prompt.num_tokens
            shares = [f"{own[test] / self._median(PEER, test):.2f}" for test in (decode, prompt)]
            limits = f"{read / roofline.bytes_per_second:.0%}", f"{done / roofline.operations_per_second['int8']:.0%}"
            rows.append(_row([name, f"{own[decode]:.2f}", shares[0], limits[0], f"{own[prompt]:.1f}", shares[1], limits[1]]))
        return "\n".join([_row(head), _row(["---"] * len(head)), *rows])

    def _median(self, name: str, test: SpeedTest) -> float:
        return statistics.median(self.rates[f"{name} {test.name}"])


def _benchmarks(artifact: Artifact, tests: Pair) -> Iterator[tuple[str, Benchmark]]:
    for library in artifact.manifest.libraries:
        try:
            yield library.target.device, Benchmark(artifact, [tests.prompt, tests.decode], library.target.device)
        except CupolaError as error:
            print(f"{library.target.device} is left out: {error}", file=sys.stderr)


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measures what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("artifact", help="what it was compiled to")
    parser.add_argument("--llama-python", required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--generate", type=int, default=16, help="decode steps")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tests = Pair(SpeedTest("pp", arguments.prompt), SpeedTest("tg", arguments.generate))
    peer = LlamaCpp([arguments.llama_python, str(PEERS / "on_llama_cpp.py")], arguments.file)
    contest = Contest(Artifact.open(arguments.artifact), peer, tests)
    for test in (tests.decode, tests.prompt):
        for _ in range(arguments.rounds):
            contest.round(test)
    peer.close()
    print(contest.table())


if __name__ == "__main__":
    main()
