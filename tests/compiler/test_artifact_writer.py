from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors import safe_open

from cupola.compiler import artifact_writer
from cupola.compiler.artifact_writer import PIECE_BYTES, Pieces, list_files, write_weights
from cupola.compiler.weights import PackedWeight
from cupola.runtime.artifact.folder import sha256_of
from cupola.runtime.artifact.tensors import TensorSpec

DTYPES = ("float32", "float16", "bfloat16", "int8")


def packed(name: str, array: np.ndarray) -> PackedWeight:
    return PackedWeight(TensorSpec(name, str(array.dtype), array.shape), lambda: array)


def silent(_: int) -> None:
    pass


def array(dtype: str, *shape: int) -> np.ndarray:
    values = np.arange(np.prod(shape)).reshape(shape)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), arrays_of.array_shapes(min_dims=0, max_dims=3, max_side=9)), max_size=8))
def test_the_safetensors_library_reads_what_is_written(tmp_path_factory: pytest.TempPathFactory, kinds: list) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    arrays = {f"weight.{i}": array(dtype, *shape) for i, (dtype, shape) in enumerate(kinds)}
    places, files = write_weights(folder, [packed(name, value) for name, value in arrays.items()], silent)
    assert [place.name for place in places] == list(arrays)
    for file in files:
        assert (file.num_bytes, file.sha256) == ((folder / file.name).stat().st_size, sha256_of(folder / file.name))
    for place in places:
        with safe_open(folder / place.file, "torch") as shard:
            read = shard.get_tensor(place.name)
        assert tuple(read.shape) == place.shape == arrays[place.name].shape
        raw = (folder / place.file).read_bytes()[place.offset :][: arrays[place.name].nbytes]
        assert raw == arrays[place.name].tobytes() and str(arrays[place.name].dtype) == place.dtype
        np.testing.assert_array_equal(read.float().numpy(), arrays[place.name].astype("float32"))


def test_files_are_written_by_large_pages() -> None:
    written: list[bytes] = []

    class Stream(io.BytesIO):
        def write(self, data: bytearray) -> int:  # type: ignore[override]
            written.append(bytes(data))
            return len(written[-1])

    pieces, data = Pieces(Stream()), np.random.default_rng(0).bytes(3 * PIECE_BYTES)
    sizes = (100, 5, PIECE_BYTES, 0, PIECE_BYTES - 105, 1, 7)
    for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        pieces.write(data[start : start + size])
    pieces.flush()
    assert list(map(len, written)) == [PIECE_BYTES, PIECE_BYTES, 8]
    assert b"".join(written) == data[: sum(sizes)]


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 300)), min_size=1, max_size=12))
def test_weights_start_where_their_items_may(tmp_path_factory: pytest.TempPathFactory, kinds: list) -> None:
    """At multiples of 64, as far as sizes are: else at one of the item's size, whatever the neighbours are."""
    folder = tmp_path_factory.mktemp("artifact")
    weights = [packed(f"w{i}", array(dtype, size)) for i, (dtype, size) in enumerate(kinds)]
    places, _ = write_weights(folder, weights, silent)
    for place, weight in zip(places, weights, strict=True):
        assert place.offset % np.gcd(weight.spec.num_bytes, 64) == 0


def test_shards_stay_below_the_limit_unless_one_weight_is_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_writer, "SHARD_BYTES", 1024)
    sizes = [128, 64, 512, 16, 16]
    weights = [packed(f"w{i}", array("float32", size)) for i, size in enumerate(sizes)]
    places, files = write_weights(tmp_path, weights, silent)
    by_file: dict[str, int] = {}
    for place, weight in zip(places, weights, strict=True):
        by_file[place.file] = by_file.get(place.file, 0) + weight.spec.num_bytes
    assert len(files) == len(by_file) == 3 and sorted(by_file.values()) == [128, 768, 2048]
    assert len({file.name for file in files}) == 3


def test_progress_counts_every_byte_and_weights_are_computed_in_turn(tmp_path: Path) -> None:
    alive: list[str] = []

    def computing(name: str) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            alive.append(name)
            return array("float32", 32)

        return compute

    weights = [PackedWeight(TensorSpec(name, "float32", (32,)), computing(name)) for name in "abc"]
    done: list[tuple[int, int]] = []
    write_weights(tmp_path, weights, lambda num_bytes: done.append((len(alive), num_bytes)))
    assert done == [(1, 128), (2, 128), (3, 128)]


def test_every_file_is_listed_with_its_hash_and_folders_are_not(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"code")
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir" / "00_pass.py").write_text("dump")
    _, shards = write_weights(tmp_path, [packed("w", array("float32", 4))], silent)
    listed = {file.name: file.sha256 for file in list_files(tmp_path, shards)}
    assert listed == {"lib.so": hashlib.sha256(b"code").hexdigest(), shards[0].name: sha256_of(tmp_path / shards[0].name)}


def test_the_header_is_padded_with_spaces(tmp_path: Path) -> None:
    (place,), _ = write_weights(tmp_path, [packed("ü.weight", array("int8", 3))], silent)
    content = (tmp_path / place.file).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert place.offset == 8 + length and place.offset % 64 == 0
    assert json.loads(content[8 : 8 + length])["ü.weight"]["data_offsets"] == [0, 3]
