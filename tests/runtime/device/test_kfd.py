"""AMD's GPUs, read off what Linux says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.runtime.device import kfd
from cupola.runtime.device.kfd import architecture_fault, architectures


def machine(versions: tuple[int, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for node, version in enumerate(versions):
        (folder / str(node)).mkdir()
        (folder / str(node) / "properties").write_text(f"cpu_cores_count 8\nsimd_count 304\ngfx_target_version {version}\nvendor_id 4098\n")
    monkeypatch.setattr(kfd, "NODES", folder)


def test_architectures_are_named_as_compilers_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((0, 90402, 90402, 110000, 90010), tmp_path, monkeypatch)
    assert architectures() == ("gfx942", "gfx1100", "gfx90a")


def test_code_runs_on_its_own_architecture_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((0, 110000), tmp_path, monkeypatch)
    assert architecture_fault("gfx1100") is None
    assert architecture_fault("gfx942") == "this machine's GPU is gfx1100"
    assert architecture_fault("sm_80") is architecture_fault("avx2") is None  # not AMD's


def test_without_a_gpu_there_is_one_clear_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine((0,), tmp_path, monkeypatch)
    assert architecture_fault("gfx942") == "there is no AMD GPU here, or no driver of Linux's for it"
