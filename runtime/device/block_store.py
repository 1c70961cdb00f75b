"""Blocks of K/V in files, so that the prefix cache outlives a process, and processes of one user share it.

    <folder>/<key>/<group>/<first byte of the name>/<name>      a header, and the block's part of every pool of its group

`key` stands for all that the numbers depend on: the artifact, the library that was chosen, what sequences forget. A block's name is the
chained hash of its tokens and of all before them. A file is written behind the engine's back under another name, which it changes when
it is whole; it is believed only if its header and its checksum (CRC-32, as gzip's) say so, and removed otherwise. The least recently used
files go when the folder holds more than it may.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cupola.runtime.device.memory import parse_bytes
from cupola.runtime.errors import OptionError
from cupola.runtime.system.disk import others_may_write

MAX_PENDING_BYTES = 256 << 20  # that wait to be written; what comes beyond is not kept
PAUSE = 60.0  # seconds without a try after the disk refused
KEPT_SHARE = 0.9  # of the folder's limit, when files are removed
ABANDONED = 3600.0  # seconds after which a file that was never finished is removed
KEY_BYTES = 16

_HEADER = struct.Struct("<8sIIQ16s16s")  # magic, version, checksum, size of what follows, key, name
_MAGIC, _VERSION = b"cupolaKV", 1
_PARTIAL = ".partial"
_OURS = re.compile(rf"[0-9a-f]{{32}}/[0-9]+/[0-9a-f]{{2}}/[0-9a-f]{{32}}(\.[0-9]+{re.escape(_PARTIAL)})?")  # below the folder
_log = logging.getLogger("cupola")


class StoreCounts(NamedTuple):
    """Counts since a store was opened: blocks that were read and written, found damaged, and given up because the disk was full or slow."""

    num_loaded: int = 0
    num_saved: int = 0
    num_damaged: int = 0
    num_skipped: int = 0


class BlockStore:
    """The blocks of one key in a folder. `load`, `save`, `has` and `touch` are for one thread; files are written by another.

    Args:
        folder: made if it is not there, readable by its user alone.
        num_bytes: the most that files of all keys may take in it.
        key: `KEY_BYTES` bytes.

    Raises:
        OptionError: naming cache_folder, if the folder can't be had, or others may write to it.
    """

    def __init__(self, folder: Path, num_bytes: int, key: bytes) -> None:
        _claim(folder)
        self._root, self._folder, self._key, self._limit = folder, os.path.join(folder, key.hex()), key, num_bytes
        self._buffer = bytearray()  # of `load`: memory that is new each time takes longer than reading
        self._pending: dict[tuple[int, bytes], bytes] = {}
        self._pending_bytes, self._paused_until = 0, 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._used: int | None = None  # bytes in the folder, by what this process knows
        self._num_loaded = self._num_saved = self._num_damaged = self._num_skipped = 0

    @property
    def counts(self) -> StoreCounts:
        """Counts of all that was done so far."""
        return StoreCounts(self._num_loaded, self._num_saved, self._num_damaged, self._num_skipped)

    def has(self, group: int, name: bytes) -> bool:
        """True if there is a file of that name, or will be. Whether it is sound is seen when it is read."""
        return (group, name) in self._pending or os.path.exists(self._path(group, name))

    def touch(self, group: int, name: bytes) -> bool:
        """Takes note that a block was of use; False if it isn't there."""
        try:
            os.utime(self._path(group, name))
        except OSError:
            return (group, name) in self._pending
        return True

    def newest(self) -> list[tuple[int, bytes]]:
        """Groups and names of all that is there under this key, what was of use last first."""
        paths = (file.path.split(os.sep) for file in sorted(_files(self._root), reverse=True))
        key = self._key.hex()
        return [(int(path[-3]), bytes.fromhex(path[-1])) for path in paths if path[-4] == key and not path[-1].endswith(_PARTIAL)]

    def load(self, group: int, name: bytes) -> bytes | memoryview | None:
        """The numbers of a block, valid until the next call; None if it isn't there or isn't sound, in which case it is removed."""
        with self._lock:
            pending = self._pending.get((group, name))
        if pending is not None:
            return pending
        path = self._path(group, name)
        try:
            data = self._read(path)
        except OSError:
            return None
        if not self._is_sound(data, name):
            self._num_damaged += 1
            with suppress(OSError):  # another process was faster, or the folder can't be written to: it is not believed then, either
                os.unlink(path)
            return None
        self._num_loaded += 1
        return data[_HEADER.size :]

    def _read(self, path: str) -> memoryview:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            data = memoryview(self._buffer)[:size]
            num_read = 0
            while count := file.readinto(data[num_read:]):
                num_read += count
            return data[:num_read]

    def save(self, group: int, name: bytes, data: bytes) -> None:
        """Has a block written by and by. Where the disk is full or too slow, it is left out."""
        with self._lock:
            if (group, name) in self._pending:
                return
            if self._pending_bytes + len(data) > MAX_PENDING_BYTES or time.monotonic() < self._paused_until:
                self._num_skipped += 1
                return
            self._pending[group, name] = data
            self._pending_bytes += len(data)
            if self._thread is None:  # no daemon: the interpreter waits for it when it ends
                self._thread = threading.Thread(target=self._write_pending, name="block-store")
                self._thread.start()

    def flush(self) -> None:
        """Waits until all that was saved is written or given up."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _path(self, group: int, name: bytes) -> str:
        text = name.hex()
        return f"{self._folder}{os.sep}{group}{os.sep}{text[:2]}{os.sep}{text}"

    def _is_sound(self, data: memoryview, name: bytes) -> bool:
        if len(data) < _HEADER.size:
            return False
        *begin, checksum, size, key, its_name = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        expected = begin == [_MAGIC, _VERSION] and size == len(body) and key == self._key and its_name == name
        return expected and checksum == _checksum(key, its_name, body)

    def _write_pending(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._thread = None
                    return
                (group, name), data = next(iter(self._pending.items()))
            try:
                self._write(Path(self._path(group, name)), name, data)
                self._num_saved += 1
            except OSError as error:
                self._give_up(error)
                continue
            with self._lock:
                del self._pending[group, name]
                self._pending_bytes -= len(data)

    def _give_up(self, error: OSError) -> None:
        """Leaves out what waits, and what comes in the next seconds."""
        with self._lock:
            self._num_skipped += len(self._pending)
            self._pending.clear()
            self._pending_bytes, self._paused_until = 0, time.monotonic() + PAUSE
        problem = f"{error.filename or self._root}: {error.strerror or error}"
        _log.warning("the prefix cache on disk pauses for %d seconds: %s", PAUSE, problem)

    def _write(self, path: Path, name: bytes, data: bytes) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, _VERSION, _checksum(self._key, name, data), len(data), self._key, name))
                file.write(data)
            _put(partial, path)
        except OSError:
            with suppress(OSError):  # the first error is the one to tell
                partial.unlink()
            raise
        self._keep_limit(_HEADER.size + len(data))

    def _keep_limit(self, num_new_bytes: int) -> None:
        """Counts what was written, and removes the least recently used files when that is too much."""
        self._used = None if self._used is None else self._used + num_new_bytes
        if self._used is not None and self._used <= self._limit:
            return
        files = sorted(_files(self._root))
        self._used = sum(file.num_bytes for file in files)
        if self._used <= self._limit:
            return
        for file in files:
            if self._used <= self._limit * KEPT_SHARE:
                break
            with suppress(OSError):  # another process was faster
                os.unlink(file.path)
            self._used -= file.num_bytes


def make_block_store(folder: str | Path | None, size: int | str, key: bytes, *, enable_prefix_caching: bool) -> BlockStore | None:
    """The store that a user asks for; None if no folder is given. Raises OptionError, also if the size is malformed."""
    num_bytes = parse_bytes(size, "cache_size")
    if folder is None:
        return None
    if not enable_prefix_caching:
        raise OptionError("is of no use without prefix caching", field="cache_folder", fix="leave enable_prefix_caching on")
    return BlockStore(Path(folder), num_bytes, key)


class _File(NamedTuple):
    used: float
    path: str
    num_bytes: int


def _files(folder: Path) -> list[_File]:
    """All of a folder's files that a store made, and no others: it may be a user's. Those that were never finished are removed."""
    found, latest = [], time.time() - ABANDONED
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if not _OURS.fullmatch(os.path.relpath(path, folder).replace(os.sep, "/")):
                continue
            with suppress(OSError):  # removed meanwhile
                status = os.stat(path)
                if name.endswith(_PARTIAL) and status.st_mtime < latest:
                    os.unlink(path)
                else:
                    found.append(_File(status.st_mtime, path, status.st_size))
    return found


def _put(partial: Path, path: Path) -> None:
    """Gives a finished file its name. Windows replaces no file that is being read: then that one stays, which holds the same."""
    try:
        partial.replace(path)
    except PermissionError:
        if not path.exists():
            raise
        partial.unlink()


def _claim(folder: Path) -> None:
    """Makes a folder that its user alone may write to, or sees that one is such. Raises OptionError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_foreign = others_may_write(folder)
    except OSError as error:
        raise OptionError(f"{folder} can't be used: {error.strerror}", field="cache_folder", fix="give a folder of your own") from None
    if is_foreign or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        problem = f"{folder} is not this user's alone to write to, and who writes there can put words into answers"
        raise OptionError(problem, field="cache_folder", fix="give another folder, or take others' rights to it away (chmod go-w)")
    if is_foreign is None:
        _log.warning("%s: this system does not say who else may write there; who does can put words into answers", folder)


def _checksum(key: bytes, name: bytes, data: bytes | memoryview) -> int:
    return zlib.crc32(data, zlib.crc32(key + name))
