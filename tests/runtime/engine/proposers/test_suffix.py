"""The suffix automaton against searches through the text, and what is drafted from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cupola.runtime.engine.proposers.proposer import Context
from cupola.runtime.engine.proposers.suffix import END, MAX_SALTS, MAX_TOKENS, SuffixProposer
from cupola.runtime.engine.proposers.suffix_automaton import ROOT, SuffixAutomaton, automaton_of

Tokens = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def occurrences(text: list[int], part: list[int]) -> int:
    return sum(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))


def state_of(automaton: SuffixAutomaton, part: list[int]) -> int | None:
    state: int | None = ROOT
    for token in part:
        state = None if state is None else automaton.next[state].get(token)
    return state


@given(text=Tokens, part=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_parts_are_found_and_counted(text, part):
    state = state_of(automaton_of(text), part)
    assert (0 if state is None else automaton_of(text).counts[state]) == occurrences(text, part)


@given(text=Tokens)
def test_the_longest_end_that_was_there_before(text):
    automaton = automaton_of(text)
    length = automaton.lengths[max(ROOT, automaton.links[automaton.last])]
    assert length == max((n for n in range(len(text)) if occurrences(text, text[len(text) - n :]) > 1 or not n), default=0)


@given(text=Tokens, more=Tokens, other=Tokens)
def test_matching_while_the_text_grows(text, more, other):
    automaton, state, length = automaton_of(text), ROOT, 0
    for i, token in enumerate(other):
        if i == len(other) // 2:
            for added in more:
                automaton.add(added)
        state, length = automaton.match(state, length, token)
        whole, seen = text + (more if i >= len(other) // 2 else []), other[: i + 1]
        assert length <= max(n for n in range(len(seen) + 1) if not n or occurrences(whole, seen[len(seen) - n :]))
        if i < len(other) // 2:
            assert length == max(n for n in range(len(seen) + 1) if not n or occurrences(whole, seen[len(seen) - n :]))
        assert occurrences(whole, seen[len(seen) - length :]) or not length


def test_the_most_frequent_continuation_as_long_as_it_is_likely():
    automaton = automaton_of([1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 3, 8, 1, 2])
    state = automaton.links[automaton.last]
    assert automaton.lengths[state] == 2
    assert automaton.follow(state, 5, 0.6) == [3]  # two of three; what follows it half of the times
    assert automaton.follow(state, 1, 0.0) == [3]
    assert len(automaton.follow(state, 5, 0.0)) == 5


def draft(proposer: SuffixProposer, name: str, tokens: list[int], salt: bytes = b"", most: int = 4) -> tuple[int, ...]:
    return proposer.propose([Context(name, tokens, 1, salt, most)])[0].token_ids


def test_what_repeats_itself_goes_on():
    assert draft(SuffixProposer(), "a", [7, 1, 2, 3, 1, 2, 3], most=7) == (1, 2, 3, 1, 2, 3, 1)


def test_answers_help_later_ones_of_the_same_salt_alone():
    proposer, answer = SuffixProposer(), [0, 5, 6, 7, 8, 9]
    assert draft(proposer, "a", answer, b"x") == ()
    proposer.forget(Context("a", answer, 1, b"x", 1))
    assert draft(proposer, "b", [1, 5, 6], b"x") == (7, 8, 9)
    assert draft(proposer, "c", [1, 5, 6], b"y") == ()
    assert draft(proposer, "b", [1, 5, 6, 7, 8, 9], b"x") == ()  # never beyond an answer's end
    assert END not in draft(proposer, "d", [9], b"x")


def test_who_never_was_asked_about_leaves_nothing():
    proposer = SuffixProposer()
    proposer.forget(Context("a", [1, 2, 3], 1, b"", 1))
    assert not proposer._answers


def test_memory_is_bounded():
    proposer = SuffixProposer()
    for i in range(MAX_SALTS + 3):
        draft(proposer, "a", [1, 2, i], bytes([i]))
        proposer.forget(Context("a", [1, 2, i], 1, bytes([i]), 1))
    assert len(proposer._answers) == MAX_SALTS and not proposer._own
    long = list(range(MAX_TOKENS // 2))
    for name in "abcde":
        draft(proposer, name, [0, 1], b"z")
        proposer.forget(Context(name, long, 0, b"z", 1))
    answers = proposer._answers[b"z"]
    assert len(answers._automata) == 2 and sum(len(automaton.next) for automaton in answers._automata) < 5 * MAX_TOKENS
    assert draft(proposer, "f", [5, 6], b"z") == (7, 8, 9, 10)
