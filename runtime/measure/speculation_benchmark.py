"""Tokens a second with and without speculative decoding, by kinds of answers, one at a time or several together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import CHAT_TEMPLATE
from cupola.runtime.engine.outputs import RequestOutput
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.llm import LLM
from cupola.runtime.measure.answer_kinds import answer_kinds


@dataclass(frozen=True)
class SpeculationSpeed:
    """One kind of answers, once without and once with drafts. Seconds are those from an answer's first token to its last, of answers that
    are made together from the first of any to the last of all.

    Attributes:
        num_tokens: that came in these seconds.
        num_same: answers that are the same, token by token, of `num_answers`.
        num_steps: of the model with drafts, those of each answer.
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
        """Tokens of an answer that came of a step of the model, with drafts."""
        return self.num_drafting_tokens / max(self.num_steps, 1)


def measure_speculation(
    artifact: str | Path | Artifact,
    speculative: str,
    num_tokens: int = 128,
    repeats: int = 3,
    temperature: float = 0.0,
    num_streams: int = 1,
    kinds: Sequence[str] = (),
) -> Iterator[SpeculationSpeed]:
    """Answers each prompt without and with drafts, in turns, and gives a line for each kind of answers.

    Args:
        speculative: as for `LLM`.
        num_tokens: of an answer, at most.
        repeats: how often all is measured; each time anew, since proposers remember answers.
        temperature: of all answers; they are drawn alike with and without drafts.
        num_streams: answers that are made together. Their prompts are computed before.
        kinds: which kinds of answers, by how their names begin; none are all.

    Raises:
        ArtifactError, OptionError: as `LLM`, or there is no such kind.
    """
    chosen = _chosen(kinds)
    plain = LLM(artifact, max_num_seqs=num_streams, enable_prefix_caching=num_streams > 1)
    params = SamplingParams(temperature=temperature, max_tokens=num_tokens, seed=1)
    for _ in range(repeats):
        drafting = LLM(artifact, max_num_seqs=num_streams, enable_prefix_caching=num_streams > 1, speculative=speculative)
        for kind, prompts in chosen.items():
            plain_runs, drafting_runs = [], []
            for i in range(0, len(prompts), num_streams):
                together = [prompts[(i + k) % len(prompts)] for k in range(num_streams)]
                plain_runs.append(_answers(plain, together, params))
                drafting_runs.append(_answers(drafting, together, params))
            yield _speed(kind, plain_runs, drafting_runs)


def _chosen(kinds: Sequence[str]) -> dict[str, list[str]]:
    known = answer_kinds()
    found = {kind: prompts for kind, prompts in known.items() if not kinds or kind.lower().startswith(tuple(k.lower() for k in kinds))}
    wrong = [given for given in kinds if not given or not any(kind.lower().startswith(given.lower()) for kind in known)]
    if wrong:
        raise OptionError(f"is {wrong[0]!r:.60}", field="answers", fix=f"give what one of these begins with: {', '.join(known)}")
    return found


def _answers(llm: LLM, prompts: Sequence[str], params: SamplingParams) -> list[RequestOutput]:
    if len(prompts) > 1:  # what is cached of them then is not computed beside others' answers
        for prompt in prompts:
            _generate(llm, [prompt], replace(params, max_tokens=1))
    return _generate(llm, prompts, params)


def _generate(llm: LLM, prompts: Sequence[str], params: SamplingParams) -> list[RequestOutput]:
    if llm.artifact.lists(CHAT_TEMPLATE):
        return llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
    return llm.generate(list(prompts), params)


def _speed(kind: str, plain_runs: Sequence[list[RequestOutput]], drafting_runs: Sequence[list[RequestOutput]]) -> SpeculationSpeed:
    plain, drafting = ([output for outputs in runs for output in outputs] for runs in (plain_runs, drafting_runs))
    num_tokens, num_accepted = _num_decoded(drafting), sum(output.metrics.num_accepted_tokens for output in drafting)
    return SpeculationSpeed(
        kind=kind,
        num_answers=len(plain),
        num_same=sum(one.outputs[0].token_ids == other.outputs[0].token_ids for one, other in zip(plain, drafting, strict=True)),
        num_tokens=_num_decoded(plain),
        plain_seconds=sum(map(_seconds, plain_runs)),
        num_drafting_tokens=num_tokens,
        drafting_seconds=sum(map(_seconds, drafting_runs)),
        num_steps=num_tokens - num_accepted,
        num_draft_tokens=sum(output.metrics.num_draft_tokens for output in drafting),
        num_accepted_tokens=num_accepted,
    )


def _num_decoded(outputs: Sequence[RequestOutput]) -> int:
    """Tokens after each answer's first."""
    return sum(len(output.outputs[0].token_ids) - 1 for output in outputs)


def _seconds(outputs: Sequence[RequestOutput]) -> float:
    """From the first token of answers that were made together to the last."""
    times = [(output.metrics.first_token_time, output.metrics.finished_time) for output in outputs]
    ended = [(first, end) for first, end in times if first is not None and end is not None]
    if len(ended) < len(times):
        raise EngineError("an answer has no end")
    return max(end for _, end in ended) - min(first for first, _ in ended)
