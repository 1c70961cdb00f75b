"""The outputs of a request, in vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprob:
    """A token's natural log-probability under the model's own distribution, and its rank there (1 is the most likely)."""

    logprob: float
    rank: int
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]  # the token itself first, then the most likely ones


@dataclass(frozen=True)
class CompletionOutput:
    """One completion so far. `text` holds back what may turn out to be part of a stop string or half a character.

    `finish_reason` is "stop", "length", "error" (its grammar allowed nothing more, or took too long: `error` says what) or,
    while running, None; `stop_reason` is the stop string or stop token id that ended it, None for the model's own end.
    `schema_error` says what of a JSON schema that is not strict a whole output breaks, where no grammar could hold it to that.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None
    stop_reason: int | str | None
    error: str | None = None
    schema_error: str | None = None


class DraftCounts:
    """Counts of speculative decoding: drafts that were brought into steps, their tokens, and those that were right, also by their place."""

    def __init__(self) -> None:
        self.num_drafts = self.num_tokens = self.num_accepted = 0
        self.accepted_by_place: list[int] = []

    def add(self, num_tokens: int, num_accepted: int) -> None:
        """Takes in one draft."""
        self.num_drafts += 1
        self.num_tokens += num_tokens
        self.num_accepted += num_accepted
        self.accepted_by_place += [0] * (num_accepted - len(self.accepted_by_place))
        for place in range(num_accepted):
            self.accepted_by_place[place] += 1


@dataclass(frozen=True)
class RequestMetrics:
    """Times in seconds of `time.monotonic()`; None is not yet. `num_cached_tokens` came from the prefix cache.

    Of the tokens that speculative decoding drafted `num_accepted_tokens` were right.
    """

    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    finished_time: float | None
    num_cached_tokens: int
    num_preemptions: int
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass(frozen=True)
class RequestOutput:
    """Everything known of a request so far; `prompt` is None if it came as token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache."""
        return self.metrics.num_cached_tokens


@dataclass(frozen=True)
class EngineStats:
    """An engine's state between two steps: sequences, the share of K/V blocks that are held (0 to 1), and counts since its start.

    `num_prefix_queries` counts prompt tokens that were looked for in the prefix cache, `num_prefix_hits` those that were found;
    `num_steps` counts steps of the model and `num_step_tokens` the tokens that they computed;
    `num_swapped_out` counts blocks that were put into the swap space, `num_swapped_in` those that came back;
    `num_loaded` counts blocks that were read from the prefix cache on disk, `num_saved` those that were written there;
    `num_drafts` counts drafts of speculative decoding in steps of the model, `num_draft_tokens` their tokens, `num_accepted_tokens` those
    that were right, and `accepted_by_place` these by their places in drafts, from the first on.
    """

    num_running: int
    num_waiting: int
    kv_usage: float
    num_preemptions: int
    num_prefix_queries: int
    num_prefix_hits: int
    num_swapped_out: int = 0
    num_swapped_in: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0
    num_loaded: int = 0
    num_saved: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_by_place: tuple[int, ...] = ()
