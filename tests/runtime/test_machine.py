"""Which of an artifact's libraries a machine runs."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.runtime import machine
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import DeviceSpec, LibrarySpec
from cupola.runtime.device.choose import choose_library
from cupola.runtime.errors import ArtifactError, OptionError
from cupola.runtime.machine import missing_features, usable_cores
from tests.runtime.artifact.test_artifact import GOOD
from tests.systems import needs

HERE = f"{platform.machine()}-{sys.platform}-gnu"


def artifact(*targets: DeviceSpec) -> Artifact:
    libraries = tuple(LibrarySpec(f"lib.{target.device}.so", f"plan.{target.device}.json", target) for target in targets)
    return Artifact(Path("a"), replace(GOOD, libraries=libraries))


def target(device: str, *features: str, triple: str = HERE, kind: str = "cpu") -> DeviceSpec:
    return DeviceSpec(f"{kind}:{device}", kind, device, triple, features)


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has "wide" and "amx_tile", which it lists; the system grants no tiles."""
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset({"wide", "amx_tile"}))
    monkeypatch.setattr(machine, "_request_tiles", lambda: False)


BOTH = artifact(target("best", "wider"), target("good", "wide"), target("any"))


def test_the_first_that_runs_is_chosen() -> None:
    assert choose_library(BOTH).target.device == "good"
    assert choose_library(artifact(target("other", triple="riscv64-linux-gnu"), target("any"))).file == "lib.any.so"


def test_the_one_asked_for_is_chosen_or_refused() -> None:
    assert choose_library(BOTH, "any").target.device == "any"
    with pytest.raises(OptionError, match=r"device: is 'best': this CPU lacks wider \(leave it out"):
        choose_library(BOTH, "best")
    with pytest.raises(OptionError, match=r"device: is 'avx9', and the artifact has best, good, any \(take one"):
        choose_library(BOTH, "avx9")


def test_none_that_runs_is_one_clear_error() -> None:
    with pytest.raises(ArtifactError, match=r"libraries: none runs here \(cpu:a: this CPU lacks x; cpu:b: this CPU lacks y, z\)"):
        choose_library(artifact(target("a", "x"), target("b", "y", "wide", "z")))
    with pytest.raises(ArtifactError, match=r"libraries\[0\]\.target\.features: this CPU lacks x"):
        choose_library(artifact(target("a", "x")))
    with pytest.raises(ArtifactError, match=r"libraries\[0\]\.target\.kind: is 'abacus', this cupola runs cpu"):
        choose_library(artifact(target("a", kind="abacus")))


def test_tiles_are_there_only_if_the_system_grants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_features(["wide", "amx_tile"]) == ["amx_tile"]
    assert missing_features(["amx_tile", "wider"]) == ["wider"]  # nothing is asked for in vain
    monkeypatch.setattr(machine, "_request_tiles", lambda: True)
    assert missing_features(["wide", "amx_tile"]) == []


@needs("to know what Linux lists of the processor")
def test_the_system_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    machine._request_tiles.cache_clear()
    assert machine._request_tiles() <= ("amx_tile" in (machine.cpu_flags() or ()))


def test_where_the_system_lists_no_features_none_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: None)
    assert missing_features(["wider"]) == []


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "1600000 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "600000 100000", "a/cpu.max": "300000 100000", "cpu.max": "500000 100000"}, 3),
        ("0::/of/the/host", {"cpu.max": "400000 100000"}, 4),
        ("0::/a", {"unified/a/cpu.max": "200000 100000"}, 2),
        ("0::/a", {"a/cpu.max": "nonsense"}, 8),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
    ],
    ids=["none", "max", "2.5", "half", "more", "above", "container", "hybrid", "nonsense", "v1", "v1 none", "another controller"],
)  # fmt: skip
def test_control_groups_limit_the_cores(
    group: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": f"9:pids:/x\n{group}\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_this_machine_has_cores_to_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
