"""Mixtures of experts of real models' shapes as GGUF files, with random weights and few layers: what speed needs, and nothing else.

    python -m benchmarks.experts.models qwen3-30b-a3b --layers 8 --out qwen3.gguf

Matrices are Q4_0, the experts of GPT-OSS MXFP4; norms, routers and biases float32. The vocabulary is small, so that the embedding and the
logits take the share of a step that they have among all of the model's layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

Array = npt.NDArray[Any]
VOCABULARY, BLOCK = 32768, 32


@dataclass(frozen=True)
class Model:
    """The sizes of a model, as its configuration names them."""

    architecture: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    choices: int
    width: int
    rope_theta: float
    window: int = 0
    expert_kind: Kind = Kind.Q4_0

    def tensors(self, layers: int) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
        """Names, shapes and types."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "token_embd.weight", (VOCABULARY, h), Kind.Q4_0
        for layer in range(layers):
            for name, shape, kind in self._layer(h, q, kv):
                yield f"blk.{layer}.{name}", shape, kind
        yield "output_norm.weight", (h,), Kind.F32
        yield "output.weight", (VOCABULARY, h), Kind.Q4_0

    def _layer(self, h: int, q: int, kv: int) -> Iterator[tuple[str, tuple[int, ...], Kind]]:
        e, w = self.experts, self.width
        for name, rows, depth in (("attn_q", q, h), ("attn_k", kv, h), ("attn_v", kv, h), ("attn_output", h, q)):
            yield f"{name}.weight", (rows, depth), Kind.Q4_0
            if self.window:
                yield f"{name}.bias", (rows,), Kind.F32
        yield "attn_norm.weight", (h,), Kind.F32
        yield "ffn_gate_inp.weight", (e, h), Kind.F32
        for name, rows, depth in (("ffn_gate_exps", w, h), ("ffn_up_exps", w, h), ("ffn_down_exps", h, w)):
            yield f"{name}.weight", (e, rows, depth), self.expert_kind
            if self.window:
                yield f"{name}.bias", (e, rows), Kind.F32
        if self.window:  # GPT-OSS
            yield "ffn_gate_inp.bias", (e,), Kind.F32
            yield "attn_sinks.weight", (self.heads,), Kind.F32
            yield "post_attention_norm.weight", (h,), Kind.F32
        else:
            yield "ffn_norm.weight", (h,), Kind.F32
            for name in ("attn_q_norm", "attn_k_norm"):
                yield f"{name}.weight", (self.head_dim,), Kind.F32


MODELS = {
    "qwen3-30b-a3b": Model("qwen3moe", 2048, 32, 4, 128, 128, 8, 768, 1e6),
    "gpt-oss-20b": Model("gpt-oss", 2880, 64, 8, 64, 32, 4, 2880, 150000.0, 128, Kind.MXFP4),
}


def write(model: Model, layers: int, path: Path) -> None:
    """The file."""
    writer = gguf.GGUFWriter(path, model.architecture)
    _add_fields(writer, model, layers)
    arrays: list[Callable[[], Array]] = []
    random = np.random.default_rng(0)
    for name, shape, kind in model.tensors(layers):
        size, each = gguf.GGML_QUANT_SIZES[kind]
        stored = shape if kind == Kind.F32 else (*shape[:-1], shape[-1] // size * each)
        dtype = np.dtype(np.float32 if kind == Kind.F32 else np.uint8)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)) * dtype.itemsize, kind)
        arrays.append(lambda name=name, stored=stored, kind=kind: _values(random, name, stored, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for make in arrays:
        writer.write_tensor_data(make())
    writer.close()


def _add_fields(writer: gguf.GGUFWriter, model: Model, layers: int) -> None:
    writer.add_block_count(layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(model.hidden)
    writer.add_feed_forward_length(model.width)
    writer.add_expert_feed_forward_length(model.width)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_expert_count(model.experts)
    writer.add_expert_used_count(model.choices)
    if model.window:
        writer.add_sliding_window(model.window)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)
    units = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's bytes as characters
    units += range(256, 512 - len(units))
    letters = [chr(unit) for unit in units]
    pair = letters[0] + letters[1]
    tokens = [*letters, pair, *(f"<{number}>" for number in range(VOCABULARY - len(letters) - 2)), "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)


def _values(random: np.random.Generator, name: str, stored: tuple[int, ...], kind: Kind) -> Array:
    """Random codes under one scale, such that rows keep about their length; norms are ones."""
    if kind == Kind.F32:
        if "norm" in name:
            return np.ones(stored, np.float32)
        return (0.02 * random.standard_normal(stored)).astype(np.float32)
    each = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = random.integers(0, 256, (int(np.prod(stored)) // each, each), np.uint8)
    if kind == Kind.MXFP4:
        blocks[:, 0] = 119  # 2^-8, of numbers up to 6
    else:
        blocks[:, :2] = np.array([0.005], np.float16).view(np.uint8)
    return blocks.reshape(stored)


def main() -> None:
    """Writes the model that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(MODELS[arguments.model], arguments.layers, arguments.out)


if __name__ == "__main__":
    main()
