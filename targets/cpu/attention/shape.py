"""Definitions that the parts of the attention kernel share: its shape, its arguments, and how its work is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from tvm.tirx.script import builder as T

from cupola.targets.attention_shape import AttentionShape
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, name
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.rows.rotary import Rotation
from cupola.targets.cpu.state_layout import side_of

BLOCK_TILES = 16  # of several tokens' rows, at most, for which a chunk is taken out of the pages once
CHUNK = 128  # keys a softmax step takes; pages of another size bring it to a whole number of pages, or parts of one


@dataclass(frozen=True)
class Kernel(AttentionShape):
    """The parameters of an attention kernel: its shape, and the instruction set."""

    isa: ISA

    @property
    def heads_per_group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def rotation(self) -> Rotation:
        """The rotation of a head of q or k."""
        return Rotation(self.key_dim, self.rotary_dim, self.interleaved)

    @property
    def is_quantized(self) -> bool:
        """True if pages hold codes, with scales beside them."""
        return self.kv_dtype == "int8"

    @property
    def side(self) -> int:
        """Numbers that lie side by side in a page: dimensions of a key, keys of a value's dimension."""
        return 1 if self.is_latent else side_of(self.isa, self.kv_dtype, self.key_dim, self.block_size)

    @property
    def pairs_bf16(self) -> bool:
        """True if pairs of bfloat16 are multiplied."""
        return self.side == 2 and not self.is_quantized

    @property
    def tile_rows(self) -> int:
        """Rows of a tile of several tokens; more of them share latents that were turned, one vector at a time."""
        return self.isa.num_registers // 2 if self.is_latent else self.isa.row_tile

    @property
    def token_rows(self) -> int:
        """Rows of a tile of a sequence that brings one token, as in decoding."""
        return min(self.heads_per_group, self.tile_rows)

    @cached_property
    def chunk(self) -> int:
        """Keys a chunk: a multiple of the vector, and of the block or a divisor of it if that is possible."""
        block, lanes = self.block_size, self.isa.lanes
        if block <= CHUNK:
            return CHUNK // block * block if block % lanes == 0 else CHUNK
        return max((size for size in range(lanes, CHUNK + 1, lanes) if block % size == 0), default=CHUNK)

    @property
    def in_tiles(self) -> bool:
        """True if many rows are multiplied in bfloat16: where it holds the pages' numbers and these come in whole tiles."""
        fits = self.keys_in_vectors and self.key_dim % (32 if self.is_latent else 2) == 0 and self.value_dim % 32 == 0
        return self.isa.bf16_tiles and self.kv_dtype in ("bfloat16", "int8") and fits

    @property
    def decodes_in_tiles(self) -> bool:
        """True if 16 heads of one token are multiplied in bfloat16, too: where they share rows that lie as tiles want them."""
        heads_fit = self.token_rows == 16
        return self.is_latent and self.in_tiles and self.kv_dtype == "bfloat16" and self.chunk % 32 == 0 and heads_fit

    @property
    def task_rows(self) -> int:
        """Rows of a task of a sequence of several tokens, at most."""
        return 128 if self.in_tiles else BLOCK_TILES * self.tile_rows

    @property
    def keys_in_vectors(self) -> bool:
        """True if a vector of keys lies in one page."""
        return self.block_size % self.isa.lanes == 0

    @property
    def copies_keys(self) -> bool:
        """True if a chunk's keys are copied together for any tile, from pages that do not hold vectors of them."""
        return self.is_latent or not self.keys_in_vectors

    def vectors_beside(self, rows: int, available: int) -> int:
        """Vectors of columns, a power of two that divides `available`, that fit the registers beside `rows` rows of accumulators."""
        fitting = (size for size in (1, 2, 4, 8) if available % size == 0 and (rows + 1) * size + 1 <= self.isa.num_registers)
        return max(fitting, default=1)

    def part_of(self, chunk: Value, begin: Value, end: Value) -> tuple[Value, Value]:
        """The part of a chunk that lies in the positions from `begin` to `end`, counted from its first."""
        at = name(chunk * self.chunk)
        return name(T.max(begin - at, T.int64(0))), name(T.min(end - at, T.int64(self.chunk)))

    def strip(self, rows: int) -> int:
        """Keys that are multiplied at once beside `rows` rows."""
        return self.vectors_beside(rows, self.chunk // self.isa.lanes) * self.isa.lanes

    def padded(self, rows: int) -> int:
        """`rows`, rounded up to whole vectors."""
        return -(-rows // self.isa.lanes) * self.isa.lanes

    def state_size(self, rows: int) -> int:
        """Floats of the state of a tile's softmax: maxima and totals of the rows (padded), then the rows' sums of values."""
        return 2 * self.padded(rows) + rows * self.value_dim


@dataclass(frozen=True)
class Tensors:
    """The arguments of one kernel. `sizes` are tokens, sequences, blocks of the pool, and blocks of a table's row.

    Where keys are values too, the pages and scales of both are the same.
    """

    kernel: Kernel
    simd: Simd
    q: Buffer
    k: Buffer
    v: Buffer | None
    cos: Buffer | None
    sin: Buffer | None
    k_pages: Buffer
    v_pages: Buffer
    k_scales: Buffer | None
    v_scales: Buffer | None
    slots: Buffer
    query_starts: Buffer
    context_lens: Buffer
    block_tables: Buffer
    slopes: Buffer | None
    sinks: Buffer | None
    layer: Value
    out: Buffer
    sizes: tuple[Value, Value, Value, Value]

    @property
    def pools(self) -> list[Buffer]:
        """Pages and scales, each once."""
        pools = [self.k_pages, self.k_scales] if self.kernel.is_latent else [self.k_pages, self.v_pages, self.k_scales, self.v_scales]
        return [pool for pool in pools if pool is not None]

    def num_tokens(self, sequence: Value) -> Value:
        """New tokens of a sequence."""
        return T.cast(self.query_starts[sequence + 1] - self.query_starts[sequence], "int64")

    def context(self, sequence: Value) -> Value:
        """Tokens of a sequence, the new ones included."""
        return T.cast(self.context_lens[sequence], "int64")

    def place_of(self, sequence: Value, position: Value) -> tuple[Value, Value]:
        """The block that holds a position, and the offset in it. Of positions that are never used (before the window, past the end) the
        block is some block of the pool."""
        _, _, blocks, max_blocks = self.sizes
        column = T.min(position // self.kernel.block_size, max_blocks - 1)
        block = name(T.max(T.int64(0), T.min(T.cast(self.block_tables[sequence, column], "int64"), blocks - 1)))
        return block, name(position % self.kernel.block_size)
