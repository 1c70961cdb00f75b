"""Seconds a step by its tokens: what was measured, what lies between, and what is tried."""

from __future__ import annotations

from cupola.runtime.engine.step_costs import FORGOTTEN, StepCosts


def observed(*measured: tuple[int, float]) -> StepCosts:
    costs = StepCosts()
    for num_tokens, seconds in measured:
        costs.observe(num_tokens, seconds)
    return costs


def test_the_first_of_a_size_is_not_measured():
    assert observed((1, 9.0)).table(3) is None
    assert observed((1, 9.0), (1, 1.0)).table(3) == [1.0] * 4  # what is larger is tried


def test_between_known_sizes_lies_a_line():
    costs = observed((1, 9.0), (1, 1.0), (5, 9.0), (5, 3.0))
    assert costs.table(6) == [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert costs.table(2) == [1.0, 1.0, 1.5]


def test_the_least_of_some_counts_and_old_ones_go():
    costs = observed((1, 9.0), (1, 1.0), (1, 5.0))
    assert costs.table(1) == [1.0, 1.0]
    for _ in range(5):
        costs.observe(1, 2.0)
    assert costs.table(1) == [2.0, 2.0]


def test_one_measurement_alone_is_not_believed_against_larger_sizes():
    costs = observed((1, 9.0), (1, 1.0), (4, 9.0), (4, 8.0), (6, 9.0), (6, 2.0))
    assert costs.table(6)[4] == 2.0
    costs.observe(4, 8.0)
    assert costs.table(6)[4] == 8.0  # there are such cliffs


def test_what_did_not_come_for_long_is_tried_anew():
    costs = observed((1, 1.0), (1, 1.0), (8, 9.0), (8, 9.0))
    assert costs.table(8)[8] == 9.0
    for _ in range(FORGOTTEN + 1):
        costs.observe(1, 1.0)
    assert costs.table(8)[8] == 1.0
    costs.observe(8, 3.0)
    assert costs.table(8)[8] == 1.0
    costs.observe(8, 3.0)
    assert costs.table(8)[8] == 3.0


def test_what_is_done_token_by_token_costs_in_proportion() -> None:
    costs = StepCosts(in_proportion=True)
    assert costs.table(8) is None
    for _ in range(3):
        costs.observe(4, 2.0)
    assert costs.table(8) == [0.5 * n for n in range(9)]
    assert costs.table(4) == [0.5 * n for n in range(5)] and costs.table(2) == [0.0, 0.5, 1.0]
    for _ in range(3):
        costs.observe(2, 1.5)
    assert costs.table(6) == [0.0, 0.75, 1.5, 1.75, 2.0, 2.5, 3.0]
