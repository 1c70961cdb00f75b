"""Layers that carry a state from token to token: convolutions over tokens, linear attention, selective scans.

As the importer traces them, they have no `pool`; `passes/keep_state.py` says where their state is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cupola.targets.ops.base import Op, Tensor


@dataclass(frozen=True)
class Recurrence(Op):
    """A layer whose result at a token depends on the sequence's tokens before through a state of a size that never grows.

    The states of a sequence lie in its slot of the pool, f32 [layers, slots, …], at `layer`, and are changed in place: they are those after
    its last token. A sequence all of whose tokens are new, `context_lens` of them, starts from zeros, whatever lies there.

    Attributes:
        batched: the fields that have a row a token, with what they have of axes behind it; the importer's have a batch axis of 1 before.
    """

    batched: ClassVar[dict[str, tuple[int, ...]]]
    layer: int
    pool: Tensor | None
    slots: Tensor | None  # i32 [b, 2]: where the state is read from, and written to
    query_starts: Tensor | None  # i32 [b + 1]
    context_lens: Tensor | None  # i32 [b]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of one sequence's state in one layer."""
        raise NotImplementedError


@dataclass(frozen=True)
class CausalConv(Recurrence):
    """y[t, c] = bias[c] + Σ_j weight[c, j] · x[t − W + 1 + j, c], zeros before the first token: x [n, C] -> [n, C].

    The state is the last W − 1 rows of x, [W − 1, C].
    """

    name: ClassVar[str] = "causal_conv"
    batched: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1,)}
    x: Tensor
    weight: Tensor  # [C, W]
    bias: Tensor | None  # [C]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[W − 1, C]."""
        channels, width = map(int, self.weight.ty.shape)
        return width - 1, channels


@dataclass(frozen=True)
class LinearAttention(Recurrence):
    """Attention without softmax, whose past is a matrix a head: q and k [n, G, K], v [n, H, V] -> [n, H, V].

    S ← exp(decay) · S;  u = v, or with `beta` u = beta · (v − k·S);  S ← S + k ⊗ u;  y = q·S. Each G serves H / G neighbouring heads.
    Scales and norms are applied already. Without `beta` this is Mamba-2 (arXiv:2405.21060), q, k and v its C, B and Δ·x, or lightning
    attention (arXiv:2401.04658); with it, the gated delta rule (arXiv:2412.06464), or with a decay for each of K, Kimi's
    (arXiv:2510.26692). The state is S, [H, K, V].
    """

    name: ClassVar[str] = "linear_attention"
    batched: ClassVar[dict[str, tuple[int, ...]]] = {"q": (2,), "k": (2,), "v": (2,), "decay": (1, 2), "beta": (1,)}
    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor  # [n, H] or [n, H, K], not above 0
    beta: Tensor | None  # [n, H]

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[H, K, V]."""
        heads, value_dim = map(int, list(self.v.ty.shape)[-2:])
        return heads, int(self.k.ty.shape[-1]), value_dim


@dataclass(frozen=True)
class SelectiveScan(Recurrence):
    """Mamba's scan (arXiv:2312.00752): h[c, i] ← exp(Δ[c] · a[c, i]) · h[c, i] + Δ[c] · b[i] · x[c];  y[c] = Σ_i c[i] · h[c, i].

    x and Δ [n, C], b and c [n, N] -> [n, C]. The state is h, as [N, C].
    """

    name: ClassVar[str] = "selective_scan"
    batched: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1,), "delta": (1,), "b": (1,), "c": (1,)}
    x: Tensor
    delta: Tensor
    a: Tensor  # [C, N]; times Δ it is not above 0
    b: Tensor
    c: Tensor

    @property
    def state_shape(self) -> tuple[int, ...]:
        """[N, C]."""
        channels, num_states = map(int, self.a.ty.shape)
        return num_states, channels


RECURRENCES: tuple[type[Recurrence], ...] = (CausalConv, LinearAttention, SelectiveScan)


def match_recurrence(expr: Tensor) -> Recurrence | None:
    """The recurrence that `expr` is, or None."""
    return next((found for op in RECURRENCES if (found := op.match(expr)) is not None), None)
