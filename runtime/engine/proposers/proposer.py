"""The interface of proposers. A guess may be wrong at no harm but the time that it takes: the model looks at every token."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol, runtime_checkable

from cupola.runtime.device.interface import Executor
from cupola.runtime.engine.request import Sequence
from cupola.runtime.engine.state_manager import StateManager


class Context(NamedTuple):
    """A sequence as a proposer sees it.

    Attributes:
        name: no other sequence of the engine has it.
        token_ids: prompt and output so far; from call to call tokens are added, and none is changed.
        num_prompt_tokens: of them the prompt's.
        salt: what is learned of one sequence may help others of the same salt, and no others.
        most: tokens that are wanted at most; at least 1.
        least: the chance, with all before it, from which on a token is worth the time that the one after it takes.
        chance: of a token to be right to which the proposer gives that chance, by what was learned of such.
        sequence: itself, for those who ask the model that runs it.
    """

    name: str
    token_ids: SequenceOf[int]
    num_prompt_tokens: int
    salt: bytes
    most: int
    sequence: Sequence | None = None
    least: float = 0.0
    chance: Callable[[float], float] = lambda given: given


class Draft(NamedTuple):
    """Tokens that may come next, one after the other.

    Attributes:
        token_ids: at most as many as were asked for; none is no guess.
        evidence: how much speaks for them, such as the tokens before them that were found elsewhere too. Guesses of like evidence are
            expected to be right alike often; its numbers have no other meaning.
        others: what may come instead.
        chances: of each token, if all before it are right, where the proposer has a view of its own.
    """

    token_ids: tuple[int, ...] = ()
    evidence: int = 0
    others: tuple[Draft, ...] = ()
    chances: tuple[float, ...] = ()


NO_DRAFT = Draft()


class Proposer(Protocol):
    """Guesses what sequences say next.

    Attributes:
        is_free: whether a guess takes next to no time, so that guesses are made just to learn how often they are right.
        doubts: whether it ends a draft where a context's `least` says that more isn't worth it.
    """

    is_free: bool
    doubts: bool

    def propose(self, contexts: SequenceOf[Context]) -> list[Draft]:
        """A draft for each sequence."""
        ...

    def forget(self, context: Context) -> None:
        """Takes note that a sequence has ended, whether or not it was ever asked about."""
        ...


@runtime_checkable
class Explorer(Proposer, Protocol):
    """Guesses also to hear what the model says after them: all of its guesses are used, however seldom they are right."""

    def hear(self, name: str, token_ids: SequenceOf[int], draft: SequenceOf[int], likeliest: SequenceOf[int]) -> None:
        """Takes in what is likeliest after a sequence's tokens, and after each further token of the draft that was used."""
        ...


@runtime_checkable
class SelfDrafter(Proposer, Protocol):
    """Guesses by the engine's own model, in the blocks of its sequences."""

    def attach(self, executor: Executor, states: StateManager) -> None:
        """Takes the model and the blocks, before anything is asked. Raises OptionError if it can't guess with these."""
        ...
