"""Calls of mixtures of experts, for the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import relax

from cupola.targets.base import Target
from cupola.targets.ops import ExpertLinear, GatedExpertLinear, TopK
from cupola.targets.testing import references
from cupola.targets.testing.case import Arrays, Input, KernelCase, Sizes, Tensors, case_name
from cupola.targets.testing.weights import GROUP, Weight

NUM_EXPERTS, CHOICES = 5, 3


@dataclass(frozen=True)
class ExpertKernel:
    """`ExpertLinear` or `GatedExpertLinear`, with what it does besides.

    Attributes:
        is_shared: a token brings all its experts the same row.
    """

    weight: str  # as `Weight.of` takes it
    gated: bool = False
    bias: bool = False
    is_shared: bool = True
    quantize_x: int = 0
    activation: str = ""

    def __call__(self, sizes: Sizes, target: Target) -> KernelCase:
        """The case at these sizes."""
        n, k, weight = sizes.ffn, sizes.hidden, Weight.of(self.weight)
        rows = NUM_EXPERTS * n * (2 if self.gated else 1)
        x = Input("x", ("n", k) if self.is_shared else ("n", CHOICES, k))
        inputs = [x, Input("index", ("n", CHOICES), "int32", (0, NUM_EXPERTS)), *weight.inputs(rows, k)]
        inputs += [Input("bias", (rows,), "float32" if weight.format else weight.dtype)] * self.bias
        in_bf16 = self.quantize_x and target.abilities.bf16_rows
        reference = partial(
            references.expert_linear, num_experts=NUM_EXPERTS, activation=self.activation, quantize_x=self.quantize_x, gated=self.gated,
            format=weight.format, bf16_from=in_bf16 or None,
        )  # fmt: skip
        scheme = self.weight if weight.format is None else self.weight + ("a8" if self.quantize_x else "a16")
        flags = ["bias"] * self.bias + ["apart"] * (not self.is_shared)
        name = case_name("gated_experts" if self.gated else "experts", f"{NUM_EXPERTS}x{n}x{k}", scheme, *flags, self.activation)
        return KernelCase(
            name, tuple(inputs), partial(self.emit, n), reference, partial(_draw, inputs), bool(self.quantize_x),
            may_use_bf16=bool(self.quantize_x),
            batch_invariant=target.abilities.batch_invariant or not in_bf16,
        )  # fmt: skip

    def emit(self, num_outputs: int, t: Tensors) -> relax.Call:
        """The call."""
        out = relax.TensorType((t["x"].ty.shape[0], CHOICES, num_outputs), "float32")
        form = Weight.of(self.weight).format
        stored = (t.get("scales"), t.get("mins"), form.name if form else "", self.quantize_x)
        if self.gated:
            return GatedExpertLinear(t["x"], t["index"], t["weight"], t.get("bias"), NUM_EXPERTS, self.activation, *stored).emit(out)
        return ExpertLinear(t["x"], t["index"], t["weight"], t.get("bias"), NUM_EXPERTS, *stored).emit(out)


def _draw(inputs: Sequence[Input], random: np.random.Generator, num_tokens: int) -> Arrays:
    """Every fifth row begins with a group of zeros, which has no scale; the last expert gets no tokens, and some get the same one twice."""
    arrays = {i.name: i.draw(random, {"n": num_tokens}) for i in inputs}
    arrays["x"][::5, ..., :GROUP] = 0
    arrays["index"] %= NUM_EXPERTS - 1
    return arrays


def top_k(sizes: Sizes, target: Target) -> KernelCase:
    """`TopK` of rows in which some numbers are equal, infinite or none."""
    inputs = (Input("x", ("n", 2, sizes.heads)),)
    k = min(3, sizes.heads)

    def draw(random: np.random.Generator, num_tokens: int) -> Arrays:
        x = inputs[0].draw(random, {"n": num_tokens})
        x[::2] = np.rint(x[::2])
        x[3::5, :, 1:] = -np.inf
        x[4::5, :, ::2] = np.nan
        return {"x": x}

    reference = partial(references.top_k, k=k)
    return KernelCase(case_name("top_k", f"2x{sizes.heads}"), inputs, lambda t: TopK(t["x"], k).call(), reference, draw)
