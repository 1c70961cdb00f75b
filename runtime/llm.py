"""`LLM`: an artifact ready to generate, in vLLM's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device.interface import Float32
from cupola.runtime.engine.beam_search import BeamSearch, BeamSearchOutput, BeamSearchParams
from cupola.runtime.engine.engine import EngineConfig, stack_logits
from cupola.runtime.engine.generation_defaults import add_model_stops, default_sampling_params
from cupola.runtime.engine.outputs import EngineStats, RequestOutput
from cupola.runtime.engine.prompts import Prompts, list_priorities, list_prompts
from cupola.runtime.engine.request import Request
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.speculative import Speculative, check_speculative
from cupola.runtime.engine.state_manager import CHECKPOINT_INTERVAL
from cupola.runtime.engine.validator import Prompt
from cupola.runtime.errors import EngineError, RequestError
from cupola.runtime.load_engine import load_engine
from cupola.runtime.progress_bar import Advance, UseTqdm, progress_bar
from cupola.runtime.structured.schema_checker import SchemaChecker
from cupola.runtime.system.memory import memory_in_use
from cupola.runtime.text.chat_template import Message
from cupola.runtime.text.tokenizer import Tokenizer, load_chat_template, load_tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A model ready to generate. For one thread; generators of `stream` may be interleaved.

    Args:
        artifact: an artifact or its folder.
        max_num_seqs: sequences in one step; no more than the artifact was compiled for are used.
        max_num_batched_tokens: tokens in one step; a longer prompt is computed in chunks.
        max_num_mixed_prefill_tokens: prompt tokens in a step in which other sequences decode: more hold those up longer, fewer the prompt.
        kv_memory: memory for K/V pages, such as "1GB", "512MiB" or a number of bytes; by default 1GB, or on a device with memory of its own
            what `gpu_memory_utilization` leaves.
        memory_budget: physical memory that this process may come to have, such as "700MB", weights and all: the
            sequences and tokens of a step, the context and K/V become as large as fits, which `notes` say. Prompts' log-probabilities and
            `logits` are refused, and so is speculative decoding, since they take more; a grammar's and a tokenizer's own processes count
            apart. By default there is no such limit.
        gpu_memory_utilization: of a device with memory of its own, the share that weights, K/V and a step's workspace may take together;
            by default 0.9, or what is free if that is less.
        swap_memory: memory beside it for the K/V of sequences that are preempted when `kv_memory` runs out, in such terms too.
            What does not fit is computed again later, as all of it is by default.
        swap_folder: where a file without a name stands in for that memory.
        cache_folder: where the prefix cache is kept on disk, so that the next engine with the same artifact finds it; None is nowhere.
        cache_size: the most that all files there may take, in such terms too.
        enable_prefix_caching: whether prompts share the K/V of equal beginnings.
        seed: for requests whose SamplingParams have none; without it they differ from one LLM to the next.
        max_logprobs: the most log-probabilities a token that a request may ask for; -1 is the whole vocabulary.
        num_scheduler_steps: tokens that may come at once where temperature, top-k, top-p and min-p say all of how they come: the model then
            goes on by itself, for as many steps as 16 ms are enough for. 1 is a token at a time.
        attention_sinks: of a sequence's first tokens, keep so many, in whole blocks, and of its latest `attention_window`: it may then go
            on past the context, in the same memory and time a token, and forgets what lies between. For models that see distances between
            tokens and no positions, and have no windows of their own.
        attention_window: see `attention_sinks`; the two go together.
        checkpoint_interval: of models that carry a state from token to token, a copy of it stays in the prefix cache every so many tokens
            of a prompt, at its end and at the answer's: from the nearest one before what is new, a prompt of an equal beginning goes on.
        speculative: how tokens are guessed, of which the model then looks at several in one step. "ngram": what followed the latest
            tokens where they stood before; "suffix": what most often did so, in earlier answers too; "auto": both; "lookahead": what the
            model said after its own guesses; "draft:FOLDER": what a small model says, an artifact of the same vocabulary;
            "early-exit:K": what the model's own first K layers say. Or a function,
            from a sequence's token ids and a number to at most so many token ids that may come next. Answers stay the same; guesses are
            left out where they would not pay, but for those of "lookahead".
        max_tokens_per_second: a pace for generated tokens, of all sequences together, that keeps a machine cool: between steps the engine
            sleeps. Prompts, and so first tokens, don't wait. By default there is none.
        num_threads: threads of kernels on CPUs; by default as CUPOLA_NUM_THREADS says, else as many as there are cores that this process
            may keep busy, of cores that differ the fast ones. Threads take the fastest first.
        power_saver: whether threads that wait for each other sleep, instead of watching for what comes next: slower, and easier on
            batteries. For CPUs.
        device: what to run on, of what the artifact was compiled for; by default the first that this machine has.

    Raises:
        ArtifactError: if the artifact is damaged or for another machine.
        OptionError: if an argument is out of range.
    """

    def __init__(
        self,
        artifact: str | Path | Artifact,
        *,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        max_num_mixed_prefill_tokens: int = 192,
        kv_memory: int | str | None = None,
        memory_budget: int | str | None = None,
        gpu_memory_utilization: float | None = None,
        swap_memory: int | str = 0,
        swap_folder: str | Path | None = None,
        cache_folder: str | Path | None = None,
        cache_size: int | str = "10GB",
        enable_prefix_caching: bool = True,
        seed: int | None = None,
        max_logprobs: int = 20,
        num_scheduler_steps: int = 8,
        attention_sinks: int | None = None,
        attention_window: int | None = None,
        checkpoint_interval: int = CHECKPOINT_INTERVAL,
        speculative: Speculative = None,
        max_tokens_per_second: float | None = None,
        num_threads: int | None = None,
        power_saver: bool = False,
        device: str | None = None,
    ) -> None:
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        config = EngineConfig(
            max_num_seqs, max_num_batched_tokens, enable_prefix_caching, seed, max_logprobs, max_num_mixed_prefill_tokens,
            num_scheduler_steps, attention_sinks, attention_window, checkpoint_interval, max_tokens_per_second=max_tokens_per_second,
            num_threads=num_threads, power_saver=power_saver,
        )  # fmt: skip
        check_speculative(speculative)
        self.tokenizer = load_tokenizer(self.artifact)
        self._chat_template = load_chat_template(self.artifact, self.tokenizer)
        self.engine = load_engine(
            self.artifact, config, self.tokenizer, kv_memory=kv_memory, memory_budget=memory_budget,
            gpu_memory_utilization=gpu_memory_utilization, swap_memory=swap_memory, swap_folder=swap_folder,
            cache_folder=cache_folder, cache_size=cache_size, device=device, speculative=speculative,
        )  # fmt: skip
        self._defaults = default_sampling_params(self.artifact)
        self._num_requests, self._schemas = 0, SchemaChecker()

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params = None,
        *,
        add_special_tokens: bool = True,
        priority: int | Sequence[int] | None = None,
        use_tqdm: UseTqdm = False,
    ) -> list[RequestOutput]:
        """Completes prompts, batched, and returns their outputs in order.

        Args:
            prompts: a text, a list of token ids, {"prompt": …}, {"prompt_token_ids": …}, or a list of those.
            sampling_params: for all prompts, or one for each; None is `default_sampling_params`.
            add_special_tokens: whether texts get the tokenizer's special tokens, such as a leading BOS.
            priority: for all prompts, or one for each; lower goes first.
            use_tqdm: whether to show a bar of tqdm, which must be installed then; or what makes one.

        Raises:
            RequestError: naming the field and the fix; nothing is generated then.
        """
        batch = list_prompts(prompts)
        all_params, priorities = self._list_params(sampling_params, len(batch)), list_priorities(priority, len(batch))
        schemas = [self._schema_of(params) for params in all_params]
        requests: list[Request] = []
        try:
            for prompt, params, its_priority in zip(batch, all_params, priorities, strict=True):
                requests.append(self._submit(prompt, params, add_special_tokens=add_special_tokens, priority=its_priority))
            with progress_bar(use_tqdm, len(requests)) as advance:
                self._finish(requests, advance)
            outputs = [request.output() for request in requests]
            return [self._checked(output, schema) for output, schema in zip(outputs, schemas, strict=True)]
        finally:
            self._forget(requests)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Message] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        use_tqdm: UseTqdm = False,
    ) -> list[RequestOutput]:
        """Answers one conversation, or a list of them: messages with a "role" and a "content". Raises as `generate`.

        Args:
            messages: contents may be lists of parts; parts that are not text are refused.
            sampling_params, use_tqdm: as `generate`'s.
            add_generation_prompt, continue_final_message, tools, chat_template_kwargs: as `render_chat`'s. What the model says is text,
                calls of tools too.
        """
        chats = messages if messages and isinstance(messages[0], list | tuple) else [messages]
        prompts = [
            self.render_chat(
                chat,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
            )
            for chat in chats
        ]
        return self.generate(prompts, sampling_params, add_special_tokens=False, use_tqdm=use_tqdm)

    def beam_search(self, prompts: Prompts, params: BeamSearchParams) -> list[BeamSearchOutput]:
        """The most likely continuations of each prompt, found by beam search. They are deterministic: temperature has no part in it.

        Raises:
            RequestError: naming the field and the fix; so if `max_logprobs` is less than twice the beams.
        """
        if not isinstance(params, BeamSearchParams):
            raise RequestError(f"is {params!r:.60}", field="params", fix="give BeamSearchParams")
        validator = self.engine.validator
        token_ids = [validator.encode(prompt) for prompt in list_prompts(prompts)]
        search = BeamSearch(self.generate, params, self.artifact.manifest.model.stop_token_ids, validator.max_length)
        found = search.run(token_ids)
        if self.tokenizer is not None:
            decode = self.tokenizer.decode
            found = [[replace(sequence, text=decode(sequence.tokens)) for sequence in sequences] for sequences in found]
        return [BeamSearchOutput(sequences) for sequences in found]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for users about how it was set up: what sequences forget, what was asked for and can't be had."""
        sinks = self.engine.scheduler.states.sinks
        return (*((sinks.note,) if sinks else ()), *self.engine.notes)

    def memory_use(self) -> str | None:
        """The most physical memory that this process ever had, beside its budget, in words; None without a budget."""
        budget, used = self.engine.config.memory_budget, memory_in_use()
        return None if budget is None or used is None else f"{used[1] / 1e6:.0f} MB of memory at most, of {budget / 1e6:.0f} MB"

    def stats(self) -> EngineStats:
        """Counts since it was made, such as steps of the model and drafted tokens."""
        return self.engine.stats()

    def get_tokenizer(self) -> Tokenizer:
        """The artifact's tokenizer. Raises RequestError if it has none."""
        return self._need_tokenizer()

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, add_special_tokens: bool = True) -> Iterator[str]:
        """Completes one prompt, yielding its text as it becomes sure. Closing the iterator aborts the request.

        Raises:
            RequestError: naming the field and the fix; at its end, if it breaks a schema that it could not be held to in full.
        """
        params = self._list_params(sampling_params, 1)[0]
        if self.tokenizer is None:
            raise RequestError("makes text, and this artifact has no tokenizer", field="stream", fix="use LLM.generate with token ids")
        if not params.detokenize:
            raise RequestError("needs text", field="detokenize", fix="set it to true, or use LLM.generate")
        if params.n != 1:
            raise RequestError(f"is {params.n}", field="n", fix="stream one completion, or use generate")
        return self._stream(prompt, params, add_special_tokens)

    def stream_chat(self, messages: Sequence[Message], sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """Answers one conversation as `stream` does."""
        return self.stream(self.render_chat(messages), sampling_params, add_special_tokens=False)

    def logits(self, token_ids: Sequence[int]) -> Float32:
        """The model's raw logits after each token, float32 [n, vocab], computed afresh (not from the prefix cache).

        Raises:
            RequestError: if there are no tokens, or more than fit.
        """
        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        request = self._submit(list(token_ids), params, add_special_tokens=False, wants_prompt_logits=True)
        try:
            self._finish([request])
            return stack_logits(request)
        finally:
            self._forget([request])

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Message] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt text that the model's chat template makes of `messages`.

        Args:
            messages: as OpenAI's chat completions have them.
            add_generation_prompt: whether the prompt ends with the beginning of an assistant's message.
            continue_final_message: whether it ends within the last message instead, right after its text.
            tools: functions that the model may call, as OpenAI's chat completions have them.
                A template that shows none, or in words that are not known here, is told of them as the server tells it.
            chat_template_kwargs: further variables of the template, such as `enable_thinking`.

        Raises:
            RequestError: naming the field and the fix.
        """
        template = self._chat_template
        if template is None:
            raise RequestError("the artifact has no chat template", field="messages", fix="give a prompt instead")
        if not isinstance(chat_template_kwargs, Mapping | None):
            raise RequestError(f"is {chat_template_kwargs!r:.60}", field="chat_template_kwargs", fix="give a dictionary")
        name = template.choose(has_tools=bool(tools))
        from cupola.runtime.tool_calls.plan import plan_chat  # here, since who continues texts has no use for it

        plan = plan_chat(template.text(name), messages, tools=tools)
        return template.render(
            plan.messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=plan.tools,
            name=name,
            variables=chat_template_kwargs,
        )

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`. Raises RequestError."""
        return self._need_tokenizer().encode(text, max_tokens=self.engine.validator.max_length, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`. Raises RequestError if the artifact has no tokenizer."""
        return self._need_tokenizer().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def default_sampling_params(self) -> SamplingParams:
        """The model's `generation_config.json` as sampling parameters; fields that it lacks or gets wrong have their usual defaults."""
        return self._defaults

    def _stream(self, prompt: Prompt, params: SamplingParams, add_special_tokens: bool) -> Iterator[str]:
        schema = self._schema_of(params)
        request, num_sent = self._submit(prompt, params, add_special_tokens=add_special_tokens), 0
        sequence = request.sequences[0]
        try:
            while True:  # another stream may step between two pieces
                piece = sequence.text[num_sent:]
                num_sent += len(piece)
                if piece:
                    yield piece
                elif request.finished:
                    if sequence.error is not None:
                        raise RequestError(sequence.error, field=params.restriction, fix="change or simplify it")
                    if error := self._checked(request.output(), schema).outputs[0].schema_error:
                        raise RequestError(f"the output breaks its schema: {error}", field="structured_outputs.json", fix="try again")
                    return
                else:
                    self._step()
        finally:
            self._forget([request])

    def _submit(
        self, prompt: Prompt, params: SamplingParams, *, add_special_tokens: bool, priority: int = 0, wants_prompt_logits: bool = False
    ) -> Request:
        name = str(self._num_requests)
        request = self.engine.add_request(
            name,
            prompt,
            add_model_stops(params, self._defaults),
            priority=priority,
            add_special_tokens=add_special_tokens,
            wants_prompt_logits=wants_prompt_logits,
        )
        self._num_requests += 1
        return request

    def _finish(self, requests: Sequence[Request], advance: Advance | None = None) -> None:
        """Steps until the requests are finished; `advance` is told how many more of them are."""
        names = {request.spec.request_id for request in requests} if advance else set()
        for request in requests:
            while not request.finished:
                changed = self._step()
                if advance and (num_finished := sum(r.finished and r.spec.request_id in names for r in changed)):
                    advance(num_finished)

    def _schema_of(self, params: SamplingParams) -> str | None:
        """The schema that a whole output must be checked against."""
        return None if params.structured_outputs is None else self._schemas.prepare(params.structured_outputs)

    def _checked(self, output: RequestOutput, schema: str | None) -> RequestOutput:
        if schema is None:
            return output
        errors = [self._schemas.find_error(schema, one.text) if one.finish_reason == "stop" else None for one in output.outputs]
        return replace(output, outputs=[replace(one, schema_error=error) for one, error in zip(output.outputs, errors, strict=True)])

    def _step(self) -> list[Request]:
        if not self.engine.has_unfinished_requests():
            raise EngineError("a request was lost")
        return self.engine.step()

    def _forget(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.abort(request.spec.request_id)

    def _list_params(self, given: Params, num_prompts: int) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.default_sampling_params()] * num_prompts
        if not isinstance(given, list | tuple) or not all(isinstance(params, SamplingParams) for params in given):
            raise RequestError(f"is {given!r:.60}", field="sampling_params", fix="give SamplingParams, or a list of them")
        if len(given) != num_prompts:
            raise RequestError(
                f"has {len(given)} entries for {num_prompts} prompts", field="sampling_params", fix="give one, or one a prompt"
            )
        return list(given)

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("this artifact has no tokenizer", field="text", fix="use token ids")
        return self.tokenizer
