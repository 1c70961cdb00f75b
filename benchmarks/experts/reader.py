"""How fast threads read memory, by a plain loop: a buffer, or files where they lie in the page cache.

    python -m benchmarks.experts.reader FILE|FOLDER…

Where the page cache lies decides how fast a file is read: on one machine by 1.6 times, for as long as the file stays there. A copy lies
elsewhere. So what is compared must have been read at like rates.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from cupola.runtime.environment import num_threads

SOURCE = Path(__file__).with_name("read_memory.c")
SMALLEST = 16 << 20  # bytes of a file that is looked at
READS = 5


class Reader:
    """Reads as many bytes with as many threads as kernels have."""

    def __init__(self) -> None:
        with TemporaryDirectory() as folder:
            library = Path(folder) / "read_memory.so"
            subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", SOURCE, "-o", library], check=True)
            self._read = ctypes.CDLL(str(library)).read_seconds
        self._read.restype = ctypes.c_double

    def bytes_per_second(self, memory: npt.NDArray[Any]) -> float:
        """Of one reading: the faster of two ways."""
        place, size = ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes)
        return memory.nbytes / min(self._read(place, size, num_threads(), way) for way in range(2))


def file_rates(paths: Iterable[Path]) -> Iterator[tuple[Path, float]]:
    """Bytes a second of each file, and of the files in folders, that caches don't hold: the median of some readings."""
    reader = Reader()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.stat().st_size >= SMALLEST:
                with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    memory = np.frombuffer(mapped, np.uint64, file.stat().st_size // 8)
                    reader.bytes_per_second(memory)  # brings it into the page cache
                    yield file, statistics.median(reader.bytes_per_second(memory) for _ in range(READS))
                    del memory  # or the mapping could not be closed


if __name__ == "__main__":
    for found, rate in file_rates(map(Path, sys.argv[1:])):
        print(f"{rate / 1e9:5.1f} GB/s  {found}", flush=True)
