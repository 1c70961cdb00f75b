"""The library for NVIDIA's GPUs that a machine runs: by its compute capability, which a driver tells that is played here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device import capability
from cupola.runtime.device.choose import choose_library
from cupola.runtime.errors import ArtifactError, OptionError
from tests.runtime.test_machine import artifact, target

# The driver's functions (CUDA Driver API): a GPU of the given capability, or the error that cuInit gives.
DRIVER = """
int cuInit(unsigned flags) { return flags ? 1 : ERROR; }
int cuDeviceGet(int *device, int ordinal) { *device = 5; return ordinal; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? MAJOR : attribute == 76 ? MINOR : -1;
  return device != 5;
}
int cuGetErrorString(int code, const char **text) { *text = "no CUDA-capable device is detected"; return code != 100; }
"""
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """play(8, 6): from now on the machine's GPU is one of 8.6."""
    count = iter(range(100))

    def set_up(major: int, minor: int, error: int = 0) -> None:
        source, library = tmp_path / "driver.c", tmp_path / f"libcuda{next(count)}.so"
        source.write_text(DRIVER)
        defined = (f"-DMAJOR={major}", f"-DMINOR={minor}", f"-DERROR={error}")
        subprocess.run(["cc", "-shared", "-fPIC", *defined, "-o", library, source], check=True)
        monkeypatch.setattr(capability, "DRIVER", str(library))
        capability.compute_capability.cache_clear()

    yield set_up
    capability.compute_capability.cache_clear()


def for_gpus(*architectures: str) -> Artifact:
    return artifact(*(target(name, kind="cuda") for name in architectures))


@pytest.mark.parametrize(
    ("here", "architectures", "expected"),
    [
        ((8, 0), ("sm_80",), "sm_80"),
        ((8, 6), ("sm_80", "sm_86", "sm_89"), "sm_86"),
        ((8, 9), ("sm_80", "sm_86"), "sm_86"),
        ((9, 0), ("sm_80", "sm_90a"), "sm_90a"),
        ((9, 0), ("sm_90a", "sm_80"), "sm_90a"),
        ((10, 0), ("sm_90a", "sm_80"), "sm_80"),  # by its PTX
        ((12, 0), ("sm_80", "sm_89"), "sm_89"),
        ((8, 0), ("sm_90a", "sm_86", "sm_80"), "sm_80"),
        ((7, 5), ("sm_80", "softgpu"), "softgpu"),
    ],
)  # fmt: skip
def test_the_nearest_library_is_chosen(play: Play, here: tuple[int, int], architectures: tuple[str, ...], expected: str) -> None:
    play(*here)
    assert choose_library(for_gpus(*architectures)).target.device == expected


def test_one_error_says_what_the_gpu_is_and_what_there_is(play: Play) -> None:
    play(8, 6)
    with pytest.raises(ArtifactError, match=r"target\.device: it runs on compute capability 9\.0 alone, and this machine's GPU has 8\.6"):
        choose_library(for_gpus("sm_90a"))
    with pytest.raises(
        OptionError, match=r"device: is 'sm_89': it runs on compute capability 8\.9 and later, and this machine's GPU has 8\.6"
    ):
        choose_library(for_gpus("sm_80", "sm_89"), "sm_89")
    with pytest.raises(
        ArtifactError, match=r"none runs here \(cuda:sm_89: it runs on .* 8\.9 and later.*; cuda:sm_90a: it runs on .* 9\.0 alone.*8\.6\)"
    ):
        choose_library(for_gpus("sm_89", "sm_90a"))
    play(10, 0)
    with pytest.raises(ArtifactError, match=r"compute capability 9\.0 alone, and this machine's GPU has 10\.0"):
        choose_library(for_gpus("sm_90a"))


def test_a_driver_without_a_gpu_is_named(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(8, 0, error=100)
    with pytest.raises(ArtifactError, match=r"finds no GPU that it can use: cuInit gives 100 \(no CUDA-capable device is detected\)"):
        choose_library(for_gpus("sm_80"))
    monkeypatch.setattr(capability, "DRIVER", "libthatisnowhere.so.1")
    capability.compute_capability.cache_clear()
    with pytest.raises(ArtifactError, match="there is no NVIDIA driver here"):
        choose_library(for_gpus("sm_80"))
