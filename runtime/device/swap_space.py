"""The memory behind swap blocks: plain memory, or a file that nobody finds."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives numpy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.errors import OptionError

Array = npt.NDArray[Any]


class SwapSpace:
    """Room for the K/V of `num_blocks` blocks outside the page pools. Memory is taken from the system only as blocks are written.

    Args:
        folder: where a file stands in for memory. It has no name, so that nothing is left behind however the process ends.

    Raises:
        OptionError: if there can be no file in `folder`, or not so much memory.
    """

    def __init__(self, kv: KVSpec, num_blocks: int, folder: Path | None = None) -> None:
        self.num_blocks, self._bytes_per_block = num_blocks, kv.bytes_per_block
        pools = zip(kv.pools(1), kv.block_axes(), strict=True)
        self._pools = [(_without(pool.shape, axis), np.dtype(pool.dtype)) for pool, axis in pools]
        self._file, self._num_provided = None, 0
        shape = num_blocks, kv.bytes_per_block
        try:
            if folder is None or not num_blocks:
                self._memory: Array = np.zeros(shape, np.uint8)
            else:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as this object lives
                weakref.finalize(self, self._file.close)
                self._file.truncate(num_blocks * kv.bytes_per_block)
                self._memory = np.memmap(self._file, np.uint8, mode="r+", shape=shape)
        except MemoryError:
            raise OptionError(f"asks for {math.prod(shape)} bytes, which are not to be had", field="swap_memory", fix="give less") from None
        except OSError as error:
            problem = f"{folder} can't hold a file of {math.prod(shape)} bytes: {error.strerror}"
            raise OptionError(problem, field="swap_folder", fix="give a folder that can be written to, or less swap_memory") from None

    def provide(self, num_blocks: int) -> bool:
        """Makes sure that the first `num_blocks` blocks can be written; False if the disk is full.

        A write to a mapped file for which the disk has no room would end the process, so the room is taken before.
        """
        if self._file is not None and num_blocks > self._num_provided:
            start, end = (count * self._bytes_per_block for count in (self._num_provided, num_blocks))
            try:
                os.posix_fallocate(self._file.fileno(), start, end - start)
            except OSError:
                return False
            self._num_provided = num_blocks
        return True

    def block(self, index: int) -> list[Array]:
        """A block's part of every pool, in the order of `KVSpec.pools`, shaped as the pool is without its axis of blocks."""
        parts, memory = [], self._memory[index]
        for shape, dtype in self._pools:
            num_bytes = math.prod(shape) * dtype.itemsize
            parts.append(memory[:num_bytes].view(dtype).reshape(shape))
            memory = memory[num_bytes:]
        return parts


def _without(shape: tuple[int | str, ...], axis: int) -> tuple[int, ...]:
    return tuple(int(size) for size in (*shape[:axis], *shape[axis + 1 :]))
