"""Tests that take turns: what is slow and has many like it runs in a third of the commits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

NUM_TURNS = 3
MARK = "by_turns"


def split(items: Sequence[pytest.Item], turn: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests to run in this turn, 0 to `NUM_TURNS` - 1, and those of the other turns. Who isn't marked always runs."""
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    count = 0
    for item in items:
        is_due = True
        if item.get_closest_marker(MARK):
            is_due, count = count % NUM_TURNS == turn, count + 1
        (chosen if is_due else others).append(item)
    return chosen, others
