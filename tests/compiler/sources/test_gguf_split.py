"""Models in several files, as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from cupola.compiler.sources import fingerprint, open_source
from cupola.compiler.sources.gguf_split import split_files
from cupola.runtime.errors import SourceError


def write_parts(whole: Path, folder: Path, count: int, wrong: dict[str, int] | None = None) -> list[Path]:
    """Splits a file: metadata in the first part, tensors in all; `wrong` replaces what the first part states."""
    folder.mkdir(exist_ok=True)
    reader = gguf.GGUFReader(whole)
    paths = [folder / f"tiny-{number + 1:05}-of-{count:05}.gguf" for number in range(count)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, each in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    sub = each.types[-1] if each.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, each.contents(), each.types[0], sub)
        stated = {"no": number, "count": count, "tensors.count": len(reader.tensors)} | (wrong or {} if number == 0 else {})
        writer.add_uint16("split.no", stated["no"])
        writer.add_uint16("split.count", stated["count"])
        writer.add_int32("split.tensors.count", stated["tensors.count"])
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("opened", [0, 2])
def test_any_part_opens_the_whole(tiny_gguf: Path, tmp_path: Path, opened: int) -> None:
    whole, split = open_source(tiny_gguf), open_source(write_parts(tiny_gguf, tmp_path, 3)[opened])
    assert split.config == whole.config and split.tokenizer_json == whole.tokenizer_json and split.notes == whole.notes
    assert split.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(split.tensors[name].load(), tensor.load())


def test_a_change_of_any_part_is_another_source(tiny_gguf: Path, tmp_path: Path) -> None:
    paths = write_parts(tiny_gguf, tmp_path, 2)
    before, key = open_source(paths[0]).sha256, fingerprint(paths[0])
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data + b"\0")
    assert open_source(paths[0]).sha256 != before and fingerprint(paths[0]) != key


def test_parts_that_do_not_fit_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    paths = write_parts(tiny_gguf, tmp_path, 3)
    moved = paths[1].rename(tmp_path / "away.gguf")
    with pytest.raises(SourceError, match=r"tiny-00002-of-00003\.gguf: is missing"):
        open_source(paths[0])
    with pytest.raises(SourceError, match=r"away\.gguf: split\.count: the file is one of 3, and its name says 1"):
        open_source(moved)
    shutil.copy(paths[2], paths[1])
    with pytest.raises(SourceError, match=r"tiny-00002-of-00003\.gguf: split\.no: is 2, not 1"):
        open_source(paths[0])
    for field, message in (("count", r"split\.count: the file is one of 99"), ("tensors.count", r"tensors\.count: is 99, and there are")):
        with pytest.raises(SourceError, match=message):
            open_source(write_parts(tiny_gguf, tmp_path / field, 2, {field: 99})[0])


def test_the_name_says_which_files() -> None:
    assert split_files(Path("/a/b-00002-of-00002.gguf")) == (Path("/a/b-00001-of-00002.gguf"), Path("/a/b-00002-of-00002.gguf"))
    for name in ("b.gguf", "b-00003-of-00002.gguf", "b-1-of-2.gguf"):
        assert split_files(Path(name)) == (Path(name),)
