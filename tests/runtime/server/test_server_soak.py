"""Many clients at once for long: no error that is not theirs, no block lost, no memory lost, no answer changed.

Twice: over the tiny model, whose answers are the same bits in any company, so that each is compared with the one given alone; and over
SmolLM2, for the load of a real model, whose sums may be taken in another order beside others (`--target cpu:batch-invariant` forbids that,
and would be one more model to compile).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import Compiled
from tests.runtime.server.harness import COMPLETIONS, PATIENCE, Server, run_server

NUM_CLIENTS, NUM_REQUESTS, NUM_PROMPTS = 64, 1000, 100
SPARE_BYTES = 8 << 20  # what allocators may still take after half of the requests; a leak of one request in ten would take more


@dataclass(frozen=True)
class Job:
    """One request, and after how many seconds or events its client leaves, if it does."""

    prompt: int
    body: dict[str, Any]
    leaves: float | None = None


def jobs(prompts: list[list[int]], max_tokens: int, rng: random.Random) -> list[Job]:
    found = []
    for _ in range(NUM_REQUESTS):
        prompt = rng.randrange(NUM_PROMPTS)
        body: dict[str, Any] = {
            "prompt": prompts[prompt],
            "max_tokens": rng.randint(1, max_tokens),
            "ignore_eos": True,
            "return_token_ids": True,
        }
        body |= {"temperature": 0} if rng.random() < 0.7 else {"temperature": 1, "n": 2, "seed": rng.randrange(100), "logprobs": 2}
        body |= {"stream": rng.random() < 0.5, "priority": rng.randint(-1, 1)}
        found.append(Job(prompt, body, rng.uniform(0, 0.2) if rng.random() < 0.1 else None))
    return found


async def answer(client: httpx.AsyncClient, job: Job) -> list[int]:
    """The tokens of the first choice."""
    async with client.stream("POST", COMPLETIONS, json=job.body) as response:
        assert response.status_code == 200, await response.aread()
        if not job.body["stream"]:
            await response.aread()
            whole: list[int] = response.json()["choices"][0]["token_ids"]
            return whole
        *events, done = (await response.aread()).removesuffix(b"\n\n").split(b"\n\n")
        assert done == b"data: [DONE]"
        choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
        return [token_id for choice in choices if choice["index"] == 0 for token_id in choice["token_ids"]]


class Soak:
    """64 clients that work through the jobs; memory is looked at after each ten."""

    def __init__(self, server: Server, todo: list[Job]) -> None:
        self._todo, self._server = iter(todo), server
        self._processes = [psutil.Process(server.process.pid), server.engine()]
        self.answers: dict[int, list[int]] = {}  # by the job's id
        self.memory: list[int] = []
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for _ in range(NUM_CLIENTS):
                clients.create_task(self._work())

    async def _work(self) -> None:
        async with httpx.AsyncClient(base_url=self._server.base_url, timeout=5 * PATIENCE, trust_env=False, verify=False) as client:
            for job in self._todo:
                await self._do(client, job)

    async def _do(self, client: httpx.AsyncClient, job: Job) -> None:
        try:
            async with asyncio.timeout(job.leaves):
                token_ids = await answer(client, job)
            self.outcomes["answered"] += 1
            assert len(token_ids) == job.body["max_tokens"]
            self.answers[id(job)] = token_ids
        except TimeoutError:
            self.outcomes["left"] += 1
        if sum(self.outcomes.values()) % 10 == 0:
            self.memory.append(sum(process.memory_info().rss for process in self._processes))


def soak(server: Server, prompts: list[list[int]], max_tokens: int, *, compare: bool) -> None:
    expected = (
        [server.complete(prompt=p, max_tokens=max_tokens, temperature=0, ignore_eos=True, return_token_ids=True) for p in prompts]
        if compare
        else []
    )
    server.wait_idle()
    todo = jobs(prompts, max_tokens, random.Random(0))
    run = Soak(server, todo)
    asyncio.run(run.run())
    server.wait_idle()
    assert server.errors() == []
    assert server.health() == (200, "ready")
    assert sum(run.outcomes.values()) == NUM_REQUESTS
    assert run.outcomes["answered"] >= 0.9 * NUM_REQUESTS - 50
    half = len(run.memory) // 2
    assert max(run.memory[half:]) < max(run.memory[:half]) + SPARE_BYTES
    for job in todo:
        if compare and id(job) in run.answers and job.body["temperature"] == 0:
            assert run.answers[id(job)] == expected[job.prompt]["choices"][0]["token_ids"][: job.body["max_tokens"]]
    statuses = Counter(line["status"] for line in server.lines() if line["message"] == "request")
    assert set(statuses) <= {200, 499}


def draw_prompts(vocabulary: int, longest: int) -> list[list[int]]:
    """Of random lengths; many begin alike."""
    rng = random.Random(1)
    heads = [[rng.randrange(vocabulary) for _ in range(longest // 2)] for _ in range(5)]
    return [
        (rng.choice(heads) if i % 2 else []) + [rng.randrange(vocabulary) for _ in range(rng.randint(1, longest // 2))]
        for i in range(NUM_PROMPTS)
    ]


@pytest.mark.by_turns
def test_answers_are_what_they_are_alone(tiny: Path, tmp_path: Path):
    """Blocks are few, so that sequences preempt each other."""
    with run_server(tiny, tmp_path, "--kv-memory", "2KiB") as server:
        soak(server, draw_prompts(256, 100), 60, compare=True)
        assert server.metrics()["num_preemptions_total"] > 0


@pytest.mark.by_turns
def test_a_real_model(smollm2_w4a8: Compiled, tmp_path: Path):
    # So few pages that all are in use early: pages count as memory only once they are written to, by megabytes of each layer's at a time.
    with run_server(smollm2_w4a8.path, tmp_path, "--kv-memory", "64MiB") as server:
        soak(server, draw_prompts(49_000, 40), 16, compare=False)
