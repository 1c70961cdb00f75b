"""Checkpoints at random, of the shapes of real models with recurrent layers, to measure their speed.

`python benchmarks/recurrent granite-4-tiny FOLDER` writes one in bfloat16, with fewer layers or experts than the real one has, if that has
more than 1.2 billion parameters; `cupola bench FOLDER --quant w4a8 --kernels` says where its time goes. `--layers 40` takes as many, whose
kinds come in the real model's turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_SHARD_BYTES = 1 << 29
_LINEAR, _CONV, _FULL = "linear_attention", "conv", "full_attention"
# As their config.json has it: huggingface.co/{ibm-granite/granite-4.0-h-tiny, Qwen/Qwen3-Next-80B-A3B-Instruct, LiquidAI/LFM2-350M,
# state-spaces/mamba2-780m, state-spaces/mamba-130m-hf}. `turn` is the kinds of layers that repeat.
SHAPES: dict[str, dict[str, Any]] = {
    "granite-4-tiny": {
        "model_type": "granitemoehybrid", "turn": [_LINEAR] * 5 + [_FULL], "num_hidden_layers": 6, "hidden_size": 1536,
        "intermediate_size": 512, "shared_intermediate_size": 1024, "num_attention_heads": 12, "num_key_value_heads": 4,
        "num_local_experts": 64, "num_experts_per_tok": 6, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 128,
        "mamba_n_groups": 1, "mamba_expand": 2, "mamba_d_conv": 4, "vocab_size": 100352, "tie_word_embeddings": True,
        "position_embedding_type": "nope",
    },
    "qwen3-next": {
        "model_type": "qwen3_next", "turn": [_LINEAR] * 3 + [_FULL], "num_hidden_layers": 4, "hidden_size": 2048,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 32, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "vocab_size": 32768,
    },
    "lfm2-350m": {
        "model_type": "lfm2", "turn": [_CONV, _CONV, _FULL], "num_hidden_layers": 16, "hidden_size": 1024, "intermediate_size": 6656,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 65536,
    },
    "mamba2-780m": {
        "model_type": "mamba2", "num_hidden_layers": 16, "hidden_size": 1536, "num_heads": 48, "head_dim": 64, "state_size": 128,
        "n_groups": 1, "expand": 2, "vocab_size": 50288, "tie_word_embeddings": True,
    },
    "mamba-130m": {"model_type": "mamba", "num_hidden_layers": 24, "hidden_size": 768, "state_size": 16, "vocab_size": 50280},
}  # fmt: skip


def configuration(name: str, num_layers: int = 0) -> Any:
    """The configuration of one of SHAPES, with so many layers (0: those that it has there)."""
    import transformers

    fields = dict(SHAPES[name])
    model_type, turn = fields.pop("model_type"), fields.pop("turn", [])
    count = num_layers or fields["num_hidden_layers"]
    kinds = {"layer_types": [turn[i % len(turn)] for i in range(count)]} if turn else {}
    return transformers.AutoConfig.for_model(model_type, **{**fields, "num_hidden_layers": count, **kinds})


def write_checkpoint(config: Any, folder: Path, seed: int = 0) -> int:
    """Writes a model at random, shard by shard: matrices as they begin in training, norms of ones. Returns its parameters."""
    import torch
    import transformers
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tied = set(model.all_tied_weights_keys)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if name not in tied}
    random, files = torch.Generator().manual_seed(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for index, shard in enumerate(_shards(shapes)):
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16) if "norm" in name else _drawn(shapes[name], random) for name in shard
        }
        file = f"model-{index:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _drawn(shape: tuple[int, ...], random: Any) -> Any:
    import torch

    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names, in files of up to MAX_SHARD_BYTES, or of one tensor."""
    shard, size = list[str](), 0
    for name, shape in shapes.items():
        num_bytes = 2
        for extent in shape:
            num_bytes *= extent
        if shard and size + num_bytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += num_bytes
    if shard:
        yield shard


def main(arguments: list[str]) -> None:
    """Writes the checkpoint that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=0)
    asked = parser.parse_args(arguments)
    num_parameters = write_checkpoint(configuration(asked.shape, asked.layers), asked.folder)
    print(f"{asked.folder}: {num_parameters / 1e6:.0f} million parameters")


if __name__ == "__main__":
    main(sys.argv[1:])
