"""How K and V lie in a CPU's memory.

Keys are transposed within a block, `[layers, blocks, heads, key dim, tokens]`, so that scores are sums of vectors over tokens; values are
`[layers, blocks, heads, tokens, value dim]`. Codes of int8 lie in pairs, as instructions multiply them: each token's dimensions 2i and
2i + 1 of a key side by side, each dimension's of tokens 2i and 2i + 1 of a value; and each token's key and value of a head have a scale,
float32 `[layers, blocks, heads, tokens]`, in pools of their own.

Where pairs of bfloat16 are multiplied (`ISA.bf16_dot`), its numbers lie in pairs, too, if dimensions and tokens come so. The memory is the
same that other instruction sets take, so that an artifact for several of them has one state, which the library that is loaded lays out.

Of a latent group, whose keys are values too, pages hold rows as values have them, `[layers, blocks, 1, tokens, key dim]`, codes not in
pairs: kernels turn the keys of a chunk, which all heads share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from cupola.runtime.artifact.state import LATENT, NUM_BLOCKS, KVGroup
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.errors import UnsupportedError
from cupola.targets.cpu.isa import ISA
from cupola.targets.state import Array, StateContents, StateLayout


def side_of(isa: ISA, dtype: str, key_dim: int, block_size: int) -> int:
    """Numbers that lie side by side in pages that are not of latents: dimensions of a key, keys of a value's dimension."""
    in_pairs = isa.bf16_dot and dtype == "bfloat16" and key_dim % 2 == block_size % 2 == 0
    return 2 if dtype == "int8" or in_pairs else 1


def state_pools(group: KVGroup, dtype: str, block_size: int) -> tuple[TensorSpec, ...]:
    """`k_pages`, `v_pages` and, of int8, `k_scales` and `v_scales`; of a latent group `latents` and `latent_scales`.

    Raises:
        UnsupportedError: int8 does not come in pairs.
    """
    if group.kind == LATENT:
        tokens = (len(group.layers), NUM_BLOCKS, 1, block_size)
        scale = TensorSpec("latent_scales", "float32", tokens)
        return TensorSpec("latents", dtype, (*tokens, group.key_dim)), *([scale] if dtype == "int8" else [])
    pair = 2 if dtype == "int8" else 1
    if group.key_dim % pair:
        problem = f"int8 takes dimensions of keys by pairs, and heads have {group.key_dim}"
        raise UnsupportedError(problem, field=f"layer {group.layers[0]}", fix="take another --kv-dtype")
    if block_size % pair:
        raise UnsupportedError(f"is {block_size}, and int8 takes tokens by pairs", field="block-size", fix="take 16, 32 or 64")
    heads: tuple[int | str, ...] = (len(group.layers), NUM_BLOCKS, group.num_kv_heads)
    keys = TensorSpec("k_pages", dtype, (*heads, group.key_dim // pair, block_size * pair))
    values = TensorSpec("v_pages", dtype, (*heads, block_size // pair, group.value_dim * pair))
    scales = [TensorSpec(name, "float32", (*heads, block_size)) for name in ("k_scales", "v_scales")]
    return (keys, values, *(scales if dtype == "int8" else ()))


def read_state(isa: ISA, pools: Sequence[Array], layer: int) -> StateContents:
    """The pools' contents, pairs taken apart and keys turned back; of a latent group the keys are the values, too."""
    if len(pools) == 1 or pools[1].ndim < pools[0].ndim:
        rows, *steps = (pool[layer].swapaxes(1, 2) for pool in pools)
        return StateContents(rows, rows, *(steps * 2))
    k_pages, v_pages, *scales = (pool[layer] for pool in pools)
    (blocks, heads), block_size = k_pages.shape[:2], (scales or [k_pages])[0].shape[-1]
    key_dim, value_dim = (math.prod(pages.shape[2:]) // block_size for pages in (k_pages, v_pages))
    pair = side_of(isa, str(k_pages.dtype), key_dim, block_size)
    keys = k_pages.reshape(blocks, heads, key_dim // pair, block_size, pair).transpose(0, 3, 1, 2, 4)
    values = v_pages.reshape(blocks, heads, block_size // pair, value_dim, pair).transpose(0, 2, 4, 1, 3)
    keys, values = (x.reshape(blocks, block_size, heads, dim) for x, dim in ((keys, key_dim), (values, value_dim)))
    return StateContents(keys, values, *(scale.transpose(0, 2, 1) for scale in scales))


def layout(isa: ISA) -> StateLayout:
    """How an instruction set's kernels lay K and V out."""
    return StateLayout(state_pools, partial(read_state, isa))
