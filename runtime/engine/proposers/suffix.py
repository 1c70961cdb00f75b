"""The most frequent continuation of the longest end of a text that stood in it, or in earlier answers, before (arXiv:2411.04975)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft
from cupola.runtime.engine.proposers.suffix_automaton import ROOT, SuffixAutomaton

LEAST_CHANCE = 0.1  # of a draft as a whole, by how often what it holds was said; the rest of it is left out
MAX_TOKENS = 20_000  # of earlier answers in one automaton; the one before it is kept, too. A token takes about 400 bytes
MAX_SALTS = 8  # that answers are kept for
MAX_MATCHED = 64  # tokens at a sequence's end that are looked up in earlier answers
END = -1  # stands between answers


class SuffixProposer:
    """Keeps an automaton of each sequence, and two of earlier answers for each salt."""

    is_free = True
    doubts = False

    def __init__(self) -> None:
        self._own: dict[str, SuffixAutomaton] = {}
        self._answers: OrderedDict[bytes, _Answers] = OrderedDict()

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """As `Proposer`."""
        return [self._propose(context) for context in contexts]

    def forget(self, context: Context) -> None:
        """As `Proposer`: what a sequence said may be said again."""
        if self._own.pop(context.name, None) is None:
            return
        answers = self._answers.setdefault(context.salt, _Answers())
        answers.add(context)
        self._answers.move_to_end(context.salt)
        if len(self._answers) > MAX_SALTS:
            self._answers.popitem(last=False)

    def _propose(self, context: Context) -> Draft:
        own = self._own.setdefault(context.name, SuffixAutomaton())
        for token_id in context.token_ids[own.lengths[own.last] :]:
            own.add(token_id)
        found, state = own, own.links[own.last]
        length = own.lengths[max(state, ROOT)]
        if context.salt in self._answers:
            for automaton, matched, its_length in self._answers[context.salt].match(context):
                if its_length > length:
                    found, state, length = automaton, matched, its_length
        if not length:
            return NO_DRAFT
        return Draft(tuple(found.follow(state, context.most, LEAST_CHANCE)), length.bit_length())


class _Answers:
    """Answers of one salt, and where sequences stand in them."""

    def __init__(self) -> None:
        self._automata = [SuffixAutomaton()]
        self._places: dict[str, list[tuple[int, int, int]]] = {}  # in each automaton: state, length, tokens that were looked up

    def add(self, context: Context) -> None:
        """Takes in a whole answer."""
        self._places.pop(context.name, None)
        automaton = self._automata[-1]
        for token_id in context.token_ids[context.num_prompt_tokens :]:
            automaton.add(token_id)
        automaton.add(END)
        if automaton.lengths[automaton.last] >= MAX_TOKENS:
            self._automata = [automaton, SuffixAutomaton()]
            self._places = {}

    def match(self, context: Context) -> list[tuple[SuffixAutomaton, int, int]]:
        """The longest end of a sequence that stands in each automaton: its state and its length."""
        num_tokens = len(context.token_ids)
        places = self._places.get(context.name) or [(ROOT, 0, max(0, num_tokens - MAX_MATCHED))] * len(self._automata)
        for i, automaton in enumerate(self._automata):
            state, length, num_known = places[i]
            for token_id in context.token_ids[num_known:]:
                state, length = automaton.match(state, length, token_id)
            places[i] = (state, length, num_tokens)
        self._places[context.name] = places
        return [(automaton, state, length) for automaton, (state, length, _) in zip(self._automata, places, strict=True)]
