"""A library whose `forward` is CALLS stages, loaded and run by ctypes alone."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

WIDTH, CALLS = 257, 12


def expected(x: np.ndarray, calls: int = CALLS) -> np.ndarray:
    for _ in range(calls):
        x = x + 2 * (x + x[::-1])
    return x


class Library:
    """The library, and memory for one caller."""

    def __init__(self, file: Path, seed: int = 0, width: int = WIDTH) -> None:
        self.lib = ctypes.CDLL(str(file))
        self.lib.cupola_workspace_bytes.restype = ctypes.c_int64
        self.x = np.random.default_rng(seed).integers(-3, 3, width)
        self.out = np.zeros(width, np.int64)
        self.pointers = (ctypes.c_void_p * 2)(self.x.ctypes.data, self.out.ctypes.data)
        self.dims = (ctypes.c_int64 * 1)(width)
        size = self.lib.cupola_workspace_bytes(self.dims)
        self._memory = np.zeros(size + 64, np.uint8)
        self.workspace = ctypes.c_void_p(self._memory.ctypes.data + -self._memory.ctypes.data % 64)

    def run(self, times: int = 1, clock: object = None) -> int:
        self.out[:] = 0
        return int(self.lib.cupola_run(ctypes.c_int64(times), self.dims, self.pointers, self.workspace, clock))

    def is_right(self) -> bool:
        return self.run(2) == 0 and bool((self.out == expected(self.x)).all())

    def set_threads(self, count: int) -> int:
        return int(self.lib.cupola_set_threads(count))

    def set_power_saver(self, is_on: bool) -> None:
        self.lib.cupola_set_power_saver(ctypes.c_int32(is_on))

    def set_cores(self, *cores: int) -> None:
        self.lib.cupola_set_cores((ctypes.c_int32 * len(cores))(*cores), ctypes.c_int32(len(cores)))
