"""Files of K/V blocks: what is written comes back, what was damaged or is another's is never believed, the folder keeps its limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola.runtime.device import block_store
from cupola.runtime.device.block_store import BlockStore, make_block_store
from cupola.runtime.errors import OptionError
from tests.systems import needs

KEY, OTHER, DATA = b"k" * 16, b"o" * 16, bytes(range(256)) * 4
NAMES = [bytes([i]) * 16 for i in range(40)]


def store_at(folder: Path, size: int = 1 << 20, key: bytes = KEY) -> BlockStore:
    return BlockStore(folder, size, key)


def saved(folder: Path, names: list[bytes] = NAMES[:1]) -> Path:
    """The file of the first of these names, all of which are saved."""
    store = store_at(folder)
    for name in names:
        store.save(0, name, DATA)
    store.flush()
    return folder / KEY.hex() / "0" / names[0].hex()[:2] / names[0].hex()


def test_a_block_comes_back_in_another_process(tmp_path):
    saved(tmp_path)
    code = (
        "import sys, pathlib; from cupola.runtime.device.block_store import BlockStore; "
        f"sys.stdout.buffer.write(BlockStore(pathlib.Path(sys.argv[1]), 1, {KEY!r}).load(0, {NAMES[0]!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True)
    assert found.stdout == DATA


def test_a_block_is_there_before_it_is_written(tmp_path):
    store = store_at(tmp_path)
    store.save(0, NAMES[0], DATA)
    assert store.has(0, NAMES[0]) and store.load(0, NAMES[0]) == DATA
    assert not store.has(1, NAMES[0]) and store.load(0, NAMES[1]) is None and not store.touch(0, NAMES[1])
    store.flush()
    assert store.load(0, NAMES[0]) == DATA and store.counts.num_saved == 1


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"bit at {at}": lambda data, at=at: flipped(data, at) for at in (0, 8, 12, 16, 24, 40, 56, 700, 1079)},  # type: ignore[misc]
    "cut": lambda data: data[:-1],
    "cut in the header": lambda data: data[:30],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"\0",
    "a hole": lambda data: data[:100] + bytes(200) + data[300:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_believed_and_removed(tmp_path, damage):
    file = saved(tmp_path)
    assert file.stat().st_size == 1080
    file.write_bytes(damage(file.read_bytes()))
    store = store_at(tmp_path)
    assert store.load(0, NAMES[0]) is None and store.counts.num_damaged == 1
    assert not file.exists() and not store.has(0, NAMES[0])


def test_a_file_of_another_key_or_name_is_not_believed(tmp_path):
    file = saved(tmp_path)
    for key, name in ((OTHER, NAMES[0]), (KEY, NAMES[1])):
        place = tmp_path / key.hex() / "0" / name.hex()[:2] / name.hex()
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        assert store_at(tmp_path, key=key).load(0, name) is None
    assert store_at(tmp_path).load(0, NAMES[0]) == DATA


def test_what_is_longest_out_of_use_goes_first(tmp_path):
    file = saved(tmp_path, NAMES)
    for age, name in enumerate(reversed(NAMES)):
        os.utime(tmp_path / KEY.hex() / "0" / name.hex()[:2] / name.hex(), (1e9 - age, 1e9 - age))
    store = store_at(tmp_path, 20 * 1080)
    assert store.touch(0, NAMES[0])
    store.save(0, b"x" * 16, DATA)
    store.flush()
    left = [name for name in NAMES if store.has(0, name)]
    assert left == [NAMES[0], *NAMES[-16:]] and file.exists()  # 0.9 of 20 files, the new one among them


def test_what_nobody_finished_goes(tmp_path):
    file = saved(tmp_path)
    old, young = (file.with_name(f"{name.hex()}.1.partial") for name in NAMES[2:4])
    for partial in (old, young):
        partial.write_bytes(DATA)
    os.utime(old, (1e9, 1e9))
    store = store_at(tmp_path)
    store.save(0, NAMES[1], DATA)
    store.flush()
    assert not old.exists() and young.exists() and store.load(0, NAMES[0]) == DATA


def test_files_that_are_none_of_the_stores_stay_where_they_are(tmp_path):
    folder = saved(tmp_path).parent
    others = [tmp_path / "thesis.txt", tmp_path / "thesis.partial", folder / "thesis.txt", tmp_path / "deep" / "0" / "00" / ("0" * 32)]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(DATA)
        os.utime(other, (1e9, 1e9))
    store = store_at(tmp_path, 1)
    store.save(0, NAMES[1], DATA)
    store.flush()
    assert all(other.read_bytes() == DATA for other in others) and not store.has(0, NAMES[0]) and store.newest() == []


def test_where_nothing_can_be_written_nothing_is_lost_but_the_cache(tmp_path, caplog):
    (tmp_path / KEY.hex()).write_text("a file where a folder should be")
    store = store_at(tmp_path)
    for name in NAMES:
        store.save(0, name, DATA)
    store.flush()
    assert store.load(0, NAMES[0]) is None and store.counts.num_saved == 0 and store.counts.num_skipped == len(NAMES)
    assert caplog.text.count("pauses for 60 seconds") == 1 and KEY.hex() in caplog.text
    (tmp_path / KEY.hex()).unlink()
    store._paused_until = 0.0
    store.save(0, NAMES[0], DATA)
    store.flush()
    assert store.load(0, NAMES[0]) == DATA


def test_a_full_disk_leaves_no_half_file(tmp_path):
    code = (
        "import resource, signal, sys, pathlib; from cupola.runtime.device.block_store import BlockStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"store = BlockStore(pathlib.Path(sys.argv[1]), 1 << 20, {KEY!r}); store.save(0, {NAMES[0]!r}, bytes(5000)); store.flush()\n"
        "print(store.counts.num_skipped)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n" and "File too large" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_is_too_slow_costs_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(block_store, "MAX_PENDING_BYTES", 2 * len(DATA))
    store = store_at(tmp_path)
    with store._lock:
        store._thread = object()  # one that never comes to it
    for name in NAMES[:5]:
        store.save(0, name, DATA)
    assert store.counts.num_skipped == 3 and store.has(0, NAMES[1]) and not store.has(0, NAMES[2])


@needs("modes of files")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(OptionError, match="cache_folder"):
        store_at(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OptionError, match="cache_folder"):
        store_at(file)
    made = tmp_path / "new" / "folder"
    store_at(made)
    assert made.stat().st_mode & 0o777 == 0o700


def test_options_are_refused_by_name(tmp_path):
    with pytest.raises(OptionError, match="cache_size"):
        make_block_store(tmp_path, "much", KEY, enable_prefix_caching=True)
    with pytest.raises(OptionError, match="cache_folder"):
        make_block_store(tmp_path, "1GB", KEY, enable_prefix_caching=False)
    assert make_block_store(None, "1GB", KEY, enable_prefix_caching=False) is None
