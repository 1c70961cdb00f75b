"""The package that tests and measures CUDA's kernels, built tiny and run on softgpu as it is on a GPU: by another Python's files alone."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Without what this environment would add to the path: the package must bring it."""
    given = ["env", "-u", "PYTHONPATH", sys.executable, *map(str, command)]
    return subprocess.run(given, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "package"
    built = run(ROOT / "benchmarks" / "cuda", "--dry-run", "--cases", "8", "--out", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_package_is_whole_and_small(package: Path) -> None:
    files = [file for file in package.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20 << 20
    assert not [file for file in files if file.suffix == ".safetensors" or file.is_symlink()]
    assert (package / "cupola" / "runtime" / "device" / "accelerator.py").is_file() and not (package / "cupola" / "compiler").exists()


def test_kernels_are_held_against_float64(package: Path, tmp_path: Path) -> None:
    done = run(package / "check_kernels.py", "--out", tmp_path / "kernels.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert report["architecture"] == "softgpu" and report["wrong"] == [] and len(report["kernels"]) >= 6
    assert all(0 <= line["error"] <= 1 for line in report["kernels"]) and any(line["error"] > 0 for line in report["kernels"])


def test_a_wrong_result_is_found(package: Path, tmp_path: Path) -> None:
    kernels = package / "softgpu" / "kernels"
    whole = (kernels / "data.npz").read_bytes()
    try:
        with np.load(kernels / "data.npz") as stored:
            data = dict(stored)
        data["0.40.value"] = data["0.40.value"].copy()
        data["0.40.value"][-1, -1] += 1e3 * data["0.40.slack"].max()
        np.savez(kernels / "data.npz", **data)  # type: ignore[arg-type]
        done = run(package / "check_kernels.py", "--out", tmp_path / "kernels.json")
    finally:
        (kernels / "data.npz").write_bytes(whole)
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert done.returncode == 1 and len(report["wrong"]) == 1 and report["wrong"][0] == report["kernels"][0]["kernel"]
    assert "WRONG" in done.stdout


def test_speed_is_measured_beside_torch(package: Path, tmp_path: Path) -> None:
    done = run(package / "measure_speed.py", "--machine", "h100", "--out", tmp_path / "speed.json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "speed.json").read_text())
    contestants: dict[str, list[dict[str, Any]]] = report["contestants"]
    assert set(contestants) == {"cupola w4a16", "torch bf16"}
    for lines in contestants.values():
        tests = {line["test"]: line for line in lines if "test" in line}
        assert set(tests) == {"decode x 1", "decode x 2", "prompt 5"}
        for line in tests.values():
            assert line["tokens_per_second"] > 0 and not line.get("has_nan")
            assert line["share_of_bandwidth"] == pytest.approx(line["num_bytes"] / 3.35e12 / line["seconds"])
    tables = [line for line in contestants["cupola w4a16"] if "kernels" in line]
    assert len(tables) == 2 and all(kernel["seconds"] > 0 and kernel["calls"] >= 1 for table in tables for kernel in table["kernels"])
    plot = ElementTree.fromstring((tmp_path / "speed.svg").read_text())
    assert len([part for part in plot if part.tag.endswith("rect")]) == 6


def test_a_contestant_that_fails_leaves_the_others(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))
    from measure_speed import contest, find_machine

    says = "print('{\"test\": 1}', flush=True); "
    assert list(contest([sys.executable, "-c", says + "raise SystemExit('no memory')"], 60)) == [
        {"test": 1}, {"problem": "ended with 1: no memory"}]  # fmt: skip
    assert list(contest([sys.executable, "-c", says + "import time; time.sleep(600)"], 3))[-1] == {"problem": "took more than 3 seconds"}
    names = (
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA L40S",
        "NVIDIA L4",
        "NVIDIA GeForce RTX 4090",
        "Tesla T4",
    )
    found = [machine.name if (machine := find_machine(name)) else None for name in names]
    assert found == ["h200", "h100", "a100", "l40s", "l4", "rtx4090", None]
