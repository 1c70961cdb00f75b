"""Measures how much a chat's second turn gains from the first."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from server import Server

WORDS = "the a tall small old new house river stone tree bridge road stands runs lies falls near under over behind often"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Turns:
    """Seconds until each turn's first text; tokens of both prompts, and how many of the second came from the cache."""

    first_ttft: float
    second_ttft: float
    num_first_tokens: int
    num_second_tokens: int
    num_cached_tokens: int


def measure_chat(server: Server, num_tokens: int, num_answer_tokens: int, randomness: random.Random) -> Turns:
    """One conversation, whose first turn has about `num_tokens`."""
    messages = [{"role": "user", "content": draw_text(server, num_tokens, randomness)}]
    first, answer, usage = ask(server, messages, num_answer_tokens)
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And what stands behind it?"}]
    second, _, more = ask(server, messages, num_answer_tokens)
    return Turns(first, second, usage["prompt_tokens"], more["prompt_tokens"], more["prompt_tokens_details"]["cached_tokens"])


def ask(server: Server, messages: list[dict[str, str]], num_tokens: int) -> tuple[float, str, dict[str, Any]]:
    """Seconds until the answer's first text, the answer, and the usage."""
    options = {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True}}
    start = time.perf_counter()
    first, answer, usage = 0.0, "", {}
    for moment, event in server.stream(CHAT, {"messages": messages, **options}):
        usage = event.get("usage") or usage
        text = event["choices"][0]["delta"].get("content") if event["choices"] else None
        if text:
            first, answer = first or moment - start, answer + text
    if not answer:
        raise RuntimeError("a chat's answer has no text")
    return first, answer, usage


def draw_text(server: Server, num_tokens: int, randomness: random.Random) -> str:
    """About `num_tokens` tokens of text that nobody had before."""
    words = [randomness.choice(WORDS.split()) for _ in range(num_tokens)]
    count = server.post("/tokenize", {"prompt": " ".join(words)})["count"]
    return " ".join(words[: max(1, num_tokens * len(words) // count)])
