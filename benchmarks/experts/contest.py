"""cupola beside llama.cpp on one file, in turns: a prompt of 512 tokens, and decoding one sequence.

    python -m benchmarks.experts.models gpt-oss-20b --layers 4 --out model.gguf
    cupola compile model.gguf --quant keep-a8 --out model.cupola
    python -m benchmarks.experts.contest model.gguf model.cupola --llama-python VENV/bin/python

Both are loaded, in processes of their own that wait without polling while the other works. Each round does each workload once in each;
medians and ratios are printed, after the rates at which a plain loop reads the files (`reader.py` says why). The workers are those of
`benchmarks/peers`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.experts.reader import file_rates
from benchmarks.experts.shapes import VOCABULARY

WORKERS = Path(__file__).resolve().parent.parent / "peers"
PROMPT, SHORT, DECODED = 512, 16, 64  # tokens


class Worker:
    """A process that answers requests as `benchmarks/peers/protocol.py` says."""

    def __init__(self, python: str, file: str) -> None:
        command = [python, str(WORKERS / file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.version = self._answer()["version"]

    def ask(self, **request: object) -> dict[str, Any]:
        """The answer. Raises SystemExit with the worker's error."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with code {self._process.wait()}"}
        if "error" in answer:
            raise SystemExit(f"{self._process.args}: {answer['error']}")
        return answer


def seconds(worker: Worker, prompt: list[int]) -> dict[str, float]:
    """Of the prompt, and of a decoded token after its first ones."""
    first = worker.ask(do="run", prompts=[prompt], num_tokens=1)["first"]
    times = worker.ask(do="run", prompts=[prompt[:SHORT]], num_tokens=DECODED + 1)
    return {"prompt": first, "decode": (times["total"] - times["first"]) / DECODED}


def main() -> None:
    """Prints tokens a second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--llama-python", required=True, help="the Python that has llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    for path in (asked.artifact, asked.gguf):
        rates = [rate / 1e9 for _, rate in file_rates([path])]
        print(f"{path.name} is read at {min(rates, default=0):.1f} to {max(rates, default=0):.1f} GB/s", flush=True)
    draw = random.Random(0)
    workers = {"cupola": Worker(sys.executable, "on_cupola.py"), "llama.cpp": Worker(asked.llama_python, "on_llama_cpp.py")}
    for name, model, setting in (("cupola", asked.artifact, ""), ("llama.cpp", asked.gguf, "flash f16")):
        workers[name].ask(do="load", model=str(model.resolve()), threads=asked.threads, setting=setting, prompt=[5])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(1 + asked.rounds):
        prompt = [draw.randrange(300, VOCABULARY - 1) for _ in range(PROMPT)]
        for name, worker in workers.items():
            times = seconds(worker, prompt)
            if turn:  # the first builds kernels and finds caches cold
                found[name].append(times)
    for work, tokens in (("prompt", PROMPT), ("decode", 1)):
        ours, theirs = ([tokens / times[work] for times in found[name]] for name in workers)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        cells = [
            f"{name} {statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
            for name, rates in zip(workers, (ours, theirs), strict=True)
        ]
        print(f"{work}: {', '.join(cells)} tokens/s, {ratio:.2f} times", flush=True)
    print(", ".join(f"{name} {worker.version}" for name, worker in workers.items()))


if __name__ == "__main__":
    main()
