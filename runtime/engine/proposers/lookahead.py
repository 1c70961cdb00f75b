"""Lookahead decoding: what the model says after its own guesses becomes the next guess, and is remembered (arXiv:2402.02057).

Each step computes a window of guessed tokens, right or wrong. What is likeliest after each of them is the guess for the place behind it,
Jacobi's iteration; and any two tokens with what came after them, in the text or in a window, are kept, so that guesses may follow them
where they come again. The paper looks at several iterations and several n-grams side by side; here they are one chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from cupola.runtime.engine.proposers.proposer import Context, Draft

WINDOW = 4  # tokens that are guessed in each step


class LookaheadProposer:
    """Keeps what followed what of each sequence, and its window. An `Explorer`."""

    is_free = True
    doubts = False

    def __init__(self) -> None:
        self._trajectories: dict[str, _Trajectory] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """As `Proposer`."""
        return [Draft(self._trajectories.setdefault(context.name, _Trajectory()).guess(context)) for context in contexts]

    def hear(self, name: str, token_ids: Sequence[int], draft: Sequence[int], likeliest: Sequence[int]) -> None:
        """As `Explorer`."""
        self._trajectories[name].hear(token_ids, draft, likeliest)

    def forget(self, context: Context) -> None:
        """As `Proposer`."""
        self._trajectories.pop(context.name, None)


class _Trajectory:
    """Of one sequence."""

    def __init__(self) -> None:
        self._following: dict[tuple[int, int], int] = {}  # what came last after two tokens
        self._window: dict[int, int] = {}  # guesses, by their place in the text
        self._num_known = 2  # tokens up to which what follows what is known

    def guess(self, context: Context) -> tuple[int, ...]:
        """Tokens that followed the last two, and so on; else those that the window has there; else any of the text."""
        text = context.token_ids
        for place in range(self._num_known, len(text)):
            self._following[text[place - 2], text[place - 1]] = text[place]
        self._num_known = max(2, len(text))
        chain = list(text[-2:])
        for place in range(len(text), len(text) + min(WINDOW, context.most)):
            found = self._following.get((chain[-2], chain[-1])) if len(chain) > 1 else None
            chain.append(self._window.get(place, text[place % len(text)]) if found is None else found)
        return tuple(chain[len(text[-2:]) :])

    def hear(self, text: Sequence[int], draft: Sequence[int], likeliest: Sequence[int]) -> None:
        """Takes in what is likeliest after the text, and after each guess."""
        chain = [*text[-2:], *draft]
        for i, token_id in enumerate(likeliest[1:], len(chain) - len(draft) + 1):
            self._following[chain[i - 2], chain[i - 1]] = token_id
        self._window = {len(text) + i: token_id for i, token_id in enumerate(likeliest)}
