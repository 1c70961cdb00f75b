"""The peers' driver on workers with known times: what it records, and what it makes of it."""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The driver's modules, and what three rounds with fake workers for four entrants gave."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield measure(monkeypatch, tmp_path_factory.mktemp("peers"))


@pytest.fixture
def peers(measured):
    contest, report, turns, plan, records, lines = measured
    return contest, report, turns, plan, copy.deepcopy(records), lines


def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "peers"))
    import contest
    import report
    import turns

    speeds = {
        "cupola-f32": ["300"],
        "llama.cpp-q4_0": ["100"],
        "openvino-q4_0": ["150", "refuse"],
        "ctranslate2-int8": ["900", "crash"],
    }
    commands = {contest.ENTRANTS[name]: [sys.executable, str(FAKE), *arguments] for name, arguments in speeds.items()}
    monkeypatch.setattr(turns, "worker_command", lambda entrant: commands[entrant])
    monkeypatch.setattr(turns, "BUILD", tmp_path)
    records = {name: turns.Record() for name in speeds}
    plan = turns.Plan(tuple(speeds), ("prefill", "decode", "decode-2048", "streams-16"), rounds=3, threads=2)
    lines: list[str] = []
    turns.take_turns(plan, dict.fromkeys(speeds, tmp_path / "model"), records, lines.append)
    return contest, report, turns, plan, records, lines


def test_rates_are_those_of_the_workers_times(peers) -> None:
    _, _, _, plan, records, _ = peers
    record = records["llama.cpp-q4_0"]
    assert (record.version, record.tells, record.error, record.errors) == ("1.2", "fake", "", {})
    assert len(record.load_seconds) == plan.rounds and all(seconds > 0 for seconds in record.load_seconds)
    for name in ("prefill", "decode", "decode-2048"):
        assert record.rates[name] == pytest.approx([100] * plan.rounds), name
    # 16 streams: 1024 tokens in until the first 16 are there, then 16 · 127 more, at 100 a second; 2048 tokens out
    assert record.rates["streams-16"] == pytest.approx([2048 / ((1024 + 2032) / 100)] * plan.rounds)


def test_workers_take_turns_and_progress_is_told(peers) -> None:
    lines = peers[5]
    told = [line.split(": ")[0] for line in lines]
    assert told[:4] == [f"round 1 of 3, {name}" for name in ("cupola-f32", "llama.cpp-q4_0", "openvino-q4_0", "ctranslate2-int8")]
    assert told[4] == "round 2 of 3, cupola-f32"


def test_a_workload_that_fails_leaves_the_others(peers) -> None:
    record = peers[4]["openvino-q4_0"]
    assert record.errors == {"decode-2048": "ValueError: too long", "streams-16": "ValueError: too long"}
    assert set(record.rates) == {"prefill", "decode"} and record.error == ""


def test_a_worker_that_crashes_is_a_line_of_the_table_and_is_not_asked_again(peers) -> None:
    _, report, _, plan, records, lines = peers
    assert records["ctranslate2-int8"].error == "ended by signal 6"
    assert sum("ctranslate2-int8" in line for line in lines) == 1
    table = report.as_markdown(records, plan.workloads, ["about"])
    row = next(line for line in table.splitlines() if line.startswith("| ctranslate2-int8"))
    assert "not measured: ended by signal 6" in row
    assert row.count("|") == table.splitlines()[2].count("|")


def test_the_table_marks_the_fastest_and_compares_with_the_fastest_peer(peers) -> None:
    _, report, _, plan, records, _ = peers
    table = report.as_markdown(records, plan.workloads, ["made by hand"]).splitlines()
    assert next(line for line in table if line.startswith("| cupola-f32 (")).split(" | ")[2:4] == ["**300**", "**300**"]
    assert next(line for line in table if line.startswith("| cupola-f32 |")) == "| cupola-f32 | 2.00 | 2.00 | 3.00 | 3.00 |"
    assert table[-1] == "- made by hand"
    assert "| fastest peer | openvino-q4_0 | openvino-q4_0 | llama.cpp-q4_0 | llama.cpp-q4_0 |" in table
    assert "openvino-q4_0, decode at 2,048: ValueError: too long" in table


def test_the_json_holds_samples_medians_and_reasons(peers) -> None:
    _, report, _, _, records, _ = peers
    records["cupola-f32"].rates["prefill"] = [1.0, 7.0, 2.0]
    results = json.loads(json.dumps(report.as_json(records, {"model": "m"})))
    engine = results["engines"]["cupola-f32"]
    assert engine["rates"]["prefill"] == [1.0, 7.0, 2.0] and engine["median"]["prefill"] == 2.0
    assert engine["median"]["load_seconds"] == statistics.median(engine["load_seconds"])
    assert results["engines"]["ctranslate2-int8"]["error"] == "ended by signal 6"
    assert results["times_the_fastest_peer"]["cupola-f32"]["prefill"] == pytest.approx(2 / 150)


def test_every_entrant_has_its_worker_its_environment_and_its_file(peers) -> None:
    contest = peers[0]
    for entrant in contest.ENTRANTS.values():
        assert (ROOT / "benchmarks/peers" / entrant.worker).is_file()
        assert entrant.venv in contest.VENVS or not entrant.is_peer
        assert entrant.file in contest.FILES
    for file in contest.FILES.values():
        assert file.source in contest.FILES or file.source == "packaged"


def test_engines_of_one_instruction_set_are_held_to_it(peers) -> None:
    contest = peers[0]
    assert contest.ISAS
    for isa in contest.ISAS:
        entrants = [entrant for entrant in contest.ENTRANTS.values() if entrant.isa == isa]
        assert {entrant.is_peer for entrant in entrants} == {False, True}
        assert all(entrant.venv.endswith(f"-{isa}") or entrant.variables for entrant in entrants if entrant.is_peer)
        compiled = [contest.FILES[entrant.file].arguments for entrant in entrants if not entrant.is_peer]
        assert all(f"cpu:{isa}" in arguments for arguments in compiled)


def test_prompts_are_the_same_for_everyone_and_differ_by_stream(peers) -> None:
    prompts = peers[0].WORKLOADS["streams-16"].prompts()
    assert prompts == peers[0].WORKLOADS["streams-16"].prompts()
    assert len({tuple(prompt) for prompt in prompts}) == 16 and {len(prompt) for prompt in prompts} == {64}


def test_an_engine_that_cannot_be_set_up_is_tried_once_and_gives_its_reason(peers, monkeypatch, tmp_path) -> None:
    _, report, turns, *_ = peers
    import venvs

    monkeypatch.setattr(venvs, "BUILD", tmp_path / "build" / "peers")
    failing = [sys.executable, "-c", "print('building'); raise SystemExit('no-such-package')"]
    run_logged = venvs.run_logged
    monkeypatch.setattr(venvs, "run_logged", lambda command, log, variables=(): run_logged(failing, log, variables))
    lines: list[str] = []
    plan = turns.Plan(("llama.cpp-q4_0", "llama.cpp-q8_0"), ("prefill",), rounds=1, threads=1)
    paths, records = turns.set_up(plan, lines.append)
    assert paths == {} and sum(line.startswith("setting up") for line in lines) == 1
    for name, record in records.items():
        assert "no-such-package" in record.error
        assert f"| {name} (" in (table := report.as_markdown(records, plan.workloads, [])) and "not measured: " in table


def test_an_unknown_engine_is_refused_with_the_names() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers"), "--engines", "vllm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "vllm: choose from" in done.stderr and "Traceback" not in done.stderr
