"""Mixtures of experts: which experts a token goes to, and products with their matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvm import relax

from cupola.targets.ops.base import Op, Tensor


@dataclass(frozen=True)
class TopK(Op):
    """The columns of a row's `k` largest numbers, the largest first, of equal ones the leftmost: x f32 [n, …, E] -> i32 [n, …, k].

    They are `k` different ones whatever the numbers are: NaN counts as less than all others.
    """

    name: ClassVar[str] = "top_k"
    x: Tensor
    k: int

    def call(self) -> relax.Call:
        """The call."""
        return self.emit(relax.TensorType([*list(self.x.ty.shape)[:-1], self.k], "int32"))


@dataclass(frozen=True)
class ExpertLinear(Op):
    """x @ weight_e.T + bias_e for the experts e that a token goes to -> f32 [n, k, N].

    x [n, K], the same for each of a token's experts, or [n, k, K]; index int [n, k], which is trusted to name experts; weight [E·N, K],
    the experts' matrices one above the other; bias [E·N]. Quantized weights and x as in `Linear`.
    """

    name: ClassVar[str] = "expert_linear"
    x: Tensor
    index: Tensor
    weight: Tensor
    bias: Tensor | None
    num_experts: int
    scales: Tensor | None = None
    mins: Tensor | None = None
    format: str = ""
    quantize_x: int = 0
    super_scales: Tensor | None = None
    super_mins: Tensor | None = None


@dataclass(frozen=True)
class GatedExpertLinear(Op):
    """activation(x @ gate_e.T + b_gate_e) · (x @ up_e.T + b_up_e) for the experts e that a token goes to -> f32 [n, k, N].

    weight [E·2N, K], each expert's gate above its up, bias [E·2N]; all else as in `ExpertLinear`.
    """

    name: ClassVar[str] = "gated_expert_linear"
    x: Tensor
    index: Tensor
    weight: Tensor
    bias: Tensor | None
    num_experts: int
    activation: str  # a key of ACTIVATIONS
    scales: Tensor | None = None
    mins: Tensor | None = None
    format: str = ""
    quantize_x: int = 0
    super_scales: Tensor | None = None
    super_mins: Tensor | None = None
