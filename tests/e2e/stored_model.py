"""A tiny model that is quantized as a scheme does it: compiled, and in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import cupola
from cupola.models import find_family
from cupola.passes.encoders import encode
from cupola.passes.schemes import SCHEMES
from cupola.targets.formats.tensor import QuantizedTensor

NUM_PROMPTS, NUM_TOKENS = 3, 30


def rounded(x: Any, group_size: int) -> Any:
    """Activations in int8, as `targets.ops.Linear` has them."""
    import torch

    width = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -width % group_size)).unflatten(-1, (-1, group_size))
    step = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / step.clamp_min(1e-30)) * step).flatten(-2)[..., :width]


def quantized(model: Any, quant: str) -> Any:
    """The model with the weights that `quant` stores, and activations quantized where it quantizes them."""
    import torch

    scheme = SCHEMES[quant]
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        storage = (scheme.embedding if "embed" in name or "lm_head" in name else scheme.linear).pick([])
        assert storage.format is not None
        weight = module.weight.detach().numpy().copy()
        stored = QuantizedTensor(storage.format, *encode(storage.format.name, weight))
        module.weight.data = torch.from_numpy(stored.values()[:, : weight.shape[1]].copy())
        if scheme.quantize_x and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0], scheme.quantize_x),))
    return model


def tiny_model(**sizes: int) -> Any:
    """A random Llama in torch."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = find_family("llama")
    assert family is not None
    config = transformers.AutoConfig.for_model("llama", **{**family.tiny, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # norms of ones would leave codes of the embedding, of which many stand right between two steps
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def compiled(model: Any, quant: str, folder: Path) -> cupola.LLM:
    """The model as the scheme compiles it, for a target of one path, in int8."""
    model.save_pretrained(folder / "model")
    return cupola.LLM(cupola.compile(folder / "model", out=folder / quant, quant=quant, kv_dtype="f32", target="cpu:batch-invariant"))


def prompts_of(model: Any) -> Any:
    """Tokens at random."""
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (NUM_PROMPTS, NUM_TOKENS))


def logits_of(model: Any) -> Any:
    """Torch's logits for them."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(prompts_of(model))).logits.numpy()


def distances(quant: str, folder: Path, **sizes: int) -> Any:
    """How far the compiled model's logits are from those of torch on the values that the codes stand for, for the best of some prompts.

    An activation that stands between two steps may go to either, and then so may others, of all tokens after it.
    """
    model = tiny_model(**sizes)
    llm, prompts = compiled(model, quant, folder), prompts_of(model)
    expected = logits_of(quantized(model, quant))
    return min((abs(llm.logits(prompt.tolist()) - logits) for prompt, logits in zip(prompts, expected, strict=True)), key=np.median)
