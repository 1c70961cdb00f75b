"""Compiled libraries are found by their content: what stood at the same path before does not matter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import cupola.runtime.device.library
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import LIBRARY
from cupola.runtime.device.executor import load
from cupola.runtime.errors import ArtifactError
from cupola.runtime.llm import LLM
from tests.runtime.tiny_artifact import follow_of, make_artifact, reference_logits

PROMPT = list(range(20))


def write_over(old: Path, new: Path) -> None:
    """Gives the files of `old` the content of those of `new`, keeping their inodes."""
    for file in new.iterdir():
        (old / file.name).write_bytes(file.read_bytes())


def replace_folder(old: Path, new: Path) -> None:
    shutil.rmtree(old)
    shutil.copytree(new, old)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, Path]:
    """Artifacts whose code differs: one reads float32, the other float16."""
    folder = tmp_path_factory.mktemp("two")
    return make_artifact(folder / "a").path, make_artifact(folder / "b", dtype="float16").path


@pytest.mark.parametrize("change", [replace_folder, write_over])
def test_a_second_artifact_at_the_same_path_runs_its_own_code(two, tmp_path, change):
    folder = tmp_path / "artifact"
    shutil.copytree(two[0], folder)
    first = LLM(folder)
    expected = reference_logits(follow_of(first.artifact).copy(), PROMPT)
    np.testing.assert_allclose(first.logits(PROMPT), expected, atol=1e-4)
    change(folder, two[1])
    second = LLM(folder)
    np.testing.assert_allclose(second.logits(PROMPT), reference_logits(follow_of(second.artifact), PROMPT), atol=1e-4)
    if change is replace_folder:  # the first one's files live on; written over, its mapped weights are the second's
        np.testing.assert_allclose(first.logits(PROMPT), expected, atol=1e-4)


def test_a_library_that_was_replaced_since_the_manifest_was_read_is_refused(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "artifact")
    artifact = Artifact.open(tmp_path / "artifact")
    with (artifact.path / LIBRARY).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ArtifactError, match=r"lib\.so: does not match its SHA-256 in the manifest \(it was replaced"):
        load(artifact, [4])


def test_where_memory_may_not_be_run_a_file_is(two, monkeypatch):
    names = []

    def refuse_memory(path: str) -> str:
        names.append(path)
        if path.startswith("/proc/"):
            raise RuntimeError("failed to map segment from shared object: Operation not permitted")
        return path

    monkeypatch.setattr(cupola.runtime.device.library, "_loaded", {})
    file = two[0] / LIBRARY
    entry = next(entry for entry in Artifact.open(two[0]).manifest.files if entry.name == LIBRARY)
    loaded = cupola.runtime.device.library.load_library(file, entry.sha256, refuse_memory)
    assert loaded == names[-1] and not os.path.exists(loaded)
    assert cupola.runtime.device.library.load_library(file, entry.sha256, refuse_memory) is loaded
