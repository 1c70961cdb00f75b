"""How attention shares out a context: chunks of one size for blocks of threads, and rows of keys and values for the lanes of a warp."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Value
from cupola.targets.gpu.emit import WARP

CHUNK = 256  # tokens, from multiples of it on
WARPS = 4  # of a block
MOST_SPLIT = 1024  # pairs of sequences and heads whose chunks go to blocks of their own; more fill any GPU. `matrix.cuh` counts for so many
WORDS = 4  # in 16 bytes
_IN_FLIGHT = 4  # loads of 16 bytes that a lane asks for before it multiplies
_MOST_HEADS = 8  # of a block
_MOST_SUMS = 64  # registers of a lane
_MOST_NUMBERS = 1024  # of the block's heads


@dataclass(frozen=True)
class Lanes:
    """How a warp reads rows of a pool, of `dim` numbers: as many lanes as a power of two take a row, 16 bytes at a time in turns."""

    dim: int
    dtype: str
    most: int = _IN_FLIGHT  # loads that are in flight

    @staticmethod
    def of_keys(kernel: AttentionShape) -> Lanes:
        """Rows of keys."""
        return Lanes(kernel.key_dim, kernel.kv_dtype)

    @staticmethod
    def of_values(kernel: AttentionShape) -> Lanes:
        """Rows of values; beside many sums there is room for fewer loads."""
        lanes = Lanes(kernel.value_dim, kernel.kv_dtype)
        return lanes if heads_of(kernel)[0] * lanes.pieces * lanes.piece <= _MOST_SUMS // 2 else replace(lanes, most=_IN_FLIGHT // 2)

    @property
    def per_word(self) -> int:
        """Numbers in a word of 4 bytes."""
        return 4 // _bytes(self.dtype)

    @property
    def piece(self) -> int:
        """Numbers in 16 bytes."""
        return WORDS * self.per_word

    @property
    def lanes(self) -> int:
        """Lanes that a row takes."""
        return min(WARP, 1 << (self.dim // self.piece - 1).bit_length())

    @property
    def pieces(self) -> int:
        """Loads of a lane; some of them may lie behind the row's end."""
        return -(-self.dim // (self.piece * self.lanes))

    @property
    def padded(self) -> int:
        """Numbers of a row with those behind its end."""
        return self.pieces * self.lanes * self.piece

    @property
    def at_once(self) -> int:
        """Rows that a warp reads at once."""
        return WARP // self.lanes

    @property
    def in_flight(self) -> int:
        """Rows of a lane that are read before it multiplies."""
        return max(1, min(self.most // self.pieces, CHUNK // (WARPS * self.at_once)))

    @property
    def step(self) -> int:
        """Rows that a block reads before it multiplies."""
        return WARPS * self.at_once * self.in_flight

    def place(self, d: Value) -> Value:
        """Where a number lies in an order in which lanes find their numbers side by side."""
        c, word = d // self.piece, d % self.piece // self.per_word
        return ((c // self.lanes * WORDS + word) * self.lanes + c % self.lanes) * self.per_word + d % self.per_word

    def word(self, piece: int, word: int, lane: Value) -> Value:
        """The place of the first number of a lane's word."""
        return (T.int64((piece * WORDS + word) * self.lanes) + lane % self.lanes) * self.per_word

    def column(self, piece: int, lane: Value) -> Value:
        """The first number of a lane's piece; behind the row's end that of the last one."""
        return T.min(T.int64(piece * self.lanes) + lane % self.lanes, T.int64(self.dim // self.piece - 1)) * self.piece


def _bytes(dtype: str) -> int:
    return ITEM_BYTES[dtype]


def takes(kernel: AttentionShape) -> bool:
    """True if rows of the pools are whole pieces of 16 bytes."""
    return all(dim * _bytes(kernel.kv_dtype) % 16 == 0 and dim <= 256 for dim in (kernel.key_dim, kernel.value_dim))


def heads_of(kernel: AttentionShape) -> tuple[int, int]:
    """Query heads of a block, and blocks that share the heads of a K/V head."""
    values, all_heads = Lanes(kernel.value_dim, kernel.kv_dtype), kernel.num_heads // kernel.num_kv_heads
    sums = values.piece * values.pieces
    most = max(1, min(_MOST_HEADS, _MOST_SUMS // sums, _MOST_NUMBERS // max(kernel.key_dim, kernel.value_dim)))
    parts = -(-all_heads // most)
    return -(-all_heads // parts), parts


def is_split_for(kernel: AttentionShape, batch: Value) -> Value:
    """1 if chunks go to blocks of their own, else 0."""
    most = MOST_SPLIT // (kernel.num_kv_heads * heads_of(kernel)[1])
    return T.int64(2 * most) // (batch + T.int64(most))


def num_chunks(kernel: AttentionShape, max_blocks: Value) -> Value:
    """Chunks that a sequence may have, at most, or that a window touches."""
    chunks = (max_blocks * kernel.block_size + T.int64(CHUNK - 1)) // T.int64(CHUNK)
    if not kernel.window:
        return chunks
    most = T.int64((kernel.window + CHUNK - 2) // CHUNK + 1)
    return chunks * T.cast(chunks <= most, "int64") + most * T.cast(most < chunks, "int64")


def workspace_shape(kernel: AttentionShape, batch: Value, max_blocks: Value) -> tuple[Value | int, ...]:
    """Of what blocks leave for who merges: for each sequence, query head and chunk the weighted sum of values, the highest score, and
    the sum of weights."""
    chunks = (max_blocks * kernel.block_size + T.int64(CHUNK - 1)) // T.int64(CHUNK)
    return (batch * is_split_for(kernel, batch), kernel.num_heads, chunks, kernel.value_dim + 2)
