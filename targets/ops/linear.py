"""Linear layers and embeddings, of plain and of quantized weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cupola.targets.ops.base import Op, Tensor
from cupola.targets.ops.experts import ExpertLinear, GatedExpertLinear

# "" is the identity; "gelu_tanh" is the tanh approximation, "gelu" the exact one (erf).
ACTIVATIONS = ("", "silu", "gelu", "gelu_tanh", "relu")


@dataclass(frozen=True)
class Linear(Op):
    """activation(x @ weight.T + bias) + residual: x [m, K], weight [N, K], bias [N], residual [m, N] -> [m, N], f32 or bf16.

    A quantized weight comes as codes, one a byte, in groups along K, each with a scale and perhaps a min or a zero; `format` says what they
    stand for, and rows are padded with zeros to whole groups. Where it has super-blocks, scales and mins are codes too. With a `norm`, x is
    RMS-normalized by it first (arXiv:1910.07467).
    """

    name: ClassVar[str] = "linear"
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    activation: str  # a key of ACTIVATIONS
    scales: Tensor | None = None  # [N, groups]
    mins: Tensor | None = None  # [N, groups], or zeros
    format: str = ""  # the name of a `targets.formats.format.WeightFormat`; "": weights are floats
    norm: Tensor | None = None  # f32 [K]
    epsilon: float = 0.0  # of the norm
    quantize_x: int = 0  # x is quantized to int8 in groups of so many, in steps of amax / 127, and products are summed as integers; 0: not
    in_place: int = 0  # 1: nobody reads the residual afterwards, whose memory may become the result's
    super_scales: Tensor | None = None  # [N, super-blocks]
    super_mins: Tensor | None = None  # [N, super-blocks]


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
    format: str = ""
    norm: Tensor | None = None
    epsilon: float = 0.0
    quantize_x: int = 0
    super_scales: Tensor | None = None
    super_mins: Tensor | None = None


@dataclass(frozen=True)
class Embedding(Op):
    """Rows of a quantized table, as `Linear` has them: weight codes [V, K], tokens [n] -> f32 [n, K]. Token ids are trusted."""

    name: ClassVar[str] = "embedding"
    weight: Tensor
    scales: Tensor
    mins: Tensor | None
    format: str
    tokens: Tensor
    super_scales: Tensor | None = None
    super_mins: Tensor | None = None


def factors_of(op: Linear | GatedLinear | Embedding | ExpertLinear | GatedExpertLinear) -> tuple[Tensor, ...]:
    """The tensors beside the codes of an operation's weight, in the order of `WeightFormat.factors`."""
    return tuple(tensor for tensor in (op.scales, op.mins, op.super_scales, op.super_mins) if tensor is not None)
