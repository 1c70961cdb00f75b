"""Compiles that are interrupted go on where they stopped, and believe nothing that is not what they would make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cupola.compiler import artifact_writer
from cupola.compiler.artifact_folder import artifact_folder, remove_leftovers
from cupola.compiler.artifact_writer import list_files, write_weights
from cupola.compiler.finished import RECORD, origin_of
from cupola.compiler.options import CompileOptions
from cupola.compiler.weights import PackedWeight
from cupola.runtime.artifact.tensors import TensorSpec

NUM_BYTES, COUNT = 1 << 12, 5
DIES = """
import os, pathlib, signal, sys
from cupola.compiler.artifact_folder import artifact_folder
from tests.compiler.test_finished import Model, pack
model = Model(dies_at=int(sys.argv[2]), by=getattr(signal, sys.argv[3]))
with artifact_folder(pathlib.Path(sys.argv[1])) as work:
    (work / "lib.so").write_text("library")
    pack(work, model)
    if model.dies_at == len(model.weights):
        os.kill(os.getpid(), model.by)
    (work / "manifest.json").write_text("{}")
"""


class Model:
    """Five weights, a shard each; it counts those that are computed, and may end its process before one."""

    def __init__(self, dies_at: int = -1, by: int = 0, seed: int = 0) -> None:
        self.computed: list[int] = []
        self.dies_at, self.by, self.seed = dies_at, by, seed
        spec = TensorSpec("", "uint8", (NUM_BYTES,))
        self.weights = [PackedWeight(replace(spec, name=f"w{i}"), self._computer(i)) for i in range(COUNT)]

    def _computer(self, index: int) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            if index == self.dies_at:
                os.kill(os.getpid(), self.by)
            self.computed.append(index)
            return np.full(NUM_BYTES, 16 * self.seed + index, np.uint8)

        return compute


def pack(work: Path, model: Model, origin: str = "source") -> None:
    artifact_writer.SHARD_BYTES = NUM_BYTES
    write_weights(work, model.weights, lambda num_bytes: None, origin)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_writer, "SHARD_BYTES", NUM_BYTES)


def interrupted(out: Path, at: int, by: str = "SIGKILL") -> Path:
    """The folder that a compile leaves which ends before weight `at`."""
    subprocess.run([sys.executable, "-c", DIES, str(out), str(at), by], capture_output=True, check=False)
    (left,) = out.parent.iterdir()
    return left


def go_on(out: Path, origin: str = "source", seed: int = 0) -> list[int]:
    """The weights that the next compile computes; it must come to what one alone would."""
    model = Model(seed=seed)
    with artifact_folder(out) as work:
        assert not (work / "lib.so").exists()
        pack(work, model, origin)
        assert [file.name for file in list_files(work, [])] == [f"weights-{i:05d}.safetensors" for i in range(1, COUNT + 1)]
        (work / "manifest.json").write_text("{}")
    assert not (out / RECORD).exists() and [path.name for path in out.parent.iterdir()] == [out.name]
    for i in range(COUNT):
        assert (out / f"weights-{i + 1:05d}.safetensors").read_bytes()[-NUM_BYTES:] == bytes([16 * seed + i]) * NUM_BYTES
    return model.computed


@pytest.mark.parametrize(("at", "by"), [(1, "SIGKILL"), (3, "SIGINT"), (COUNT, "SIGKILL")])
def test_finished_shards_are_kept(tmp_path: Path, at: int, by: str) -> None:
    interrupted(tmp_path / "a", at, by)
    assert go_on(tmp_path / "a") == list(range(at, COUNT))


def test_without_a_finished_shard_nothing_is_kept(tmp_path: Path) -> None:
    interrupted(tmp_path / "a", 0)
    assert go_on(tmp_path / "a") == list(range(COUNT))


def test_nothing_of_another_origin_is_believed(tmp_path: Path) -> None:
    interrupted(tmp_path / "a", 3)
    assert go_on(tmp_path / "a", "another source", seed=1) == list(range(COUNT))


def test_without_an_origin_nothing_is_recorded(tmp_path: Path) -> None:
    pack(tmp_path, Model(), "")
    assert not (tmp_path / RECORD).exists()


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": lambda left: flip(left / "weights-00002.safetensors"),
    "cut off": lambda left: os.truncate(left / "weights-00002.safetensors", NUM_BYTES),
    "longer": lambda left: os.truncate(left / "weights-00002.safetensors", 3 * NUM_BYTES),
    "gone": lambda left: (left / "weights-00002.safetensors").unlink(),
    "another's": lambda left: (left / "weights-00001.safetensors").replace(left / "weights-00002.safetensors"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_shard_is_packed_again(tmp_path: Path, what: str) -> None:
    DAMAGE[what](interrupted(tmp_path / "a", 3))
    assert go_on(tmp_path / "a") == ([0, 1, 3, 4] if what == "another's" else [1, 3, 4])


def test_half_a_record_spoils_no_other(tmp_path: Path) -> None:
    left = interrupted(tmp_path / "a", 3)
    record = left / RECORD
    record.write_bytes(record.read_bytes()[:-20] + b"\xff")
    assert go_on(tmp_path / "a") == [2, 3, 4]


@pytest.mark.parametrize("text", ["", "[]", "1\nnull\n{}", "\0" * 100, '{"name": "weights-00001.safetensors"}'])
def test_a_record_of_nothing_is_no_record(tmp_path: Path, text: str) -> None:
    (interrupted(tmp_path / "a", 3) / RECORD).write_text(text)
    assert go_on(tmp_path / "a") == list(range(COUNT))


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError), artifact_folder(tmp_path / "a") as work:
        pack(work, Model())
        assert (work / RECORD).exists()
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_shards_that_are_not_wanted_go(tmp_path: Path) -> None:
    left = interrupted(tmp_path / "a", 3)
    (left / "weights-00099.safetensors").write_text("foreign")
    (left / "folder").mkdir()
    assert go_on(tmp_path / "a") == [3, 4]


def test_leftovers_of_any_name_can_be_removed(tmp_path: Path) -> None:
    interrupted(tmp_path / "a", 3)
    (tmp_path / "mine").mkdir()
    with artifact_folder(tmp_path / "b"):
        remove_leftovers(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert len(names) == 2 and names[0].startswith(".b.") and names[1] == "mine"
        (tmp_path / names[0] / "manifest.json").write_text("{}")


def test_what_overflowed_is_packed_again_so_that_notes_say_so(tmp_path: Path) -> None:
    model = Model()
    model.weights[1:2] = [replace(model.weights[1], overflows={"w1": "3 values"})]
    pack(tmp_path, model)
    again = Model()
    pack(tmp_path, again)
    assert again.computed == [1]


def test_the_origin_is_the_sources_content_and_every_option() -> None:
    options = CompileOptions()
    origins = {origin_of("0", options), origin_of("1", options), origin_of("0", replace(options, quant="w4a8"))}
    assert len(origins) == 3 and origin_of("0", options) in origins
