"""Tiny models on disk, as transformers and llama.cpp write them, and the real SmolLM2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cupola.compiler.sources.builtin import bring_builtin

TINY = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "Ġ Ġ"]

MakeModel = Callable[..., PreTrainedModel]
WriteGGUF = Callable[..., Path]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model, SmolLM2-135M-Instruct in Q4_1."""
    return bring_builtin("smollm2")


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """make_model("llama", torch.float32, **config): a tiny random model."""

    def make(model_type: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**TINY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **changes})
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()

    return make


def vocabulary() -> tuple[list[str], list[int]]:
    """Tokens and their types (3: control, 1: normal) of a byte-level vocabulary of 320."""
    tokens = [*SPECIAL, *sorted(bytes_to_unicode().values()), *("".join(merge.split()) for merge in MERGES)]
    tokens += [f"unused{index}" for index in range(320 - len(tokens))]
    return tokens, [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))


def to_llama_cpp(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of llama's q and k as llama.cpp's converter does."""
    return values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


RENAMES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.", "model.layers.": "blk.",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    for before, after in RENAMES.items():
        name = name.replace(before, after)
    return name


def add_fields(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens, types = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def add_model_tensors(writer: gguf.GGUFWriter, model: PreTrainedModel, kind: GGMLQuantizationType) -> None:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if config.model_type == "llama" else {}
    for name, parameter in model.named_parameters():
        name, values = gguf_name(name), parameter.detach().float().numpy()
        part = name.split(".")[-2]
        if part in heads:
            values = to_llama_cpp(values, heads[part])
        stored = kind if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)


@pytest.fixture(scope="session")
def write_gguf(make_model: MakeModel) -> WriteGGUF:
    """write_gguf(path, "llama", kind, fields=…): a tiny model as llama.cpp's converter would write it."""

    def write(
        path: Path,
        architecture: str = "llama",
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        *,
        model: PreTrainedModel | None = None,
        fields: Callable[[gguf.GGUFWriter], None] | None = None,
        pre: str = "gpt-2",
    ) -> Path:
        writer = gguf.GGUFWriter(path, architecture)
        model = model or make_model(architecture, num_key_value_heads=2, tie_word_embeddings=True)
        add_fields(writer, model.config)
        add_tokenizer(writer, pre)
        if fields:
            fields(writer)
        add_model_tensors(writer, model, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def tiny_gguf(write_gguf: WriteGGUF, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    make_model("llama", num_key_value_heads=2).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_folder` to change."""
    return shutil.copytree(tiny_folder, tmp_path / "model")
