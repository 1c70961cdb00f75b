"""Measures how a long prompt delays streams that are under way."""

from __future__ import annotations

import itertools
import random
import threading
import time
from dataclasses import dataclass

from server import Server

FIRST_TOKENS = 8  # of every stream, and
PLAIN_SECONDS = 0.3  # more, before the prompt is sent
ENDLESS = 2**31  # tokens: as many as the context holds
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Round:
    """Seconds: the longest wait of a stream for a token, before the prompt and while it was computed; until the prompt's first token."""

    plain_gap: float
    worst_gap: float
    prompt_ttft: float


class Stream(threading.Thread):
    """Asks for an endless answer, and notes when its tokens come, until `hang_up`."""

    def __init__(self, server: Server, prompt: list[int]) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.is_under_way, self._done = threading.Event(), threading.Event()
        self._server, self._body = server, {"prompt": prompt, "max_tokens": ENDLESS, "ignore_eos": True, "temperature": 0}

    def run(self) -> None:
        """Reads events."""
        events = self._server.stream(COMPLETIONS, self._body)
        for moment, _ in events:
            self.times.append(moment)
            if len(self.times) == FIRST_TOKENS:
                self.is_under_way.set()
            if self._done.is_set():
                break
        events.close()  # type: ignore[attr-defined]

    def hang_up(self) -> None:
        """Ends the stream with the next token."""
        self._done.set()
        self.join()


def draw_prompt(num_tokens: int, randomness: random.Random) -> list[int]:
    """Token ids that every vocabulary has, and no prompt before had in this order."""
    return [randomness.randrange(10, 250) for _ in range(num_tokens)]


def measure_latency(server: Server, num_streams: int, num_prompt_tokens: int, randomness: random.Random) -> Round:
    """One round. Raises RuntimeError if a stream ends before the prompt has its first token."""
    streams = [Stream(server, draw_prompt(16, randomness)) for _ in range(num_streams)]
    for stream in streams:
        stream.start()
    for stream in streams:
        if not stream.is_under_way.wait(60):
            raise RuntimeError("a stream does not get under way")
    plain_start = time.perf_counter()
    time.sleep(PLAIN_SECONDS)
    start = time.perf_counter()
    prompt = {"prompt": draw_prompt(num_prompt_tokens, randomness), "max_tokens": 1, "ignore_eos": True, "temperature": 0}
    first = next(moment for moment, _ in server.stream(COMPLETIONS, prompt))
    for stream in streams:
        stream.hang_up()
        if stream.times[-1] < first:
            raise RuntimeError("a stream came to its end before the prompt had its first token: give the model more context")
    return Round(worst_gap(streams, plain_start, start), worst_gap(streams, start, first), first - start)


def worst_gap(streams: list[Stream], start: float, end: float) -> float:
    """The longest time between two tokens of a stream that lies between two moments, in part or whole."""
    return max(b - a for stream in streams for a, b in itertools.pairwise(stream.times) if b > start and a < end)
