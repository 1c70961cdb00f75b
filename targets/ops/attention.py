"""Attention, as it is traced and over pages of K/V, and rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cupola.targets.ops.base import Op, Tensor


@dataclass(frozen=True)
class Attention(Op):
    """Causal attention as the importer traced it: q [n, H, D], k [n, G, D], v [n, G, E] -> [n, H, E].

    score = softcap · tanh(scale · q·k / softcap) (softcap 0: none) + slope_h · (key position − query position);
    keys: the last `window` tokens (0: all). `sinks` [H] joins the softmax's denominator as exp(sink). Without v, G is 1 and the first E
    numbers of a key are its value.
    """

    name: ClassVar[str] = "attention"
    q: Tensor
    k: Tensor
    v: Tensor | None
    slopes: Tensor | None  # f32 [H], ALiBi
    sinks: Tensor | None  # f32 [H]
    layer: int
    scale: float
    window: int
    softcap: float


@dataclass(frozen=True)
class PagedAttention(Op):
    """Writes k and v to their slots in the K/V cache, then attends over it; its memory is changed in place -> [n, H·E], f32 or bf16.

    q, k and v are columns of matrices [n, columns], f32 or bf16, perhaps of one and the same: H·D of them from `q_start` on, G·D from
    `k_start`, G·E from `v_start`. Without v, q and k are whole matrices, G is 1 and the first E numbers of a key are its value. With
    `cos` and `sin` [n, R], the first R dimensions of each head of q and k are rotated as by Rotary before. `pools` are those of the
    layer's group as the target lays them out, and `layer` is its index there. A slot is block · block size + offset. A query at index i
    of its sequence sees the keys 0..i (the last `window`). K and V are rounded to `kv_dtype` as they are written; to int8, each token's
    key and value of a head become codes · scale with scale = amax / 127; to E4M3, values beyond 448 become 448.
    """

    name: ClassVar[str] = "paged_attention"
    q: Tensor
    k: Tensor
    v: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    pools: tuple[Tensor, ...]
    slots: Tensor  # i32 [n]
    query_starts: Tensor  # i32 [b + 1]
    context_lens: Tensor  # i32 [b]
    block_tables: Tensor  # i32 [b, max_blocks]
    slopes: Tensor | None
    sinks: Tensor | None
    q_start: int
    k_start: int
    v_start: int
    kv_dtype: str
    layer: int
    scale: float
    window: int
    softcap: float
    interleaved: int = 0


@dataclass(frozen=True)
class Rotary(Op):
    """Rotary embedding: x [n, H, D], cos and sin [n, D] -> x · cos + turned · sin.

    turned is concat(−x[D/2:], x[:D/2]), or, interleaved, −x[1], x[0], −x[3], x[2], …
    """

    name: ClassVar[str] = "rotary"
    x: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: int = 0
