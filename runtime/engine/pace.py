"""A pace for generated tokens: the engine sleeps between steps, so that a machine stays cool and its battery lasts."""

from __future__ import annotations

import time
from collections.abc import Callable

LATE = 0.1  # seconds that may be caught up with after steps that took longer than theirs


class Pace:
    """Says when steps are due.

    Due times follow from tokens alone, so that a sleep that ends late does not add up: in the long run the pace is exact. What
    prompts' steps bring beside it is waited for afterwards.

    Args:
        tokens_per_second: of all sequences together; None is no pace.
        clock, sleep: in seconds.
    """

    def __init__(
        self,
        tokens_per_second: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds_per_token = 0.0 if tokens_per_second is None else 1 / tokens_per_second
        self._clock, self._sleep, self._due, self._waits = clock, sleep, 0.0, False

    def delay(self) -> float:
        """Seconds until the next step is due."""
        return max(0.0, self._due - self._clock()) if self.seconds_per_token else 0.0

    def begin(self, *, waits: bool) -> None:
        """Begins a step: with `waits` when it is due, else now, as one that someone waits for the first token of."""
        self._waits = waits
        if not (self.seconds_per_token and waits):
            return
        if delay := self.delay():
            self._sleep(delay)
        else:
            self._due = max(self._due, self._clock() - LATE)

    def count(self, num_tokens: int) -> None:
        """Takes in that the step brought so many tokens: those of a prompt now, however long it took."""
        if self.seconds_per_token and not self._waits:
            self._due = max(self._due, self._clock())
        self._due += num_tokens * self.seconds_per_token
