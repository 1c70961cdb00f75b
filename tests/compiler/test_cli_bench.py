"""`cupola bench` over a real, tiny artifact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cupola.compiler.cli.app import run
from tests.runtime.tiny_artifact import VOCAB, make_artifact

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_artifact(tmp_path_factory.mktemp("bench") / "tiny").path)


def bench(capsys: Capture, *arguments: str) -> tuple[str, str]:
    assert run(["bench", *arguments]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_the_table_has_a_row_a_test(artifact: str, capsys: Capture) -> None:
    out, err = bench(capsys, artifact, "-p", "8,16", "-n", "4", "-d", "0,12", "-b", "1,3", "-r", "2")
    head, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines())
    assert head == ["model", "size", "scheme", "K/V", "target", "threads", "test", "t/s"]
    assert all(set(cell) == {"-", ":"} for cell in rule)
    assert len({len(line) for line in out.splitlines()}) == 1
    names = ["pp8", "pp16", "pp8 @ d12", "pp16 @ d12", "tg4", "tg4 × 3", "tg4 @ d12", "tg4 × 3 @ d12"]
    assert [row[-2] for row in rows] == names
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[-1]) for row in rows)
    assert rows[0][:5] == ["tiny", f"{VOCAB * VOCAB * 4 / 2**20 + 64 / 2**20:.2f} MiB", "f32", "float32", "cpu:generic"]
    assert all(f"cupola: {name} " in err for name in names)


def test_json_has_every_repeat(artifact: str, capsys: Capture) -> None:
    out, _ = bench(capsys, artifact, "-p", "0", "-n", "4", "-n", "2", "-b", "2", "-r", "3", "--json")
    shown = json.loads(out)
    assert (shown["artifact"], shown["scheme"], shown["size"]) == (artifact, "f32", VOCAB * VOCAB * 4 + 64)
    assert [test["test"] for test in shown["tests"]] == ["tg4 × 2", "tg2 × 2"]
    for test in shown["tests"]:
        assert (test["kind"], test["depth"], test["num_streams"], len(test["tokens_per_second"])) == ("tg", 0, 2, 3)
        assert test["mean"] == pytest.approx(sum(test["tokens_per_second"]) / 3)
        spread = sum((value - test["mean"]) ** 2 for value in test["tokens_per_second"])
        assert test["standard_deviation"] == pytest.approx((spread / 2) ** 0.5)


def test_what_exceeds_the_artifact_is_left_out_with_a_note(artifact: str, capsys: Capture) -> None:
    out, err = bench(capsys, artifact, "-p", "8,64", "-n", "0", "-d", "0,60", "-r", "1")
    assert "pp8 |" in out and "pp64" not in out and "d60" not in out
    assert err.count("note: ") == 3
    assert "note: pp8 @ d60 is left out: it needs a context of 69 tokens, and the artifact has 64" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "64"], "pp64: needs a context of 65 tokens, and the artifact has 64"),
        (["-p", "0", "-n", "4", "-b", "9"], "tg4 × 9: needs 9 streams, and the artifact takes 8"),
        (["-p", "0", "-n", "0"], "prompt, generate: both are 0"),
        (["-p", "many"], "prompt: 'many' is not a whole number from 0"),
        (["-p", "1,,2"], "prompt: '' is not a whole number"),
        (["-n", "-1"], "generate: '-1' is not a whole number from 0"),
        (["-d", "1.5"], "depth: '1.5' is not a whole number from 0"),
        (["-d", "9" * 30], "depth: '999"),
        (["-b", "0"], "batch: '0' is not a whole number from 1"),
        (["-r", "0"], "repeat: is 0, not from 1"),
        (["-r", "x"], "--repeat"),
        (["--quant", "bf16"], "is compiled already"),
    ],
)
def test_bad_values_give_one_line_and_code_2(artifact: str, arguments: list[str], expected: str, capsys: Capture) -> None:
    values = arguments if "-n" in arguments else [*arguments, "-n", "0"]
    assert run(["bench", artifact, *values]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("error: ") and expected in line


def test_a_missing_artifact_is_bad_input(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "lib.so").touch()
    assert run(["bench", str(tmp_path)]) == 2
    assert "manifest.json: can't be read" in capsys.readouterr().err
