"""A worker whose times are known: `python fake_worker.py SPEED [crash|refuse|print]`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))

from protocol import Times, serve


class Fake:
    """A token takes 1 / speed seconds, the first one as long as the prompt's tokens do."""

    version, about = "1.2", "fake"

    def load(self, model: str, threads: int, setting: str) -> None:
        print("a library's greeting")
        self._speed, self._quirk = float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        num_prompt_tokens = sum(map(len, prompts))
        if num_prompt_tokens > 16 and self._quirk == "crash":
            os.abort()
        if num_prompt_tokens > 1000 and self._quirk == "refuse":
            raise ValueError("too long")
        first = num_prompt_tokens / self._speed
        return Times(first, first + len(prompts) * (num_tokens - 1) / self._speed)


serve(Fake())
