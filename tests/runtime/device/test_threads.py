"""A library's threads are set up in order, as far as the library can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cupola.runtime.device import threads
from cupola.runtime.device.threads import ThreadOptions
from cupola.runtime.errors import OptionError


class FakeLibrary:
    file = Path("model/lib.so")

    def __init__(self, saves_power: bool = True) -> None:
        self.saves_power, self.done = saves_power, list[object]()

    def set_power_saver(self, is_on: bool) -> bool:
        self.done.append(is_on)
        return self.saves_power

    def set_cores(self, cores: Sequence[int]) -> None:
        self.done.append(cores)

    def set_threads(self, count: int) -> int:
        self.done.append(count)
        return count


@pytest.fixture(autouse=True)
def big_and_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "choose_cores", lambda wanted: (wanted or 4, (4, 5, 6, 7)))


def test_cores_are_chosen_before_threads_start() -> None:
    library = FakeLibrary()
    assert ThreadOptions(2, power_saver=True).apply(library) == 2  # type: ignore[arg-type]
    assert library.done == [True, (4, 5, 6, 7), 2]
    assert ThreadOptions().apply(library) == ThreadOptions().count() == 4  # type: ignore[arg-type]


def test_a_library_that_cannot_save_power_is_refused_only_if_it_should() -> None:
    library = FakeLibrary(saves_power=False)
    assert ThreadOptions().apply(library) == 4  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"power_saver: is not for lib\.so"):
        ThreadOptions(power_saver=True).apply(library)  # type: ignore[arg-type]
