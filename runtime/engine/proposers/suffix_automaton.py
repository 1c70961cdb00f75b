"""A suffix automaton: all that stands anywhere in a text, in time and space that grow with its length (Blumer et al., 1985)."""

from __future__ import annotations

from collections.abc import Sequence

ROOT = 0
MAX_COUNTED = 64  # suffixes of a text whose occurrences are counted with each token, the longest first


class SuffixAutomaton:
    """A text of tokens that grows, and how often what stands in it does.

    A state stands for parts of the text that end at the same places: the longest has `lengths[state]` tokens. `links[state]` is the state
    of the longest of its suffixes that occurs elsewhere too.
    """

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]  # of each state, the state after a further token
        self.links, self.lengths, self.counts = [-1], [0], [0]
        self.last = ROOT  # the state of the whole text

    def add(self, token_id: int) -> None:
        """Makes the text a token longer."""
        new = self._make({}, ROOT, self.lengths[self.last] + 1, 0)
        state = self.last
        while state != -1 and token_id not in self.next[state]:
            self.next[state][token_id] = new
            state = self.links[state]
        if state != -1:
            self.links[new] = self._split(state, token_id)
        self.last = state = new
        for _ in range(MAX_COUNTED):
            if state == ROOT:
                break
            self.counts[state] += 1
            state = self.links[state]

    def match(self, state: int, length: int, token_id: int) -> tuple[int, int]:
        """The longest suffix of `length` matched tokens and a further one that occurs in the text: its state and its length."""
        while length <= self.lengths[self.links[state]] and state != ROOT:  # a state may have been split since
            state = self.links[state]
        while state != ROOT and token_id not in self.next[state]:
            state = self.links[state]
            length = self.lengths[state]
        return (self.next[state][token_id], length + 1) if token_id in self.next[state] else (ROOT, 0)

    def follow(self, state: int, most: int, least_chance: float) -> list[int]:
        """The tokens that most often come after a state's part of the text, one by one, as long as they are likely to come together."""
        found: list[int] = []
        chance = 1.0
        while len(found) < most:
            while not self.next[state] and state != ROOT:  # the text's end: what came before it where it stood earlier
                state = self.links[state]
            if state == ROOT:
                break
            following = self.next[state]
            token_id = max(following, key=lambda token_id: self.counts[following[token_id]])
            total = sum(self.counts[after] for after in following.values())
            state = following[token_id]
            chance *= self.counts[state] / total if total else 1 / len(following)
            if chance < least_chance or token_id < 0:
                break
            found.append(token_id)
        return found

    def _make(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self.next.append(following)
        self.links.append(link)
        self.lengths.append(length)
        self.counts.append(count)
        return len(self.next) - 1

    def _split(self, state: int, token_id: int) -> int:
        """The state of exactly what `state` stands for and the token after it."""
        old = self.next[state][token_id]
        if self.lengths[old] == self.lengths[state] + 1:
            return old
        new = self._make(dict(self.next[old]), self.links[old], self.lengths[state] + 1, self.counts[old])
        while state != -1 and self.next[state].get(token_id) == old:
            self.next[state][token_id] = new
            state = self.links[state]
        self.links[old] = new
        return new


def automaton_of(token_ids: Sequence[int]) -> SuffixAutomaton:
    """The automaton of a text."""
    automaton = SuffixAutomaton()
    for token_id in token_ids:
        automaton.add(token_id)
    return automaton
