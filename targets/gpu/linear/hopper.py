"""Many rows of a linear layer on compute capability 9.0: bulk copies that complete barriers, and products of warpgroups.

x is rounded to memory as it lies in shared memory, so that a copy is one piece: blocks of 64 rows, of each chunk of 64 columns 128 bytes a
row, whose pieces of 16 bytes are exchanged as `hopper.cuh` says. Its columns stand in the order of the steps, so that the weight's words
are the same as for warps by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import WARP, call, synchronize
from cupola.targets.gpu.linear.fragments import MOST_FEW, Part, Sums
from cupola.targets.gpu.linear.stages import Stage
from cupola.targets.gpu.linear.tiles import COLUMNS, SLICE, STEP
from cupola.targets.gpu.units import MMA

_BLOCK = 64  # rows of x that lie together
_ALIGNMENT = 1024 // 4  # words, of rows in shared memory
_BARRIER = 2  # words
_TYPES = {"float16": "f16", "bfloat16": "bf16"}  # that are multiplied, in PTX
_COLUMNS = (32, 64)  # of the second matrix, rows of x


@dataclass(frozen=True)
class HopperStage(Stage):
    """As `Stage`: rows first, then tiles, scales and mins. Behind all stages lie their barriers. Multiplied by two groups of four warps."""

    @staticmethod
    def rounded_shape(count: Value, num_chunks: int) -> tuple[Value | int, ...]:
        """As `Stage`: blocks of rows, chunks, rows, words. There are none where nothing is rounded to memory."""
        blocks = (count + T.int64(_BLOCK - 1)) // T.int64(_BLOCK) * T.cast(T.int64(MOST_FEW) < count, "int64")
        return (blocks, num_chunks, _BLOCK, COLUMNS // 2)

    @staticmethod
    def store_rounded(rounded: Buffer, row: Value, chunk: Value, piece: int, part: Value, words: Buffer, start: int) -> None:
        """As `Stage`."""
        for i in range(4):
            exchanged = T.bitwise_xor(T.int64(4 * piece + i), row % 8)
            T.buffer_store(rounded, words[start + i], [row // _BLOCK, chunk, row % _BLOCK, exchanged * 4 + part])

    @property
    def words(self) -> int:
        """As `Stage`."""
        return -(-super().words // _ALIGNMENT) * _ALIGNMENT

    @property
    def shared_words(self) -> int:
        """As `Stage`."""
        return self.count * (self.words + _BARRIER)

    def _barrier(self, memory: Buffer, chunk: Value) -> Value:
        return T.address_of(memory[T.int64(self.count * self.words) + chunk % self.count * _BARRIER])

    def begin(self, memory: Buffer, thread: Value) -> None:
        """As `Stage`."""
        with T.If(thread == T.int64(0)), T.Then():
            for stage in range(self.count):
                call("make_barrier", self._barrier(memory, T.int64(stage)))
            call("publish_barriers")
        synchronize()

    def fetch(self, memory: Buffer, chunk: Value, end: int, tile: Value, row: Value, count: Value, thread: Value) -> None:
        """As `Stage`: the first warp does it."""
        weight, start, barrier, pieces = self.weight, self._start(chunk), self._barrier(memory, chunk), COLUMNS // SLICE
        blocks, scales = self.rows // _BLOCK, [held for held in (weight.scales, weight.mins) if held is not None]
        row_bytes, tile_bytes, scale_bytes = _BLOCK * COLUMNS * 2, weight.loads * WARP * 16, 8 * 4

        def copy(place: Value, size: int, source: Buffer, *index: Value | int) -> None:
            call("copy_bulk", T.address_of(memory[start + place]), T.address_of(source[index]), T.int32(size), barrier)

        with T.If(tvm.tirx.all(chunk < T.int64(end), thread < T.int64(WARP))), T.Then():
            with T.If(thread == T.int64(0)), T.Then():
                size = blocks * row_bytes + self.tiles * (tile_bytes + len(scales) * pieces * scale_bytes)
                call("expect_bytes", barrier, T.int32(size))
            T.evaluate(T.tvm_storage_sync("warp"))
            with T.If(thread < T.int64(blocks)), T.Then():
                last = (count - T.int64(1)) // _BLOCK
                copy(thread * (row_bytes // 4), row_bytes, self.rounded, T.min(row // _BLOCK + thread, last), chunk, 0, 0)
            with T.If(thread < T.int64(self.tiles)), T.Then():
                copy(
                    T.int64(self._tiles_at) + thread * (tile_bytes // 4),
                    tile_bytes,
                    weight.words,
                    self._existing(tile + thread),
                    chunk,
                    0,
                    0,
                    0,
                )
            for which, held in enumerate(scales):
                with T.If(thread < T.int64(self.tiles * pieces)), T.Then():
                    group = (pieces * chunk + thread % pieces) // T.int64(weight.group_size // SLICE)
                    place = T.int64(self._scales_at + which * self.tiles * 16) + thread * 8
                    copy(place, scale_bytes, held, self._existing(tile + thread // pieces), group, 0)

    def wait(self, memory: Buffer, chunk: Value, fetch: Callable[[], None]) -> None:
        """As `Stage`."""
        synchronize()
        fetch()
        call("wait_for_barrier", self._barrier(memory, chunk), T.cast(chunk // self.count % 2, "int32"))

    def multiply(self, memory: Buffer, chunk: Value, sums: Sums, pair: Sequence[Part], row: Value, lane: Value) -> None:
        """As `Stage`."""
        rows = T.address_of(memory[self._start(chunk) + row * (COLUMNS // 2)])
        fragments = [[part.fragments(piece) for part in pair] for piece in range(COLUMNS // SLICE)]
        function = f"multiply_{sums.groups * MMA.rows}_{self.weight.dtype}"
        call("begin_products")
        for piece, words in enumerate(fragments):
            for tile, (a, at) in enumerate(words):
                for step in range(SLICE // STEP):
                    call(function, sums.address(tile, 0), T.address_of(a[at + 4 * step]), rows, T.int32(piece * (SLICE // STEP) + step))
        call("commit_products")
        call("wait_for_products")


def product_functions() -> str:
    """Functions that multiply, behind those of `hopper.cuh`. Their names say how many columns the second matrix has."""
    return "\n".join(_product_function(dtype, short, columns) for dtype, short in _TYPES.items() for columns in _COLUMNS)


def _product_function(dtype: str, short: str, columns: int) -> str:
    sums = columns // 2
    d, a = (", ".join(f"%{i}" for i in range(*part)) for part in ((sums,), (sums, sums + 4)))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{short}.{short} {{{d}}}, {{{a}}}, %{sums + 4}, more, 1, 1, 0;"
    outputs, inputs = ", ".join(f'"+f"(d[{i}])' for i in range(sums)), ", ".join(f'"r"(a[{i}])' for i in range(4))
    return f"""DEVICE void multiply_{columns}_{dtype}(float *d, const int *a, const int *rows, int step) {{
  asm volatile("{{ .reg .pred more; setp.ne.b32 more, 1, 0; {instruction} }}" : {outputs} : {inputs}, "l"(descriptor(rows, step)));
}}
"""
