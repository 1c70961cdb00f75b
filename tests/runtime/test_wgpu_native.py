"""Finding wgpu-native, with and without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cupola.runtime import wgpu_native


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WGPU_LIB_PATH", raising=False)
    monkeypatch.setattr(wgpu_native, "find_spec", lambda name: None)


def test_the_library_of_the_package_is_found() -> None:
    if importlib.util.find_spec("wgpu") is None:
        pytest.skip("wgpu-native is not installed: pip install 'cupola[webgpu]'")
    file, folder = wgpu_native.find_library(), wgpu_native.find_resources()
    assert file is not None and folder is not None
    assert Path(file).parent == folder and (folder / "webgpu.h").exists()


@pytest.mark.usefixtures("without_package")
def test_without_the_package_there_is_none() -> None:
    assert wgpu_native.find_resources() is None and wgpu_native.find_library() is None
    assert not wgpu_native.has_adapter.__wrapped__()


@pytest.mark.usefixtures("without_package")
def test_another_library_may_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "libwgpu_native.so"
    file.write_text("no library")
    monkeypatch.setenv("WGPU_LIB_PATH", str(file))
    assert wgpu_native.find_library() == str(file)
    assert not wgpu_native.has_adapter.__wrapped__()
