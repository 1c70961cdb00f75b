"""How one request went, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class RequestRecord:
    """How a request went. Times in seconds, all on one clock.

    A chunk is a token's if it has text, or if it neither opens the answer with a role alone nor closes it with a reason alone;
    such chunks say nothing of when a token was made.
    """

    start_s: float
    end_s: float
    chunk_times_s: Sequence[float] = ()
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int | None = None
    is_counted: bool = True
    text: str = ""
    error: str | None = None
    http_status: int | None = None

    @property
    def ttft_s(self) -> float:
        """Time to first token: from sending to the first chunk."""
        return self.chunk_times_s[0] - self.start_s if self.chunk_times_s else 0.0

    @property
    def e2el_s(self) -> float:
        """End-to-end latency: from sending to the last chunk."""
        return self.end_s - self.start_s

    @property
    def itls_s(self) -> list[float]:
        """Inter-token latencies: the gaps between chunks."""
        return [later - earlier for earlier, later in pairwise(self.chunk_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        return (self.e2el_s - self.ttft_s) / (self.num_output_tokens - 1) if self.num_output_tokens > 1 else None
