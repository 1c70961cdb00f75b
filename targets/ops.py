"""The operations that a target must bring kernels for, beyond Relax's own.

Passes write them, `targets/` lowers them. In the IR each is `R.call_dps_packed("cupola.<name>", …)`: its fields in order,
an absent tensor as the integer 0, without those at the end that have their defaults. Shapes: n tokens, H query heads,
G key/value heads, D key dim, E value dim. Relax's own `take`, `nn.rms_norm` and `nn.layer_norm` are lowered the same way.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar, Self, TypeAlias

import tvm
from tvm import relax, tirx

from cupola.runtime.artifact.inputs import MAX_STEPS, MAXIMA_BLOCK

Tensor: TypeAlias = relax.Expr
PREFIX = "cupola."


@dataclass(frozen=True)
class Op:
    """A call with named, typed fields. `emit` writes it into the IR, `match` reads it back."""

    name: ClassVar[str]

    def emit(self, out: relax.TensorType) -> relax.Call:
        """The call, whose result has the type `out`."""
        values = [(f, getattr(self, f.name)) for f in fields(self)]
        while values and values[-1][1] is values[-1][0].default:
            values.pop()
        arguments = [_encode(value) for _, value in values]
        return relax.op.call_dps_packed(PREFIX + self.name, relax.Tuple(arguments), out_ty=out)

    @classmethod
    def match(cls, expr: relax.Expr) -> Self | None:
        """The operation that `expr` calls, or None if it is another one."""
        if op_name(expr) != cls.name:
            return None
        assert isinstance(expr, relax.Call)
        values = zip(fields(cls), expr.args[1].fields, strict=False)
        return cls(**{f.name: _decode(value, _kinds(cls)[f.name]) for f, value in values})  # type: ignore[arg-type]


def op_name(expr: relax.Expr) -> str | None:
    """The name of the cupola operation that `expr` calls, without its prefix."""
    if not isinstance(expr, relax.Call) or expr.op.name != "relax.call_dps_packed":
        return None
    symbol = str(expr.args[0].global_symbol)
    return symbol.removeprefix(PREFIX) if symbol.startswith(PREFIX) else None


@dataclass(frozen=True)
class Attention(Op):
    """Causal attention as the importer traced it: q [n, H, D], k [n, G, D], v [n, G, E] -> [n, H, E].

    score = softcap · tanh(scale · q·k / softcap) (softcap 0: none) + slope_h · (key position − query position);
    keys: the last `window` tokens (0: all). `sinks` [H] joins the softmax's denominator as exp(sink).
    """

    name: ClassVar[str] = "attention"
    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor | None  # f32 [H], ALiBi
    sinks: Tensor | None  # f32 [H]
    layer: int
    scale: float
    window: int
    softcap: float


@dataclass(frozen=True)
class PagedAttention(Op):
    """Writes k and v to their slots in the pages, then attends over the pages, which are changed in place -> [n, H·E], f32 or bf16.

    q, k and v are columns of matrices [n, columns], f32 or bf16, perhaps of one and the same: H·D of them from `q_start` on, G·D from
    `k_start`, G·E from `v_start`. With `cos` and `sin` [n, R], the first R dimensions of each head of q and k are rotated as by
    Rotary before. `k_pages` [layers, blocks, G, D, block] and `v_pages` [layers, blocks, G, block, E] are the pools of the
    layer's group, and `layer` is its index there. A query at index i of its sequence sees the keys 0..i (the last `window`).
    Pages of int8 hold codes: each token's key and value of a head are codes · scale with scale = amax / 127, in `k_scales` and
    `v_scales` f32 [layers, blocks, G, block]. Codes lie in pairs: of a key's dimensions in `k_pages` [layers, blocks, G, D / 2, block · 2],
    of two tokens' in each dimension in `v_pages` [layers, blocks, G, block / 2, E · 2].
    """

    name: ClassVar[str] = "paged_attention"
    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor | None
    sin: Tensor | None
    k_pages: Tensor
    v_pages: Tensor
    k_scales: Tensor | None
    v_scales: Tensor | None
    slots: Tensor  # i32 [n]
    query_starts: Tensor  # i32 [b + 1]
    context_lens: Tensor  # i32 [b]
    block_tables: Tensor  # i32 [b, max_blocks]
    slopes: Tensor | None
    sinks: Tensor | None
    q_start: int
    k_start: int
    v_start: int
    layer: int
    scale: float
    window: int
    softcap: float
    interleaved: int = 0


@dataclass(frozen=True)
class Linear(Op):
    """activation(x @ weight.T + bias) + residual: x [m, K], weight [N, K], bias [N], residual [m, N] -> [m, N], f32 or bf16.

    A quantized weight comes as codes, one a byte, in groups of GROUP along K, each with a scale: int8 codes of 8 bits,
    scale · code; or uint8 codes of 4 bits (0 to 15), scale · (code − 8), or scale · code + min where there are `mins`.
    With a `norm`, x is RMS-normalized by it first (arXiv:1910.07467).
    """

    name: ClassVar[str] = "linear"
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    activation: str  # a key of ACTIVATIONS
    scales: Tensor | None = None  # f16 [N, K / GROUP]
    mins: Tensor | None = None  # f16 [N, K / GROUP]
    norm: Tensor | None = None  # f32 [K]
    epsilon: float = 0.0  # of the norm
    quantize_x: int = 0  # 1: x is rounded to int8 in groups of GROUP, amax / 127 a step, and products are summed as integers
    in_place: int = 0  # 1: nobody reads the residual afterwards, whose memory may become the result's


@dataclass(frozen=True)
class GatedLinear(Op):
    """activation(x @ gate.T + b_gate) · (x @ up.T + b_up), weight [2N, K] = gate above up, bias [2N] -> [m, N], f32 or bf16.

    Quantized weights, norm and x as in `Linear`.
    """

    name: ClassVar[str] = "gated_linear"
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    activation: str
    scales: Tensor | None = None
    mins: Tensor | None = None
    norm: Tensor | None = None
    epsilon: float = 0.0
    quantize_x: int = 0


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of a quantized table, as `Linear` has them: weight codes [V, K], tokens [n] -> f32 [n, K]. Token ids are trusted."""

    name: ClassVar[str] = "embedding"
    weight: Tensor
    scales: Tensor
    mins: Tensor | None
    tokens: Tensor


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


