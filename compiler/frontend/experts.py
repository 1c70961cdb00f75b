"""Mixtures of experts as the importer catches them: a marker for the product of tokens with the matrices of the experts they go to.

transformers' own registry of experts' implementations leads there; classes that loop over experts by themselves get other `forward`s
while they are traced. Routers stay traced code, and so do gates, norms and the sum over a token's experts.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

Replacement = Callable[..., Any]


@torch.library.custom_op("cupola::expert_linear", mutates_args=())
def expert_linear(x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    """The marker: x [n, 1 or k, i], index [n, k], weight [E, o, i] or (transposed) [E, i, o], bias [E, o] -> [n, k, o]."""
    raise AssertionError("the marker of experts is for tracing only")


@expert_linear.register_fake
def _(x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    return x.new_empty(index.shape[0], index.shape[1], weight.shape[2 if transposed else 1])


def _experts(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """In the place of an implementation of transformers': hidden [n, h], index and weights [n, k] -> [n, h]."""
    name = "gate_up_proj" if self.has_gate else "up_proj"
    up_bias, down_bias = (getattr(self, f"{each}_bias") if self.has_bias else None for each in (name, "down_proj"))
    up = expert_linear(hidden_states.unsqueeze(1), top_k_index, getattr(self, name), up_bias, self.is_transposed)
    activated = self._apply_gate(up) if self.has_gate else self.act_fn(up)
    down = expert_linear(activated, top_k_index, self.down_proj, down_bias, self.is_transposed)
    return _combined(self.post_expert_norm(down) if self.has_post_expert_norm else down, top_k_weights)


def _combined(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """outputs [n, k, h], weights [n, k] in this order -> their weighted sums [n, h]."""
    return (outputs * weights.reshape(outputs.shape[0], outputs.shape[1], 1)).sum(1)


ALL_EXPERTS_FUNCTIONS.register("cupola", _experts)


def _llama4(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Llama 4 multiplies what an expert gets by its score, and lets all experts compute: zeros, where a token does not go there."""
    x = hidden_states.reshape(-1, self.hidden_dim)
    logits = torch.nn.functional.linear(x, self.router.weight, self.router.bias)
    values, index = torch.topk(logits, self.router.top_k, dim=1)
    routed = x.unsqueeze(1) * torch.sigmoid(values).unsqueeze(2)
    gate, up = expert_linear(routed, index, self.experts.gate_up_proj, None, True).chunk(2, dim=-1)
    out = expert_linear(self.experts.act_fn(gate) * up, index, self.experts.down_proj, None, True)
    return self.shared_expert(x) + out.sum(1), logits


def _dbrx(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    x, mlp = hidden_states.reshape(-1, 1, self.hidden_size), self.mlp
    w1, v1, w2 = (each.view(self.num_experts, self.ffn_hidden_size, self.hidden_size) for each in (mlp.w1, mlp.v1, mlp.w2))
    gate, up = (expert_linear(x, top_k_index, each, None, False) for each in (w1, v1))
    out = expert_linear(mlp.activation_fn(gate) * up, top_k_index, w2, None, True)
    return _combined(out, top_k_weights).view(hidden_states.shape)


def _longcat(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """Experts from `num_routed_experts` on give back what they get."""
    routed = top_k_index < self.num_routed_experts
    index = torch.where(routed, top_k_index, 0)
    up = expert_linear(hidden_states.unsqueeze(1), index, self.gate_up_proj[: self.num_routed_experts], None, False)
    gate, up = up.chunk(2, dim=-1)
    out = expert_linear(self.act_fn(gate) * up, index, self.down_proj, None, False)
    return _combined(torch.where(routed.unsqueeze(2), out, hidden_states.unsqueeze(1)), top_k_weights)


def _jetmoe_routing(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The router of JetMoE: logits [n, E], the experts [n, k] and their weights [n, k]."""
    logits = self.router.layer(x)
    values, index = logits.topk(self.router.top_k, dim=1)
    return logits, index, torch.softmax(values, dim=1)


def _jetmoe(self: Any, layer_input: torch.Tensor) -> torch.Tensor:
    x = layer_input.reshape(-1, self.input_size)
    _, index, weights = _jetmoe_routing(self, x)
    gate, up = expert_linear(x.unsqueeze(1), index, self.input_linear.weight, None, False).chunk(2, dim=-1)
    out = expert_linear(self.activation(gate) * up, index, self.output_linear.weight, None, False)
    return _combined(out, weights).view(layer_input.shape) + self.bias


def _jetmoe_map(self: Any, layer_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Experts of attention: each makes queries of its own."""
    x = layer_input.reshape(-1, self.input_size)
    logits, index, weights = _jetmoe_routing(self, x)
    queries = expert_linear(x.unsqueeze(1), index, self.input_linear.weight, None, False)
    return queries.view(*layer_input.shape[:2], self.top_k, self.hidden_size), logits, (index, weights)


def _jetmoe_reduce(self: Any, layer_input: torch.Tensor, routing: Any) -> torch.Tensor:
    index, weights = routing
    out = expert_linear(layer_input.reshape(-1, self.top_k, self.hidden_size), index, self.output_linear.weight, None, False)
    return _combined(out, weights).view(*layer_input.shape[:2], self.input_size) + self.bias


# Class -> method -> what takes its place, for classes that loop over experts by themselves.
_REPLACEMENTS: dict[str, dict[str, Replacement]] = {
    "Llama4TextMoe": {"forward": _llama4},
    "DbrxExperts": {"forward": _dbrx},
    "LongcatFlashExperts": {"forward": _longcat},
    "JetMoeMoE": {"forward": _jetmoe},
    "JetMoeMoA": {"map": _jetmoe_map, "reduce": _jetmoe_reduce},
}


_WITHIN_REPLACED = {"Llama4TextExperts", "DbrxExpertGLU", "JetMoeParallelExperts"}


def is_caught(module: Any) -> bool:
    """True if `mark_experts` leads what a mixture's module computes to the marker."""
    name = type(module).__name__
    return name in _REPLACEMENTS or name in _WITHIN_REPLACED or hasattr(module, "is_transposed")  # which transformers' registry sets


def mark_experts(model: Any) -> None:
    """Leads the experts of a model, wherever they are, to the marker."""
    for module in model.modules():  # a model of text and images may hold a mixture whose class stands in another file
        if isinstance(module, transformers.PreTrainedModel) and module._can_set_experts_implementation():
            module.set_experts_implementation("cupola")
        for name, replacement in _REPLACEMENTS.get(type(module).__name__, {}).items():
            setattr(module, name, types.MethodType(replacement, module))


__all__ = ["expert_linear", "is_caught", "mark_experts"]
