"""A load test from beginning to end: find the server, make prompts, try one, warm up, measure."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.load_generator.dataset import Prompt, make_prompts, make_warm_up, read_sharegpt
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.openai_client import OpenAIClient
from cupola.runtime.load_generator.report import LoadReport
from cupola.runtime.load_generator.traffic import send_all
from cupola.runtime.load_generator.words import Vocabulary, learn_words
from cupola.runtime.system.open_files import allow_open_files

NOT_CHECKED = "the server has no /tokenize: prompts are common words, about a token each"
NOT_EXACT = "hardly a word is one token on this server: texts have more tokens than asked for"
NO_IDS = "the server takes no token ids: prompts are texts"
MAX_CACHED_SHARE = 0.25  # of prompts that have nothing in common; a chat's template may be as much
RESERVED_FILES = 256  # beside the connections
_REFUSED = (400, 404, 405, 422)


@dataclass(frozen=True)
class Prepared:
    """The prompts of a load test, and how they were made."""

    prompts: list[Prompt]
    vocabulary: Vocabulary
    as_ids: bool
    notes: tuple[str, ...]

    def warm_up(self, test: LoadTest, number: int) -> Prompt:
        """A prompt as long as the first."""
        return make_warm_up(test, self.prompts[0], number, self.vocabulary, self.as_ids)


def run(test: LoadTest, on_done: Callable[[], None]) -> LoadReport:
    """See `run_load_test`."""
    with _quiet_process(test.max_concurrency or test.num_prompts), asyncio.Runner(loop_factory=_event_loop) as runner:
        return runner.run(_measure(test, on_done))


async def _measure(test: LoadTest, on_done: Callable[[], None]) -> LoadReport:
    client = OpenAIClient(test)
    try:
        if test.ready_check_timeout_sec:
            await client.wait_until_there()
        await client.find_model()
        prepared = await _prepare(test, client)
        if test.ready_check_timeout_sec:
            prepared = await _try_out(test, client, prepared)
        await _warm_up(test, client, prepared)
        date, start_s, start_cpu_s = datetime.now(), time.perf_counter(), time.process_time()
        records = await send_all(test, prepared.prompts, client.generate, on_done)
        duration_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    finally:
        client.close()
    report = LoadReport(test, client.model, date, duration_s, tuple(records), cpu_s)
    return replace(report, notes=(*prepared.notes, *_doubts(report)))


async def _prepare(test: LoadTest, client: OpenAIClient) -> Prepared:
    vocabulary = await learn_words(client.tokenize)
    as_ids = vocabulary.ids is not None and not test.is_chat
    if test.dataset_name == "sharegpt":
        note = () if vocabulary.ids is not None else ("the server has no /tokenize: lengths are guessed from characters",)
        return Prepared(await read_sharegpt(test, client.tokenize), vocabulary, as_ids, note)
    note = () if as_ids or vocabulary.is_exact else (NOT_CHECKED if vocabulary.ids is None else NOT_EXACT,)
    return Prepared(make_prompts(test, vocabulary, as_ids), vocabulary, as_ids, note)


async def _try_out(test: LoadTest, client: OpenAIClient, prepared: Prepared) -> Prepared:
    """Sends one request, so that what fails for all is said at once. Raises OptionError or EngineError."""
    record = await client.generate(replace(prepared.warm_up(test, 0), output_len=1))
    if record.error is None:
        return prepared
    if record.http_status in (400, 422) and prepared.as_ids:
        texts = prepared.prompts if test.dataset_name == "sharegpt" else make_prompts(test, prepared.vocabulary, as_ids=False)
        return await _try_out(test, client, Prepared(texts, prepared.vocabulary, False, (*prepared.notes, NO_IDS)))
    problem = f"the server does not take such a request: {record.error}"
    if record.http_status in _REFUSED:
        raise OptionError(problem, file=test.base_url, field=test.endpoint, fix="check endpoint, model and lengths; --help has them all")
    raise EngineError(f"{test.base_url}{test.endpoint}: {problem}")


async def _warm_up(test: LoadTest, client: OpenAIClient, prepared: Prepared) -> None:
    if test.num_warmups:
        prompts = [prepared.warm_up(test, 1 + number) for number in range(test.num_warmups)]
        await send_all(replace(test, num_prompts=test.num_warmups, request_rate=math.inf), prompts, client.generate, lambda: None)


def _doubts(report: LoadReport) -> Iterator[str]:
    """Reasons to doubt the figures."""
    uncounted = sum(record.error is None and not record.is_counted for record in report.records)
    if uncounted:
        yield f"{uncounted} answers came without usage: their chunks were counted as tokens"
    cached, num_input = report.metrics.num_cached_tokens or 0, report.metrics.num_input_tokens
    if report.test.dataset_name == "random" and not report.test.prefix_len and cached > MAX_CACHED_SHARE * num_input:
        yield f"{cached} of {num_input} input tokens were in the server's prefix cache, as of an earlier run: another seed has new prompts"


def _event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, if it is there: it takes a third of the CPU time that asyncio's own takes a chunk."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@contextmanager
def _quiet_process(num_connections: int) -> Iterator[None]:
    """Room for the connections, and no garbage collection of what was there before."""
    allow_open_files(num_connections + RESERVED_FILES)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
