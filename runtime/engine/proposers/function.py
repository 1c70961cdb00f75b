"""A user's own function as a proposer."""

from __future__ import annotations

from collections.abc import Sequence

from cupola.runtime.engine.proposers.proposer import Context, Draft
from cupola.runtime.engine.speculative import Propose


class FunctionProposer:
    """Asks `function` for each sequence. How long that takes is measured, and counts."""

    is_free = False
    doubts = False

    def __init__(self, function: Propose) -> None:
        self._function = function

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """As `Proposer`."""
        return [Draft(tuple(self._function(list(context.token_ids), context.most))[: context.most]) for context in contexts]

    def forget(self, context: Context) -> None:
        """As `Proposer`; the function keeps nothing that we know of."""
