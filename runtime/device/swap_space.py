"""The memory behind swap blocks: plain memory, or a file that nobody finds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from cupola.runtime.artifact.arrays import Array, numpy_dtype
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.errors import OptionError
from cupola.runtime.system.disk import reserve


class SwapSpace:
    """Room for the K/V of `num_blocks` blocks of each group outside the page pools. Memory is taken from the system only as it is written.

    Args:
        folder: where a file stands in for memory. It has no name, or on Windows one that goes with the process: nothing is left behind,
            however that ends.

    Raises:
        OptionError: if there can be no file in `folder`, or not so much memory.
    """

    def __init__(self, kv: KVSpec, num_blocks: Sequence[int], folder: Path | None = None) -> None:
        self.num_blocks, groups = tuple(num_blocks), range(len(kv.groups))
        self._sizes = [kv.group_bytes_per_block(group) for group in groups]
        self._starts = [0, *accumulate(size * count for size, count in zip(self._sizes, num_blocks, strict=True))]
        pools = [zip(kv.pools_of(group, 1), kv.block_axes(group), strict=True) for group in groups]
        self._pools = [[(_without(pool.shape, axis), numpy_dtype(pool.dtype)) for pool, axis in of_group] for of_group in pools]
        self._file, self._num_provided = None, [0 for _ in groups]
        num_bytes = self._starts[-1]
        try:
            if folder is None or not num_bytes:
                self._memory: Array = np.zeros(num_bytes, np.uint8)
            else:
                import tempfile  # here, since it is seldom wanted

                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as this object lives
                weakref.finalize(self, self._file.close)
                self._file.truncate(num_bytes)
                self._memory = np.memmap(self._file, np.uint8, mode="r+", shape=(num_bytes,))
        except MemoryError:
            raise OptionError(f"asks for {num_bytes} bytes, which are not to be had", field="swap_memory", fix="give less") from None
        except OSError as error:
            problem = f"{folder} can't hold a file of {num_bytes} bytes: {error.strerror}"
            raise OptionError(problem, field="swap_folder", fix="give a folder that can be written to, or less swap_memory") from None

    def provide(self, group: int, num_blocks: int) -> bool:
        """Makes sure that the first `num_blocks` blocks of a group can be written; False if the disk is full.

        A write to a mapped file for which the disk has no room would end the process, so the room is taken before.
        """
        num_provided = self._num_provided[group]
        if self._file is not None and num_blocks > num_provided:
            start, end = (self._starts[group] + count * self._sizes[group] for count in (num_provided, num_blocks))
            try:
                reserve(self._file, start, end - start)
            except OSError:
                return False
            self._num_provided[group] = num_blocks
        return True

    def block(self, group: int, index: int) -> list[Array]:
        """A block's part of every pool of its group, in the order of `KVSpec.pools`, shaped as the pool is without its axis of blocks."""
        parts, at = [], self._starts[group] + index * self._sizes[group]
        for shape, dtype in self._pools[group]:
            num_bytes = math.prod(shape) * dtype.itemsize
            parts.append(self._memory[at : at + num_bytes].view(dtype).reshape(shape))
            at += num_bytes
        return parts


def _without(shape: tuple[int | str, ...], axis: int) -> tuple[int, ...]:
    return tuple(int(size) for size in (*shape[:axis], *shape[axis + 1 :]))
