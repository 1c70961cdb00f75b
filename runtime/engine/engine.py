"""The engine: requests in, outputs out, a step at a time."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, fields

import numpy as np

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.block_store import BlockStore, StoreCounts
from cupola.runtime.device.interface import Executor, Float32, StepOutput
from cupola.runtime.engine.attention_sinks import MAX_POSITIONS, choose_sink_window
from cupola.runtime.engine.grammar_masks import GrammarMasks
from cupola.runtime.engine.outputs import EngineStats
from cupola.runtime.engine.pace import Pace
from cupola.runtime.engine.proposers.proposer import Proposer, SelfDrafter
from cupola.runtime.engine.request import Request, RequestSpec, Sequence
from cupola.runtime.engine.sampler import sample
from cupola.runtime.engine.sampling_params import RANDOM_SEED, SamplingParams
from cupola.runtime.engine.scheduler import Scheduler
from cupola.runtime.engine.speculation import Speculation
from cupola.runtime.engine.speculative import check_speculative
from cupola.runtime.engine.state_manager import CHECKPOINT_INTERVAL, StateManager
from cupola.runtime.engine.step import Step
from cupola.runtime.engine.stored_prefixes import StoredPrefixes
from cupola.runtime.engine.token_tree import TokenTree
from cupola.runtime.engine.validator import Prompt, Validator
from cupola.runtime.environment import MAX_THREADS
from cupola.runtime.errors import EngineError, OptionError, RequestError
from cupola.runtime.structured.grammar import GrammarCompiler, check_installed
from cupola.runtime.text.tokenizer import Tokenizer

MAX_SALT_BYTES = 64
PATIENCE = 0.016  # seconds: who comes meanwhile waits no longer, and tokens that come together seem to come one by one
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1
_LIMITS = {"seed": (0, MAX_INT32), "max_logprobs": (-1, MAX_INT32), "attention_sinks": (0, MAX_INT32), "memory_budget": (1, MAX_INT64),
           "num_threads": (1, MAX_THREADS)}  # fmt: skip
MAX_KEPT_GRAMMARS = 16  # beside those of running sequences
NO_EARLY_EXIT = "no tokens are drafted: this model carries a state from token to token, which its first layers would change for each guess"


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine takes on at once. A `max_logprobs` of -1 is the vocabulary.

    `seed` is for requests that bring none; without it these differ from one engine to the next.

    Of a step's `max_num_batched_tokens`, at most `max_num_mixed_prefill_tokens` are those of prompts if sequences decode in it.
    Where the model finds all tokens and nobody waits, it takes up to `num_scheduler_steps` in a step of the engine, as long as
    these are over within PATIENCE.

    With `attention_sinks` and `attention_window` sequences keep so many of their first and latest tokens, in whole blocks, and may go on
    past the context.

    `speculative` names a proposer of tokens for speculative decoding (`proposers/choose.py`).

    `num_threads` are the CPU's, by default as many as there are fast cores; with `power_saver` those that wait sleep. All sequences
    together generate at most `max_tokens_per_second`; the engine sleeps between steps.

    `memory_budget` is what the process may have in bytes; requests whose results take memory that nobody reckoned with are refused then.

    Of models that carry a state from token to token, every `checkpoint_interval` tokens of a prompt a copy of it stays in the prefix cache.

    Raises:
        OptionError: naming the field and the fix.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    seed: int | None = None
    max_logprobs: int = 20
    max_num_mixed_prefill_tokens: int = 192
    num_scheduler_steps: int = 8
    attention_sinks: int | None = None
    attention_window: int | None = None
    checkpoint_interval: int = CHECKPOINT_INTERVAL
    speculative: str | None = None
    memory_budget: int | None = None
    max_tokens_per_second: float | None = None
    num_threads: int | None = None
    power_saver: bool = False

    def __post_init__(self) -> None:
        for name, kind in ((field.name, field.type) for field in fields(self) if field.type.startswith("int")):
            value, (lowest, most) = getattr(self, name), _LIMITS.get(name, (1, MAX_INT32))
            if kind.endswith("None") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= most:
                raise OptionError(f"is {value!r:.60}", field=name, fix=f"give a whole number from {lowest} to {most}")
        for name in ("enable_prefix_caching", "power_saver"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"is {getattr(self, name)!r:.60}", field=name, fix="give true or false")
        pace = self.max_tokens_per_second
        if pace is not None and (isinstance(pace, bool) or not isinstance(pace, int | float) or not 0 < pace < math.inf):
            raise OptionError(f"is {pace!r:.60}", field="max_tokens_per_second", fix="give a number above 0, such as 10")
        check_speculative(self.speculative)


class Engine:
    """Schedules requests over an executor. For one thread.

    Args:
        executor: runs the model; its blocks and swap blocks of each state group are the engine's to give away.
        model: the model's context length, vocabulary and stop tokens.
        kv: the state groups.
        tokenizer: None for a model that takes and gives token ids only.
        grammar_compiler: for structured outputs; by default one of the engine's own.
        block_store: where the prefix cache is kept beyond the engine's life, if it is.
        proposer: of tokens for speculative decoding; None is none. Models that carry a state do without a `SelfDrafter`.
        pace: of generated tokens, by default that of `config`.
    """

    def __init__(
        self,
        executor: Executor,
        model: ModelConfig,
        kv: KVSpec,
        config: EngineConfig,
        tokenizer: Tokenizer | None = None,
        grammar_compiler: GrammarCompiler | None = None,
        block_store: BlockStore | None = None,
        proposer: Proposer | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.executor, self.model, self.config, self.tokenizer = executor, model, config, tokenizer
        sinks = choose_sink_window(config.attention_sinks, config.attention_window, model, kv)
        states = StateManager(
            kv,
            executor.num_blocks,
            executor.num_swap_blocks,
            executor.provide_swap,
            max_num_new_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            sinks=sinks,
            checkpoint_interval=config.checkpoint_interval,
        )
        self.stored = None if block_store is None else StoredPrefixes(states, executor, block_store)
        if self.stored is not None:
            self.stored.warm()
        self.scheduler = Scheduler(
            states,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_mixed_prefill_tokens=config.max_num_mixed_prefill_tokens,
            draws_tokens=executor.draws_tokens,
            stored=self.stored,
        )
        limit = MAX_POSITIONS if sinks else model.context_length
        max_length = min(limit, states.max_length or limit)
        self.validator = Validator(model, max_length, config.max_logprobs, tokenizer)
        self._compiler = grammar_compiler or (None if tokenizer is None else _make_compiler(tokenizer, model))
        self._grammars = GrammarMasks(self._compiler)
        self.speculation: Speculation | None = None
        if proposer is not None and not (kv.recurrent is not None and isinstance(proposer, SelfDrafter)):
            if isinstance(proposer, SelfDrafter):
                proposer.attach(executor, states)
            self.speculation = Speculation(proposer, model.vocab_size, keeps_few=executor.rounds_many, goes_back=kv.recurrent is not None)
        self.notes: tuple[str, ...] = () if proposer is None or self.speculation else (NO_EARLY_EXIT,)  # for users
        self._num_requests = 0
        self._seed = int.from_bytes(os.urandom(4), "little") >> 1 if config.seed is None else config.seed
        self._max_steps = 1  # of the model in the next step
        self._pace = Pace(config.max_tokens_per_second) if pace is None else pace

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        add_special_tokens: bool = True,
        wants_prompt_logits: bool = False,
        compiled_grammar: bytes | None = None,
    ) -> Request:
        """Checks a request and queues it; nothing is changed if it is refused.

        Args:
            prompt: text or token ids.
            priority: lower goes first.
            cache_salt: at most 64 bytes; only requests of the same salt share cached K/V.
            add_special_tokens: whether a text gets the tokenizer's special tokens, such as a leading BOS.
            wants_prompt_logits: collect the logits of every prompt token in `Request.prompt_logits`.
            compiled_grammar: what a `GrammarCompiler` made of structured outputs, which the parameters then need not repeat; without
                it the engine compiles theirs now, which takes up to some seconds.

        Raises:
            RequestError: naming the field and the fix.
        """
        if request_id in self.scheduler.requests:
            raise RequestError(f"is {request_id!r}, which is running already", field="request_id", fix="give another one")
        self.validator.check_params(params)
        if self.config.memory_budget is not None and (wants_prompt_logits or params.prompt_logprobs is not None):
            problem = "takes memory for every token of the prompt, which memory_budget does not count"
            raise RequestError(problem, field="prompt_logprobs", fix="leave it out, or load the model without a memory budget")
        num_kept = self.validator.num_kept(params)
        token_ids = self.validator.encode(prompt, add_special_tokens=add_special_tokens, num_kept=num_kept)
        if len(cache_salt) > MAX_SALT_BYTES:
            raise RequestError(f"has {len(cache_salt)} bytes", field="cache_salt", fix=f"give at most {MAX_SALT_BYTES}")
        grammar = self._compile(params, compiled_grammar)
        all_stops = frozenset(self.model.stop_token_ids)
        model_stops = all_stops if not params.ignore_eos else frozenset()
        # A prompt as long as the context still has one token after it, whose own K/V is never needed.
        max_length = max(len(token_ids) + 1, min(len(token_ids) + (params.max_tokens or math.inf), self.validator.max_length))
        spec = RequestSpec(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=token_ids,
            params=params,
            stop_token_ids=model_stops | frozenset(params.stop_token_ids or ()),
            model_stop_token_ids=model_stops,
            max_length=int(max_length),
            seed=(self._seed, self._num_requests) if params.seed is None or params.seed == RANDOM_SEED else (params.seed % 2**64,),
            arrival=self._num_requests,
            priority=priority,
            cache_salt=cache_salt,
            wants_prompt_logits=wants_prompt_logits,
            grammar=grammar,
            ignored_token_ids=all_stops - model_stops if grammar else frozenset(),
            bad_words=self.validator.bad_words(params),
        )
        request = Request(spec, self.tokenizer)
        self._num_requests += 1
        self.scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """Runs one batch, and goes on where the model can do so by itself. Returns the requests that have something new: `Request.output`
        gives all of it, their sequences what is new. Where there is nothing to do, nothing is new.

        Raises:
            EngineError: if the model failed. No request and no block is lost: what ran is queued again, and the
                caller chooses between another step and `abort`.
        """
        if not self.has_unfinished_requests():
            return []
        self._pace.begin(waits=self.scheduler.only_decodes)
        try:
            max_steps, drafts = min(self._max_steps, self.executor.max_steps), dict[Sequence, TokenTree]()
            if self.speculation is not None and self.scheduler.only_decodes:
                drafts = self.speculation.draft(self.scheduler.running, max_steps)
                max_steps = self.speculation.num_steps(max_steps)
            start = time.perf_counter()
            step = self.scheduler.schedule(max_steps, drafts)
            self._grammars.ask(step)  # they think while the model runs
            output, seconds = self._run(step)
            samples = sample(output, step, self._grammars.take(step))
            if self.speculation is not None:
                self.speculation.hear(step, output)
            num_generated = self.scheduler.num_generated_tokens
            changed = self.scheduler.update(step, samples)
            self._pace.count(self.scheduler.num_generated_tokens - num_generated)
            if self.speculation is not None:
                self.speculation.observe(step, seconds, time.perf_counter() - start - seconds * step.num_steps)
            for request in changed:
                if request.finished:
                    self._forget(request)
            if self.stored is not None:
                self.stored.save(is_idle=not self.has_unfinished_requests())
            return changed
        except BaseException as error:
            self.scheduler.recover()
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineError(f"a step failed: {type(error).__name__}: {error}") from error

    def abort(self, request_id: str) -> bool:
        """Forgets a request and frees its blocks; False if there is none of that name (any more)."""
        request = self.scheduler.abort(request_id)
        if request is not None:
            self._forget(request)
        return request is not None

    def close(self) -> None:
        """Ends the processes that grammars run in, and writes what is to be kept. The engine may go on and start new ones."""
        self._grammars.close()
        if self.stored is not None:
            self.stored.store.flush()

    def _forget(self, request: Request) -> None:
        self._grammars.forget(request)
        if self.speculation is not None:
            self.speculation.forget(request)

    def _run(self, step: Step) -> tuple[StepOutput, float]:
        """Runs the model, and finds out how many steps of it may come next. Returns the seconds of one, too."""
        start = time.perf_counter()
        output = self.executor.submit(step.batch, step.sampling).result()
        seconds = (time.perf_counter() - start) / step.num_steps
        fitting = int(PATIENCE / max(seconds, len(step.chunks) * self._pace.seconds_per_token, 1e-6))
        self._max_steps = max(1, min(fitting, self.config.num_scheduler_steps))
        return output, seconds

    def _compile(self, params: SamplingParams, compiled_grammar: bytes | None) -> bytes | None:
        wanted = params.structured_outputs
        if wanted is None and compiled_grammar is None:
            return None
        if self._compiler is None:
            raise RequestError("needs text, and this artifact has no tokenizer", field="structured_outputs", fix="leave it out")
        check_installed()
        return compiled_grammar if wanted is None or compiled_grammar is not None else self._compiler.compile(wanted)

    def delay(self) -> float:
        """Seconds that `step` would sleep first, by the pace; 0 where someone waits for a first token."""
        return self._pace.delay() if self.scheduler.only_decodes else 0.0

    def has_unfinished_requests(self) -> bool:
        """True if `step` has something to do."""
        return bool(self.scheduler.requests)

    def stats(self) -> EngineStats:
        """The engine's current load, and counts since it began."""
        scheduler, drafts = self.scheduler, self.scheduler.draft_counts
        stored = self.stored.store.counts if self.stored else StoreCounts()
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_usage=scheduler.states.usage,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_queries=scheduler.num_prefix_queries,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_swapped_out=scheduler.num_swapped_out,
            num_swapped_in=scheduler.num_swapped_in,
            num_steps=scheduler.num_steps,
            num_step_tokens=scheduler.num_step_tokens,
            num_loaded=stored.num_loaded,
            num_saved=stored.num_saved,
            num_drafts=drafts.num_drafts,
            num_draft_tokens=drafts.num_tokens,
            num_accepted_tokens=drafts.num_accepted,
            accepted_by_place=tuple(drafts.accepted_by_place),
        )

    def check_idle(self) -> None:
        """Checks that every block is free again. Raises EngineError; for tests and health checks when nothing runs."""
        self.scheduler.check_integrity()
        self.scheduler.states.check_idle()


def _make_compiler(tokenizer: Tokenizer, model: ModelConfig) -> GrammarCompiler:
    return GrammarCompiler(tokenizer.file, model.vocab_size, model.stop_token_ids, max_kept=MAX_KEPT_GRAMMARS)


def stack_logits(request: Request) -> Float32:
    """The logits of all prompt tokens, f32 [n, vocab], of a finished request that wanted them."""
    return np.concatenate(request.prompt_logits)
