"""Tokens a second with and without speculative decoding, by kinds of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import CHAT_TEMPLATE
from cupola.runtime.engine.outputs import EngineStats, RequestOutput
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError
from cupola.runtime.llm import LLM
from cupola.runtime.measure.answer_kinds import answer_kinds


@dataclass(frozen=True)
class SpeculationSpeed:
    """One kind of answers, once without and once with drafts. Seconds are those from an answer's first token to its last.

    Attributes:
        num_tokens: that came in these seconds.
        num_same: answers that are the same, token by token, of `num_answers`.
    """

    kind: str
    num_answers: int
    num_same: int
    num_tokens: int
    plain_seconds: float
    num_drafting_tokens: int
    drafting_seconds: float
    num_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int

    @property
    def plain(self) -> float:
        """Tokens a second without drafts."""
        return self.num_tokens / max(self.plain_seconds, 1e-9)

    @property
    def drafting(self) -> float:
        """Tokens a second with drafts."""
        return self.num_drafting_tokens / max(self.drafting_seconds, 1e-9)

    @property
    def tokens_a_step(self) -> float:
        """Tokens that came of a step of the model, with drafts."""
        return self.num_drafting_tokens / max(self.num_steps, 1)


def measure_speculation(
    artifact: str | Path | Artifact, speculative: str, num_tokens: int = 128, repeats: int = 3, temperature: float = 0.0
) -> Iterator[SpeculationSpeed]:
    """Answers each prompt without and with drafts, one after the other, and gives a line for each kind of answers.

    Args:
        speculative: as for `LLM`.
        num_tokens: of an answer, at most.
        repeats: how often all is measured; each time anew, since proposers remember answers.
        temperature: of all answers; they are drawn alike with and without drafts.

    Raises:
        ArtifactError, OptionError: as `LLM`.
    """
    plain = LLM(artifact, max_num_seqs=1, enable_prefix_caching=False)
    params = SamplingParams(temperature=temperature, max_tokens=num_tokens, seed=1)
    for _ in range(repeats):
        drafting = LLM(artifact, max_num_seqs=1, enable_prefix_caching=False, speculative=speculative)
        for kind, prompts in answer_kinds().items():
            before = drafting.stats()
            pairs = [(_answer(plain, prompt, params), _answer(drafting, prompt, params)) for prompt in prompts]
            yield _speed(kind, pairs, before, drafting.stats())


def _answer(llm: LLM, prompt: str, params: SamplingParams) -> RequestOutput:
    if llm.artifact.lists(CHAT_TEMPLATE):
        return llm.chat([{"role": "user", "content": prompt}], params)[0]
    return llm.generate(prompt, params)[0]


def _speed(kind: str, pairs: list[tuple[RequestOutput, RequestOutput]], before: EngineStats, after: EngineStats) -> SpeculationSpeed:
    plain, drafting = ([_decoding(output) for output in outputs] for outputs in zip(*pairs, strict=True))
    return SpeculationSpeed(
        kind=kind,
        num_answers=len(pairs),
        num_same=sum(one.outputs[0].token_ids == other.outputs[0].token_ids for one, other in pairs),
        num_tokens=sum(count for count, _ in plain),
        plain_seconds=sum(seconds for _, seconds in plain),
        num_drafting_tokens=sum(count for count, _ in drafting),
        drafting_seconds=sum(seconds for _, seconds in drafting),
        num_steps=after.num_steps - before.num_steps - len(pairs),  # a prompt's one is not counted
        num_draft_tokens=after.num_draft_tokens - before.num_draft_tokens,
        num_accepted_tokens=after.num_accepted_tokens - before.num_accepted_tokens,
    )


def _decoding(output: RequestOutput) -> tuple[int, float]:
    """Tokens after the first, and the seconds that they took."""
    first, end = output.metrics.first_token_time, output.metrics.finished_time
    if first is None or end is None:
        raise EngineError("an answer has no end")
    return len(output.outputs[0].token_ids) - 1, end - first
