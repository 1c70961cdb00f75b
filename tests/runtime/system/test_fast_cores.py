"""Which cores are fast, over made-up folders of what Linux says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cupola.runtime.system.fast_cores import choose_cores, core_speeds
from tests.systems import needs

NEEDS_AFFINITY = needs("to know the cores that a process may run on")
KINDS = {"capacity": "cpu_capacity", "clock": "cpufreq/cpuinfo_max_freq"}
# A phone of 1 + 3 + 4 cores, an older one, a board whose slow cores come first: capacities.
SNAPDRAGON = [325] * 4 + [830] * 3 + [1024]
RK3588 = [530] * 4 + [1024] * 4


def write(folder: Path, name: str, text: object) -> None:
    file = folder / "sys/devices" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def machine(folder: Path, *, performance: str | None = None, **values: Sequence[int]) -> Path:
    """A tree whose cores have these capacities or clocks; `performance` is Intel's list."""
    for kind, numbers in values.items():
        for core, number in enumerate(numbers):
            write(folder, f"system/cpu/cpu{core}/{KINDS[kind]}", number)
    if performance is not None:
        write(folder, "cpu_core/cpus", performance)
    return folder


def choose(monkeypatch: pytest.MonkeyPatch, system: Path, allowed: int | Sequence[int], wanted: int | None = None) -> object:
    cores = set(range(allowed) if isinstance(allowed, int) else allowed)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    return choose_cores(wanted, system)


@pytest.fixture(autouse=True)
def no_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUPOLA_NUM_THREADS")
    monkeypatch.setattr("cupola.runtime.environment.usable_cores", lambda: 64)


@NEEDS_AFFINITY
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"capacity": SNAPDRAGON}, (4, (4, 5, 6, 7))),
        ({"capacity": RK3588}, (4, (4, 5, 6, 7))),
        ({"clock": [1785600] * 4 + [2419200] * 3 + [2841600]}, (4, (4, 5, 6, 7))),
        ({"performance": "0-3", "clock": [5000000] * 4 + [3800000] * 4}, (4, (0, 1, 2, 3))),
        ({"performance": "0,2,4-5", "clock": [5000000] * 8}, (4, (0, 2, 4, 5))),
        ({"clock": [5100000] * 4 + [3300000] * 4}, (4, (0, 1, 2, 3))),
        ({"clock": [5000000, 5000000, 4900000, 4900000, 4700000, 4700000, 4700000, 4700000]}, (64, ())),  # some are clocked higher
        ({"capacity": [1024] * 8}, (64, ())),
        ({"capacity": [300] * 2 + [1024] * 5}, (64, ())),  # not of all cores
        ({"performance": "0-7"}, (64, ())),
        ({"performance": "nonsense,3-x"}, (64, ())),
        ({}, (64, ())),
    ],
    ids=["a phone", "a board", "clocks", "hybrid", "a list with gaps", "dense cores", "turbo", "alike", "in part", "all", "junk", "none"],
)
def test_fast_cores_come_first(
    values: Mapping[str, Sequence[int]], expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(monkeypatch, machine(tmp_path, **values), 8) == expected


@NEEDS_AFFINITY
@pytest.mark.parametrize(
    ("wanted", "cores"), [(1, (4, 5, 6, 7)), (4, (4, 5, 6, 7)), (5, ()), (8, ()), (100, ())], ids=str
)  # fmt: skip
def test_more_threads_take_slower_cores_too(wanted: int, cores: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, machine(tmp_path, capacity=SNAPDRAGON), 8, wanted) == (wanted, cores)


@NEEDS_AFFINITY
def test_of_three_kinds_the_second_comes_before_the_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine(tmp_path, capacity=[1024, 1024, 600, 600, 200, 200])
    assert choose(monkeypatch, system, 6, None) == (2, (0, 1))
    assert choose(monkeypatch, system, 6, 3) == (3, (0, 1, 2, 3))


@NEEDS_AFFINITY
def test_only_cores_that_the_process_may_use_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine(tmp_path, capacity=SNAPDRAGON)
    assert choose(monkeypatch, system, [0, 1, 2, 3]) == (64, ())
    assert choose(monkeypatch, system, [0, 1, 7]) == (1, (7,))
    assert core_speeds([], system) == {}


@NEEDS_AFFINITY
def test_a_quota_and_the_users_number_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = machine(tmp_path, capacity=SNAPDRAGON)
    monkeypatch.setattr("cupola.runtime.environment.usable_cores", lambda: 2)
    assert choose(monkeypatch, system, 8) == (2, (4, 5, 6, 7))
    monkeypatch.setenv("CUPOLA_NUM_THREADS", "6")
    assert choose(monkeypatch, system, 8) == (6, ())
    assert choose(monkeypatch, system, 8, 3) == (3, (4, 5, 6, 7))


def test_without_affinities_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert choose_cores(None, machine(tmp_path, capacity=SNAPDRAGON)) == (64, ())
    assert choose_cores(3, tmp_path) == (3, ())
