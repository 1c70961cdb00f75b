"""Attention over pages as a case of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tvm import relax

from cupola.runtime.artifact.state import ATTENTION, LATENT, NUM_BLOCKS, KVGroup
from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.base import Target
from cupola.targets.ops import PagedAttention
from cupola.targets.testing import references
from cupola.targets.testing.case import DTYPES, Arrays, Input, KernelCase, Sizes, Tensors, case_name

KV_DTYPES = {**DTYPES, "int8": "int8", "fp8": E4M3}
_MORE_NUMBERS, _MORE_HEADS = 32, 4  # of latent keys, and times as many heads
_FLAGS = ("latent", "joined", "interleaved", "window", "softcap", "slopes", "sinks", "one_each")
_CODES = {"int8": (-127, 128), "uint8": (0, 127)}  # of pools


@dataclass(frozen=True)
class AttentionKernel:
    """`PagedAttention` over pages of one type, with what it does besides.

    Attributes:
        joined: on columns of one matrix, rotated.
        interleaved: how.
        dtype: of the inputs and the result.
        context: tokens of a sequence before its new ones, at most.
        one_each: every sequence brings one token.
        latent: without v: keys have 32 numbers more than `Sizes.head_dim`, and their first ones are values.
    """

    kv: str  # a key of KV_DTYPES
    joined: bool = False
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    slopes: bool = False
    sinks: bool = False
    dtype: str = "f32"  # a key of DTYPES
    context: int = 150
    one_each: bool = False
    latent: bool = False

    def __call__(self, sizes: Sizes, target: Target) -> KernelCase:
        """The case at these sizes."""
        heads, groups, value_dim, kv_dtype = sizes.heads, 1 if self.latent else sizes.kv_heads, sizes.head_dim, KV_DTYPES[self.kv]
        dim = value_dim + _MORE_NUMBERS * self.latent
        heads *= _MORE_HEADS if self.latent else 1
        block = sizes.block + sizes.block % 2 * (self.kv == "int8")  # which some targets take by pairs of tokens
        group = KVGroup((0, 1), groups, dim, value_dim, kind=LATENT if self.latent else ATTENTION)
        pools = target.state_pools(group, kv_dtype, block)
        widths = {"q": heads * dim, "k": groups * dim} | ({} if self.latent else {"v": groups * dim})
        tables: dict[str, tuple[str, ...]] = {"slots": ("n",), "query_starts": ("b1",), "context_lens": ("b",), "block_tables": ("b", "w")}
        matrices = {"qkv": sum(widths.values())} if self.joined else widths
        inputs = [Input(name, ("n", width), DTYPES[self.dtype]) for name, width in matrices.items()]
        inputs += [Input(name, ("n", dim)) for name in ("cos", "sin") if self.joined]
        inputs += [Input(pool.name, pool.shape, pool.dtype, _CODES.get(pool.dtype)) for pool in pools]
        inputs += [Input(name, shape, "int32") for name, shape in tables.items()]
        inputs += [Input("slopes", (heads,))] * self.slopes + [Input("sinks", (heads,))] * self.sinks
        options = {"scale": dim**-0.5, "window": self.window, "softcap": self.softcap}
        starts = {"q_start": 0, "k_start": widths["q"] * self.joined, "v_start": (widths["q"] + widths["k"]) * self.joined}

        def emit(t: Tensors) -> relax.Call:
            q, k, v = (t["qkv"],) * 3 if self.joined else (t.get(name) for name in "qkv")
            state: dict[str, Any] = {"pools": tuple(t[pool.name] for pool in pools), "kv_dtype": kv_dtype, "layer": 1}
            step: dict[str, Any] = {name: t[name] for name in tables}
            extras: dict[str, Any] = {name: t.get(name) for name in ("cos", "sin", "slopes", "sinks")}
            numbers: dict[str, Any] = {**starts, **options, "interleaved": int(self.interleaved)}
            op = PagedAttention(q=q, k=k, v=v, **state, **step, **extras, **numbers)
            return op.emit(relax.TensorType((t["slots"].ty.shape[0], heads * value_dim), DTYPES[self.dtype]))

        in_bf16 = self.kv in ("bf16", "int8") and target.abilities.bf16_rows > 0
        pages = {"f16": "float16", "bf16": "bfloat16", "int8": "bfloat16", "fp8": "float16"} if target.abilities.rounds_products else {}
        in_pairs = self.kv == "bf16" and not self.latent and target.abilities.bf16_attention
        multiplies = "bfloat16" if in_bf16 or in_pairs else pages.get(self.kv, "")
        op = references.Attention(
            kv_dtype, **options, rounds_one=in_pairs or (self.latent and self.kv == "bf16"), interleaved=self.interleaved,
            bf16_result=self.dtype == "bf16", multiplies=multiplies,
        )  # fmt: skip

        def expected(arrays: Arrays) -> references.Expected:
            state = target.state.read([arrays[pool.name] for pool in pools], 1)
            return references.paged_attention(arrays, replace(state, values=state.values[..., :value_dim]), op)

        flags = [flag for flag in _FLAGS if getattr(self, flag)] + [self.dtype] * (self.dtype != "f32")
        name = case_name("paged_attention", f"{heads}x{groups}x{dim}", self.kv, *flags)
        axes = {pool.name: pool.shape.index(NUM_BLOCKS) for pool in pools}
        draw = partial(_draw_attention, self, inputs, axes, block)
        return KernelCase(
            name, tuple(inputs), emit, expected, draw, multiplies_int8=self.kv == "int8", may_use_bf16=self.kv in ("bf16", "int8"),
            batch_invariant=target.abilities.batch_invariant or not in_bf16,
        )  # fmt: skip


def _draw_attention(
    kernel: AttentionKernel,
    inputs: Sequence[Input],
    block_axes: Mapping[str, int],
    block: int,
    random: np.random.Generator,
    num_tokens: int,
) -> Arrays:
    """Up to four sequences of `num_tokens` new tokens in all, or as many as tokens, each after some that stand in blocks. Other blocks hold
    NaN, and one of them stands in tables for all blocks behind the window. Floats beside pools of codes are what codes are multiples of:
    small and positive."""
    window, cuts = kernel.window, random.integers(0, num_tokens + 1, 3)
    starts = np.arange(num_tokens + 1) if kernel.one_each else np.unique([0, num_tokens, *cuts])
    lens = np.diff(starts) + random.integers(0, kernel.context + 1, len(starts) - 1)
    width = int(lens.max() + block - 1) // block
    num_blocks = width * len(lens) + 2
    *blocks, hole, _ = random.permutation(num_blocks)
    tables = np.reshape(blocks, (-1, width))
    positions = [np.arange(length - count, length) for length, count in zip(lens, np.diff(starts), strict=True)]
    slots = np.concatenate([table[p // block] * block + p % block for table, p in zip(tables, positions, strict=True)])
    for row, length, count in zip(tables, lens, np.diff(starts), strict=True):
        row[: max(0, length - count + 1 - window) // block if window else 0] = hole
    integers = {"slots": slots, "query_starts": starts, "context_lens": lens, "block_tables": tables}
    arrays = {i.name: i.draw(random, {"n": num_tokens, NUM_BLOCKS: num_blocks}) for i in inputs if i.name not in integers}
    has_codes = any(arrays[pool].dtype == np.int8 for pool in block_axes)
    for pool, axis in block_axes.items():
        if kernel.kv == "fp8":
            arrays[pool] = random.standard_normal(arrays[pool].shape, "float32").astype(E4M3).view("uint8")
        elif arrays[pool].dtype != np.int8:
            arrays[pool] = np.abs(arrays[pool]) / 64 if has_codes else arrays[pool]
            np.moveaxis(arrays[pool], axis, 0)[np.setdiff1d(np.arange(num_blocks), tables[tables != hole])] = np.nan
    if kernel.kv == "fp8" and "v" in arrays:
        arrays["v"][::2] *= 300  # more than E4M3 holds
    return arrays | {name: array.astype("int32") for name, array in integers.items()}
