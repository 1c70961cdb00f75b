"""A small model that answers what it is sure of, and a large one that answers the rest (FrugalGPT, arXiv:2305.05176; Tabi, EuroSys 2023).

The small model begins every answer. Once it has said `num_tokens` tokens, or all that it has to say, it is decided: if their mean
log-probability is no less than the threshold, it goes on, and what it said so far is sent; else that is thrown away and the large model
answers from the beginning. So a stream begins a little later, and never takes back what it said.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import OptionError, RequestError
from cupola.runtime.server import messages as m
from cupola.runtime.server.engine_client import Health, RequestStream
from cupola.runtime.server.generation import Choices, Generation
from cupola.runtime.server.protocol import CompletionRequest, Sampling
from cupola.runtime.server.service import ServerConfig, Service

TOKEN_FIELDS = ("logit_bias", "stop_token_ids", "allowed_token_ids")  # of requests, that say something of one vocabulary
THRESHOLD, NUM_TOKENS = -0.3, 16


@dataclass(frozen=True)
class CascadeRule:
    """When the small model's answer stands.

    Args:
        threshold: the least mean log-probability of its first tokens, at most 0. That of any answer is above -inf.
        num_tokens: how many tokens that are.

    Raises:
        OptionError: naming the field and the fix.
    """

    threshold: float = THRESHOLD
    num_tokens: int = NUM_TOKENS

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold <= 0:
            fix = "give a mean log-probability, such as -0.3; 0 hands nearly everything on"
            raise OptionError(f"is {self.threshold!r:.60}", field="cascade_threshold", fix=fix)
        if isinstance(self.num_tokens, bool) or not isinstance(self.num_tokens, int) or self.num_tokens < 1:
            raise OptionError(f"is {self.num_tokens!r:.60}", field="cascade_tokens", fix="give a whole number of at least 1")


def confidence(logprobs: Sequence[float], num_tokens: int) -> float:
    """The mean log-probability of an answer's first tokens; 0 of none, and -inf where one is no number."""
    first = logprobs[:num_tokens]
    mean = sum(first) / len(first) if first else 0.0
    return -math.inf if math.isnan(mean) else mean


class Begun(Protocol):
    """An answer on its way."""

    @property
    def generation(self) -> Generation:
        """The generation that it is made of."""
        ...


A = TypeVar("A", bound=Begun)


class Cascade(Service):
    """A service whose `larger` answers what its own model is not sure of.

    Requests that name the larger model go there straight away.
    """

    def __init__(self, artifact: Artifact, start: m.Start, config: ServerConfig, larger: Service, rule: CascadeRule) -> None:
        super().__init__(artifact, start, config)
        self.larger, self.rule = larger, rule
        self.metrics.add(larger.metrics)
        vocabularies = [None if one.tokenizer is None else one.tokenizer.vocabulary() for one in (self, larger)]
        self._shares_tokens = vocabularies[0] is not None and vocabularies[0] == vocabularies[1]

    @property
    def services(self) -> tuple[Service, ...]:
        """As `Service`."""
        return (self, self.larger)

    @property
    def health(self) -> Health:
        """As `Service`: of the two the one that does not answer, if one does not."""
        own = super().health
        return self.larger.health if own is Health.READY else own

    async def open(self) -> None:
        """As `Service`."""
        await self.larger.open()
        await super().open()
        self._tasks.append(asyncio.create_task(self._follow_larger()))

    async def close(self) -> None:
        """As `Service`."""
        await super().close()
        await self.larger.close()

    def give_up(self) -> None:
        """As `Service`."""
        super().give_up()
        self.larger.give_up()

    def submit(
        self, prompts: Sequence[tuple[int, ...]], params: SamplingParams, priority: int, cache_salt: str | None, grammar: bytes | None
    ) -> RequestStream:
        """As `Service`; tokens come with their log-probabilities."""
        params = replace(params, logprobs=0) if params.logprobs is None else params
        return super().submit(prompts, params, priority, cache_salt, grammar)

    async def choose(self, body: Sampling, begin: Callable[[Service], Coroutine[object, object, A]]) -> A:
        """The answer that `begin` makes with the small model, or with the large one. Raises as `begin`."""
        if body.model in self.larger.config.served_model_names:
            return await begin(self.larger)
        if not self._shares_tokens:
            _refuse_token_ids(body)
        answer = await begin(self)
        try:
            sure = min(confidence(one, self.rule.num_tokens) for one in await answer.generation.first_logprobs(self.rule.num_tokens))
        except BaseException:
            answer.generation.close()
            raise
        is_sure = sure >= self.rule.threshold
        self.metrics.count_choice(escalated=not is_sure)
        if is_sure:
            answer.generation.choices_made = Choices(self.config.served_model_name, sure, 0)
            return answer
        num_rejected = answer.generation.discard()
        answer = await begin(self.larger)
        answer.generation.choices_made = Choices(self.larger.config.served_model_name, sure, num_rejected)
        return answer

    async def _follow_larger(self) -> None:
        await self.larger.stopped.wait()
        self.failure = self.larger.failure
        self.stopped.set()


async def begin_with(service: Service, body: Sampling, begin: Callable[[Service], Coroutine[object, object, A]]) -> A:
    """The answer that `begin` makes with the service's model, or with that of a cascade which is to answer."""
    return await (service.choose(body, begin) if isinstance(service, Cascade) else begin(service))


def _refuse_token_ids(body: Sampling) -> None:
    """Token ids are other tokens to the other model."""
    found = next((name for name in TOKEN_FIELDS if getattr(body, name)), None)
    if isinstance(body, CompletionRequest) and not all(isinstance(prompt, str) for prompt in body.prompts()):
        found = "prompt"
    if found is not None:
        problem = "holds token ids, and the two models of this server have different vocabularies"
        raise RequestError(problem, field=found, fix="give text, or name the larger model if they are its own")
