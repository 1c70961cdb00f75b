"""When requests are sent, and sending them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from cupola.runtime.load_generator.dataset import Prompt
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.record import RequestRecord

Send = Callable[[Prompt], Awaitable[RequestRecord]]


def arrival_times_s(test: LoadTest) -> list[float]:
    """Seconds from the start to each request, float64 [num_prompts].

    The gaps follow a gamma distribution of shape `burstiness`; as vLLM does, they are scaled so that the last request comes
    at num_prompts / request_rate, or else seeds would differ in the rate itself.
    """
    if math.isinf(test.request_rate):
        return [0.0] * test.num_prompts
    if math.isinf(test.burstiness):
        gaps = np.ones(test.num_prompts)
    else:
        gaps = np.random.default_rng((test.seed, 1)).gamma(test.burstiness, size=test.num_prompts)
    times = np.cumsum(gaps)
    if not times[-1] > 0:  # a burstiness so low that no gap is above what a float can hold: one burst
        return [0.0] * test.num_prompts
    return (times * (test.num_prompts / test.request_rate / times[-1])).tolist()


async def send_all(test: LoadTest, prompts: Sequence[Prompt], send: Send, on_done: Callable[[], None]) -> list[RequestRecord]:
    """Sends each prompt at its time, but never more at once than the test allows; their records, in the prompts' order."""
    slots = asyncio.Semaphore(test.max_concurrency or len(prompts))

    async def one(prompt: Prompt) -> RequestRecord:
        async with slots:
            record = await send(prompt)
        on_done()
        return record

    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for prompt, due_s in zip(prompts, arrival_times_s(test), strict=True):
            if (wait_s := start_s + due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(one(prompt)))
    return [task.result() for task in tasks]
