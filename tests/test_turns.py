"""Every test has its turn, and what is not marked runs in each."""

from __future__ import annotations

import pytest

from tests.turns import MARK, NUM_TURNS, split


class Item:
    """As much of a test as `split` looks at."""

    def __init__(self, name: str, *, is_marked: bool, **arguments: str) -> None:
        self.name, self._marker = name, pytest.mark.by_turns(**arguments).mark if is_marked else None

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self._marker if name == MARK else None


@pytest.mark.parametrize("marked", [0, 1, 2, 3, 10])
def test_marked_tests_run_in_one_turn_and_others_in_all(marked: int) -> None:
    items = [Item(f"{kind} {i}", is_marked=kind == "marked") for i in range(marked) for kind in ("plain", "marked")]
    turns = [split(items, turn) for turn in range(5, 5 + NUM_TURNS)]  # type: ignore[arg-type]
    for chosen, others in turns:
        assert sorted(item.name for item in [*chosen, *others]) == sorted(item.name for item in items)
        assert marked // NUM_TURNS <= sum(item.name.startswith("marked") for item in chosen) <= -(-marked // NUM_TURNS)
    run = [item.name for chosen, _ in turns for item in chosen]
    assert all(run.count(item.name) == (1 if item.name.startswith("marked") else NUM_TURNS) for item in items)


def test_what_belongs_together_has_one_turn() -> None:
    items = [Item(f"{i}", is_marked=True, **({"together": "pair"} if i in (1, 6) else {})) for i in range(9)]
    turns = [[item.name for item in split(items, turn)[0]] for turn in range(NUM_TURNS)]  # type: ignore[arg-type]
    assert sum("1" in turn and "6" in turn for turn in turns) == 1
    assert sorted(name for turn in turns for name in turn) == [item.name for item in items]
