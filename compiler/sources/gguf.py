"""A GGUF file as a source: tensors dequantized exactly as the format defines, under their transformers names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor, Source
from cupola.compiler.sources.chat_templates import gguf_chat_templates
from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.files import sha256_of, typed
from cupola.compiler.sources.generation import generation_defaults
from cupola.compiler.sources.gguf_blocks import BLOCKS
from cupola.compiler.sources.gguf_config import architecture_of, derive_config
from cupola.compiler.sources.gguf_header import RECONVERT, GGUFHeader, TensorInfo, read_header
from cupola.compiler.sources.gguf_tokenizer import convert_tokenizer, stop_token_ids
from cupola.compiler.sources.special_tokens import gguf_special_tokens
from cupola.runtime.errors import SourceError, UnsupportedError
from cupola.targets.formats.ggml import GGML_FORMATS

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,5})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_COMPUTED = ("rope_freqs.weight",)


def transformers_name(name: str) -> str | None:
    """The transformers name of a tensor of the llama family, or None if it has none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer = match["layer"]
    part = (_TOP if layer is None else _LAYER).get(match["part"])
    if part is None:
        return None
    prefix = "" if layer is None else f"model.layers.{layer}."
    return f"{prefix}{part}.{match['kind']}"


def _row_order(name: str, num_rows: int, heads: Mapping[str, int]) -> Array | None:
    """For llama's q and k: which row of the file is each row of the checkpoint.

    llama.cpp rotates neighbouring pairs (0, 1), (2, 3), …; transformers the halves (0, d/2), (1, d/2 + 1), …. The
    converter to GGUF therefore interleaves the halves of each head, which is undone here. Only rows move, so this
    holds for quantized blocks, which lie along rows, as well.
    """
    match = _NAME.fullmatch(name)
    num_heads = heads.get(match["part"]) if match else None
    if num_heads is None:
        return None
    order: Array = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _values(header: GGUFHeader, info: TensorInfo) -> Array:
    """A tensor as the file has it: a view in its own float type, or dequantized to float32."""
    raw = header.data[info.begin : info.begin + info.num_bytes]
    if dtype := _FLOATS.get(info.type_name):
        return typed(raw, dtype, info.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if info.type_name == "Q1_0":  # which the library does not know
        return BLOCKS[info.type_name](raw, math.prod(info.shape[:-1])).values().reshape(info.shape)
    # A damaged scale may be NaN; what that does to a weight is not for numpy to warn about here.
    with np.errstate(invalid="ignore", over="ignore"):
        values: Array = dequantize(raw.reshape(*info.shape[:-1], -1), GGMLQuantizationType[info.type_name])
    return values


def _lazy(header: GGUFHeader, info: TensorInfo, name: str, heads: Mapping[str, int]) -> LazyTensor:
    from gguf import quants

    # gguf.quants has one class for each type that it can dequantize, named as the type is.
    if info.type_name not in _FLOATS and info.type_name not in BLOCKS and not hasattr(quants, info.type_name):
        raise UnsupportedError(
            f"has the type {info.type_name}, which cannot be dequantized",
            file=header.path,
            field=info.name,
            fix="use a file of another quantization",
        )
    order = _row_order(info.name, info.shape[0], heads)
    dtype = _FLOATS[info.type_name].name if info.type_name in _FLOATS else "float32"

    def load() -> Array:
        values = _values(header, info)
        return values if order is None else values[order]

    if info.type_name not in BLOCKS or len(info.shape) != 2:
        return LazyTensor(name, info.shape, dtype, load, info.type_name)
    raw = header.data[info.begin : info.begin + info.num_bytes]
    form = GGML_FORMATS[info.type_name]
    return LazyTensor(
        name, info.shape, dtype, load, info.type_name, form, lambda: BLOCKS[info.type_name](raw, info.shape[0]).in_order(order)
    )


def _check_rows(header: GGUFHeader, config: Mapping[str, Any], heads: Mapping[str, int]) -> None:
    """The rows of q and k must fill their heads before they can be put in order."""
    for info in header.tensors:
        match = _NAME.fullmatch(info.name)
        if match and match["part"] in heads and info.shape[0] != heads[match["part"]] * config["head_dim"]:
            wanted = f"{heads[match['part']]} heads of {config['head_dim']}"
            raise SourceError(f"has {info.shape[0]} rows, not {wanted}", file=header.path, field=info.name, fix=RECONVERT)


def _read_tensors(header: GGUFHeader, config: Mapping[str, Any]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    permuted = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    heads = permuted if config["model_type"] == "llama" else {}
    _check_rows(header, config, heads)
    tensors, unknown = {}, []
    for info in header.tensors:
        name = transformers_name(info.name)
        if name is not None:
            tensors[name] = _lazy(header, info, name, heads)
        elif info.name not in _COMPUTED:
            unknown.append(info.name)
    notes = (f"{len(unknown)} unknown tensors left out, such as {unknown[0]:.60}",) if unknown else ()
    return tensors, notes


def _rope_factors(header: GGUFHeader, name: str) -> Array:
    info = next(info for info in header.tensors if info.name == name)
    if info.type_name != "F32":
        raise SourceError(f"has the type {info.type_name}, not F32", file=header.path, field=name, fix=RECONVERT)
    return _values(header, info)


def open_gguf(path: Path, name: str) -> Source:
    """A GGUF file of the architectures in `gguf_config.CLASSES`.

    Tensors are dequantized to float32 when asked for, one at a time; F32, F16 and BF16 tensors are views of the file.

    Args:
        path: the file.
        name: what the user called it.

    Raises:
        SourceError: the file is damaged, cut off or forged.
        UnsupportedError: an architecture, tensor type or feature that is not read here.
    """
    header = read_header(path)
    architecture = architecture_of(header)
    config, config_notes = derive_config(header, lambda tensor: _rope_factors(header, tensor))
    vocab_size = check_config(config, path)
    tensors, notes = _read_tensors(header, config)
    tokenizer_json, tokenizer_notes = convert_tokenizer(header.metadata, architecture, path)
    templates, template_notes = gguf_chat_templates(header.metadata, path)
    special_tokens = gguf_special_tokens(header.metadata)
    stops = {"eos_token_id": stop_token_ids(header.metadata)}
    generation, generation_notes = generation_defaults(None, config | (stops if stops["eos_token_id"] else {}), vocab_size, path)
    return Source(
        name=name,
        format="gguf",
        sha256=sha256_of([path]),
        config=config,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        chat_templates=templates,
        special_tokens=special_tokens,
        generation_config=generation,
        notes=(*config_notes, *notes, *tokenizer_notes, *generation_notes, *template_notes),
    )
