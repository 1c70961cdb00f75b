"""The translated module computes what torch does: operations that TVM's importer lacks or has wrong, and in-place ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from transformers.activations import ACT2FN
from tvm import relax

import cupola.compiler.frontend.attention  # noqa: F401  registers the marker
from cupola.compiler.frontend.functionalize import functionalize
from cupola.compiler.frontend.translate import to_relax
from cupola.passes.lower_ops import lower_ops
from cupola.runtime.errors import UnsupportedError
from tests.passes.harness import verified
from tests.targets.toy_target import toy

# torch's own decompositions warn about a function of torch's; the compiler traces quietly.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")

Function = Callable[..., Any]
X = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.arange(7, dtype=torch.int32)[None] * 37


class Module(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.function(x, positions)


def exported(function: Function) -> torch.export.ExportedProgram:
    n = torch.export.Dim("n", min=2, max=64)
    module = function if isinstance(function, nn.Module) else Module(function)
    return torch.export.export(module.eval(), (X, POSITIONS), dynamic_shapes={"x": {1: n}, "positions": {1: n}}, strict=False)


def translated(function: Function) -> np.ndarray:
    program = functionalize(exported(function), "toy", "file")
    mod = verified(lower_ops(toy()), to_relax(program, "file"))
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(X.numpy()), tvm.runtime.tensor(POSITIONS.numpy())).numpy()


def write_slice(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x * 2
    h[..., :2] = x[..., 2:4]
    return h


def write_middle(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x * 2
    h[:, :, 3:5] = 1.0
    return h


def write_element(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x + 1
    h[..., 3] = x[..., 0]
    return h


def write_in_steps(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x * 2
    h[..., 1::2] = x[..., :4]
    h[..., 0:5:3] = x[..., 6:]
    return h


def write_all(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x * 2
    h[:] = x
    return h


def write_where(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    h, p = x * 2, positions.clone()
    h[positions > 100] = 0.5
    p[positions > 100] = 0
    return h + p[..., None]


def change_a_view(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x * 2
    h[..., :4].mul_(3)
    h.transpose(1, 2)[:, 5:].add_(1)
    return h


def fill_an_empty_tensor(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    h = x.new_empty(1, 2, x.shape[1], 12)
    h[..., :8] = x[:, None]
    h[..., 8:] = x[:, None, :, :4]
    return h


def scatter_in_place(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x[0]).scatter_(-1, x[0].topk(2, -1).indices, 1.0)


CASES: dict[str, Function] = {
    "slice assignment": write_slice,
    "assignment to a middle": write_middle,
    "assignment to an element": write_element,
    "assignment in steps": write_in_steps,
    "assignment to everything": write_all,
    "assignment by a mask": write_where,
    "a view changed in place": change_a_view,
    "an empty tensor filled": fill_an_empty_tensor,
    "scatter_": scatter_in_place,
    "arithmetic in place": lambda x, p: (x * 1).add_(x).mul_(3).div_(2).sub_(1),
    "clamp_": lambda x, p: (x * 1).clamp_(min=-0.5, max=0.5),
    "clamp_ from below": lambda x, p: (x * 1).clamp_(min=0.1),
    "whole numbers divided": lambda x, p: x + (p / 16)[..., None],
    "whole number by a tensor of one": lambda x, p: x * (p / torch.tensor(16))[..., None],
    "whole numbers divided and floored": lambda x, p: x + torch.floor(p / 10)[..., None],
    "a whole number less a tensor": lambda x, p: (1 - x) + (2 - p)[..., None],
    "variance": lambda x, p: x.var(-1, keepdim=True, unbiased=False) * x + x.var(-1)[..., None],
    "deviation": lambda x, p: torch.std(x, -1, keepdim=True) + x,
    "deviation of all there are": lambda x, p: torch.std(x, dim=-1, unbiased=False)[..., None] + x,
    "deviation with a correction": lambda x, p: torch.std(x, dim=(-1,), correction=3)[..., None] + x,
    "multiply": lambda x, p: torch.multiply(x, 3.0) + torch.multiply(x, x),
    "identity view": lambda x, p: (x * 2).view(1, x.shape[1], 8),
    "identity reshape": lambda x, p: (x * 2).reshape(*x.shape[:2], 8),
    "reshape": lambda x, p: x.reshape(1, -1, 2, 4).transpose(1, 2),
    "a slice of every token": lambda x, p: (x[:, -x.shape[1] :].reshape(-1, 4) * x.reshape(-1, 4)).reshape(1, -1, 8),
    "view_as": lambda x, p: x.view(1, -1, 2, 4).view_as(x),
    "broadcast_to": lambda x, p: torch.broadcast_to(x[..., None], (1, x.shape[1], 8, 3)) * 1,
    "expand_as": lambda x, p: x[..., :1].expand_as(x) + x,
    "repeat": lambda x, p: x.repeat(1, 1, 3),
    "masked_fill": lambda x, p: x.masked_fill(x > 0, 0.25),
    "masked_fill with infinity": lambda x, p: x.masked_fill(x > 0, float("-inf")).softmax(-1),
    "zeros_like": lambda x, p: torch.zeros_like(x) + x,
    "full_like": lambda x, p: torch.full_like(x, 0.5) + x,
    "new_ones": lambda x, p: x.new_ones(x.shape[1], 8) + x,
    "gather": lambda x, p: x.gather(-1, torch.zeros_like(p)[..., None].long() + 3),
    "topk": lambda x, p: x[0].topk(3, -1).values,
    "topk's indices": lambda x, p: x[0].topk(3, -1).indices.float(),
    "topk of more axes": lambda x, p: x[0].view(-1, 2, 4).topk(2, -1).values,
    "max along an axis": lambda x, p: x.max(-1).values + x.max(-1, keepdim=True).indices.float()[..., 0],
    "norm": lambda x, p: x / torch.norm(x, p=1, dim=-1, keepdim=True) + torch.norm(x, dim=-1, keepdim=True),
    "weightless layer norm": lambda x, p: nn.functional.layer_norm(x, (8,)),
    "rms norm": lambda x, p: nn.functional.rms_norm(x, (8,), torch.linspace(0.5, 2, 8), 1e-5),
    "weightless rms norm": lambda x, p: nn.functional.rms_norm(x, (8,)),
    "where": lambda x, p: torch.where(x > 0, x, 0.0),
}


@pytest.mark.by_turns
@pytest.mark.parametrize("name", CASES)
def test_as_in_torch(name: str) -> None:
    np.testing.assert_allclose(translated(CASES[name]), CASES[name](X, POSITIONS).numpy(), rtol=2e-5, atol=2e-6)


class Scaled(nn.Module):
    """By a constant in bfloat16, or by its square, which is rounded to bfloat16 too."""

    def __init__(self, squared: bool) -> None:
        super().__init__()
        self.squared, self.scale = squared, nn.Buffer(torch.tensor(1.1, dtype=torch.bfloat16), persistent=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x * (self.scale * self.scale if self.squared else self.scale).float()


def test_a_constant_in_bfloat16_keeps_its_value() -> None:
    np.testing.assert_array_equal(translated(Scaled(False)), X.numpy() * np.float32(1.1015625))


def test_rounding_to_bfloat16_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="file: it computes in bfloat16 with its constant"):
        translated(Scaled(True))


def test_every_activation_of_transformers() -> None:
    activations = {
        name: ACT2FN[name] for name in sorted(set(ACT2FN) - {"prelu", "xielu"})
    }  # these have weights, and families that test them
    found = translated(lambda x, p: torch.stack([activation(x) for activation in activations.values()]))
    for name, values in zip(activations, found, strict=True):
        np.testing.assert_allclose(values, activations[name](X).numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_buffer_written_between_calls_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x * self.calls

    with pytest.raises(UnsupportedError, match="file: toy: it writes to its buffer calls"):
        functionalize(exported(Counter()), "toy", "file")


def test_a_graph_without_writes_stays_as_it_is() -> None:
    program = exported(lambda x, p: x * 2)
    assert functionalize(program, "toy", "file") is program