@dataclass(frozen=True)
class BlockMaxima(Op):
    """The largest of each MAXIMA_BLOCK neighbours in a row: x f32 [r, V] -> f32 [r, ⌈V / MAXIMA_BLOCK⌉]; NaN where one of them is.

    The last block of a row may be shorter.
    """

    name: ClassVar[str] = "block_maxima"
    x: Tensor

    def call(self) -> relax.Call:
        """The call."""
        rows, width = self.x.ty.shape
        return self.emit(relax.TensorType((rows, -(-int(width) // MAXIMA_BLOCK)), "float32"))


@dataclass(frozen=True)
class ChooseTokens(Op):
    """The likeliest token of each row, and the next step's inputs if every sequence goes on with it -> i32 [MAX_STEPS, r].

    logits f32 [r, V], their maxima as of `BlockMaxima`. The result's rows move up by one, and the tokens become the last: the first of a
    row's largest logits, or -1 if one of them is NaN. If every sequence brought one token and wants its logits, which is so if n, b and r
    are equal, the inputs are then changed in place: each token is the chosen one, one position and one slot further.
    """

    name: ClassVar[str] = "choose_tokens"
    logits: Tensor
    maxima: Tensor
    tokens: Tensor  # i32 [n]
    positions: Tensor  # i32 [n]
    slots: Tensor  # i32 [n]
    context_lens: Tensor  # i32 [b]
    block_tables: Tensor  # i32 [b, max_blocks]
    block_size: int

    def call(self) -> relax.Call:
        """The call."""
        return self.emit(relax.TensorType((MAX_STEPS, self.logits.ty.shape[0]), "int32"))


GROUP = 32  # inputs that share a scale, of weights as of activations: GGUF's blocks of Q4_0, Q4_1 and Q8_0 (ggml-common.h)

# "" is the identity; "gelu_tanh" is the tanh approximation, "gelu" the exact one (erf).
ACTIVATIONS = ("", "silu", "gelu", "gelu_tanh", "relu")


def _encode(value: object) -> relax.Expr:
    if value is None:
        return relax.prim_value(0)
    if isinstance(value, str):
        return tvm.ir.StringImm(value)
    if isinstance(value, float):
        return relax.prim_value(tirx.FloatImm("float64", value))
    return relax.prim_value(value) if isinstance(value, int) else value


def _decode(expr: relax.Expr, kind: object) -> object:
    if kind in (int, float, str):
        return typing.cast(typing.Any, kind)(expr.value)
    return None if isinstance(expr, tirx.IntImm) else expr


@cache
def _kinds(cls: type[Op]) -> dict[str, object]:
    return typing.get_type_hints(cls)
