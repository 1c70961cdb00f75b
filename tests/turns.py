"""Tests that take turns: what is slow and has many like it runs once in several commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

NUM_TURNS = 6
MARK = "by_turns"
# Families that are much used: where a test takes every family, these run each time.
MUCH_USED = {"falcon", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe"}


def by_family(model_types: Iterable[str]) -> list[Any]:
    """A test's parameters: every family, those that are not much used by turns."""
    return [pytest.param(name, marks=() if name in MUCH_USED else pytest.mark.by_turns) for name in model_types]


def split(items: Sequence[pytest.Item], turn: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests to run in this turn, a number modulo `NUM_TURNS`, and those of the other turns. What isn't marked always runs, and what
    is marked with the same `together` has the same turn, as tests of one dear fixture should."""
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    places: dict[object, int] = {}
    for item in items:
        is_due = True
        if mark := item.get_closest_marker(MARK):
            place = places.setdefault(mark.kwargs.get("together", item), len(places))
            is_due = place % NUM_TURNS == turn % NUM_TURNS
        (chosen if is_due else others).append(item)
    return chosen, others
