"""The sweep over model types on cases that need no model: its processes, its table, and what it calls worse."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = Path(__file__).parents[2] / "benchmarks" / "sweep"


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SWEEP))


def fake_case(name: str, folder: Path):
    from case import Result

    assert folder.is_dir() and not any(folder.iterdir())
    if name == "dies":
        os.write(2, b"out of\nmemory")
        os._exit(7)
    if name == "hangs":
        subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=True)
    return Result(name, "match", error=1e-7, seconds=0.5)


def test_each_case_has_a_process_and_a_limit():
    from workers import run_cases

    start = time.monotonic()
    results = {result.name: result for result in run_cases(["hangs", "dies", "a", "b"], 2, fake_case, limit_seconds=3)}
    assert time.monotonic() - start < 60
    assert [results[name].outcome for name in ("a", "b", "dies", "hangs")] == ["match", "match", "failed", "failed"]
    assert results["a"].error == 1e-7 and results["dies"].reason == "its process ended with 7: out of memory"
    assert results["hangs"].reason == "takes more than 3 seconds"


def test_results_are_read_as_they_were_written(tmp_path):
    from case import Result
    from table import read_results, write_results

    results = {"b": Result("b", "refused", 'has "experts"', seconds=0.2), "a": Result("a", "match", error=1e-7, seconds=9.0)}
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert list(read_results(tmp_path / "results.json")) == ["a", "b"]
    assert read_results(tmp_path / "none.json") == {}


def test_the_table_counts_and_sorts():
    from case import Result
    from sweeps import SWEEPS
    from table import as_markdown

    results = [Result("x", "refused", "has a|b"), Result("m", "match", error=2e-7), Result("llama", "match", error=1e-7)]
    text = as_markdown(SWEEPS[0], {result.name: result for result in results}, "5.23.0", 8)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["llama", "m", "x"]
    assert "**verified**" in rows[0] and "**verified**" not in rows[1] and r"has a\|b" in rows[2]
    assert "**2 match**" in text and "**1 refused**" in text and "wrong**" not in text
    assert f"**{len(SWEEPS[0].names) - 3} not tried yet**" in text


@pytest.mark.parametrize(
    ("now", "before", "fault"),
    [
        (("match",), ("match",), None),
        (("refused", "has experts"), ("refused", "has experts"), None),
        (("refused", "has experts"), ("match",), "was match and is refused"),
        (("match",), ("refused", "has experts"), "was refused (has experts) and is match"),
        (("refused", "is odd"), ("refused", "has experts"), "was refused (has experts) and is refused (is odd)"),
        (("refused", "has experts", None, 11.0), ("refused", "has experts"), "after 11 seconds"),
        (("wrong", "logits differ by 1"), ("wrong", "logits differ by 1"), "is wrong"),
        (("failed", "KeyError: 'x'"), ("failed", "KeyError: 'x'"), "is failed"),
        (("match",), None, "has no line in the table"),
    ],
)
def test_what_is_worse_than_the_table_is_a_fault(now, before, fault):
    from case import Result
    from table import faults

    found = faults(Result("m", *now), Result("m", *before) if before else None)
    assert (fault is None and found == []) or (fault is not None and len(found) == 1 and fault in found[0])


@pytest.mark.parametrize("number", range(3))
def test_the_parts_are_all_cases_and_the_recorded_table_has_each(number: int):
    import transformers
    from case import NUM_DECODED
    from sweeps import SWEEPS
    from table import as_markdown, read_results

    sweep = SWEEPS[number]
    parts = [sweep.part(turn) for turn in range(sweep.num_turns)]
    assert sorted([*sweep.tested, *(name for part in parts for name in part)]) == sorted(sweep.names)
    assert sweep.part(sweep.num_turns + 1) == parts[1 % sweep.num_turns]
    recorded = read_results(sweep.results)
    assert set(recorded) <= set(sweep.names) and (number > 0 or set(recorded) == set(sweep.names))
    assert [name for name, result in recorded.items() if result.outcome in ("wrong", "failed")] == []
    assert sweep.table.read_text(encoding="utf-8") == as_markdown(sweep, recorded, transformers.__version__, NUM_DECODED)


def test_a_family_has_its_tiny_configuration_in_one_place():
    from configurations import OWN

    from cupola.models import FAMILIES

    assert not OWN.keys() & {family.model_type for family in FAMILIES}
