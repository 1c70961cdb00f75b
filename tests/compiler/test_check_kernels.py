"""`cupola check-kernels`: what it says of right and of spoiled kernels, and its exit code."""

from __future__ import annotations

import json

import pytest

from cupola.compiler import kernel_check
from cupola.compiler.cli.app import run
from cupola.targets.registry import list_targets
from cupola.targets.testing import references
from cupola.targets.testing.catalogue import rms_norm, rotary

HERE = [target.name for target in list_targets() if target.runs_here()][-1]


@pytest.fixture(autouse=True)
def two_kernels(monkeypatch):
    monkeypatch.setattr(kernel_check, "KERNELS", (rms_norm, rotary))
    monkeypatch.setattr(kernel_check, "VARIANTS", ())


def test_right_kernels(capsys):
    assert run(["check-kernels", "--target", HERE]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("ok")]
    assert len(lines) == 6  # two kernels at three sizes
    assert lines[0].split()[:3] == ["rms_norm", "576", HERE]


def test_a_wrong_kernel_fails_by_name(monkeypatch, capsys):
    monkeypatch.setattr(references, "ROUNDING", 1e-12)  # nothing that computes in float32 is so near
    assert run(["check-kernels", "--target", HERE, "--json"]) == 1
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert {result["kernel"].split()[0] for result in results} == {"rms_norm", "rotary"}
    assert all(result["error"] > 1 and not result["is_right"] for result in results)
    assert "error: 6 of 6 kernels are wrong on this machine: rms_norm 576" in err


def test_a_target_that_is_not_here(capsys):
    assert run(["check-kernels", "--target", "z80"]) == 2
    assert "'z80' is none that this machine runs (one of " in capsys.readouterr().err
