"""A GGUF file as a source: tensors dequantized exactly as the format defines, under their transformers names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor, Source
from cupola.compiler.sources.chat_templates import gguf_chat_templates
from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.files import sha256_of, typed
from cupola.compiler.sources.generation import generation_defaults
from cupola.compiler.sources.gguf_architectures import ARCHITECTURES, Architecture
from cupola.compiler.sources.gguf_blocks import BLOCKS
from cupola.compiler.sources.gguf_config import architecture_of, derive_config
from cupola.compiler.sources.gguf_facts import Facts
from cupola.compiler.sources.gguf_header import RECONVERT, GGUFHeader, TensorInfo
from cupola.compiler.sources.gguf_split import joined, read_parts
from cupola.compiler.sources.gguf_tensors import part_of, row_order, transformers_name, without_name
from cupola.compiler.sources.gguf_tokenizer import convert_tokenizer, stop_token_ids
from cupola.compiler.sources.special_tokens import gguf_special_tokens
from cupola.runtime.errors import SourceError, UnsupportedError
from cupola.targets.formats.ggml import GGML_FORMATS

_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


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


def _lazy(header: GGUFHeader, info: TensorInfo, name: str, order: Array | None) -> LazyTensor:
    from gguf import quants

    # gguf.quants has one class for each type that it can dequantize, named as the type is.
    if info.type_name not in _FLOATS and info.type_name not in BLOCKS and not hasattr(quants, info.type_name):
        raise UnsupportedError(
            f"has the type {info.type_name}, which cannot be dequantized",
            file=header.path,
            field=info.name,
            fix="use a file of another quantization",
        )
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


def _changed(tensor: LazyTensor, shape: tuple[int, ...], dtype: str, change: Callable[[Array], Array]) -> LazyTensor:
    """A tensor with changed values, of which no blocks are left."""

    def load() -> Array:
        return np.ascontiguousarray(change(tensor.load()))

    return LazyTensor(tensor.name, shape, dtype, load, tensor.stored_as)


def _arranged(header: GGUFHeader, info: TensorInfo, name: str, architecture: Architecture, facts: Facts) -> LazyTensor:
    """A tensor as the model has it."""
    tensor = _lazy(header, info, name, row_order(info, architecture, facts, header))
    part = part_of(info.name)
    if architecture.offset_norms and part.endswith("norm") and name.endswith(".weight"):
        return _changed(tensor, tensor.shape, "float32", lambda values: values.astype(np.float32) - 1)
    if part in architecture.transposed and len(info.shape) == 2:
        return _changed(tensor, tensor.shape[::-1], tensor.dtype, np.transpose)
    return tensor


def _read_tensors(parts: tuple[GGUFHeader, ...], architecture: Architecture, facts: Facts) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    names = architecture.names_in(facts.tensors)
    unknown = [name for part in parts for name in without_name(part, architecture, names)]
    tensors = {
        name: _arranged(part, info, name, architecture, facts)
        for part in parts
        for info in part.tensors
        if (name := transformers_name(info.name, names)) is not None
    }
    notes = (f"{len(unknown)} unknown tensors left out, such as {unknown[0]:.60}",) if unknown else ()
    return tensors, notes


def _rope_factors(parts: tuple[GGUFHeader, ...], name: str) -> Array:
    header, info = next(((part, info) for part in parts for info in part.tensors if info.name == name), (parts[0], None))
    if info is None:
        raise SourceError("is missing", file=header.path, field=name, fix=RECONVERT)
    if info.type_name != "F32":
        raise SourceError(f"has the type {info.type_name}, not F32", file=header.path, field=name, fix=RECONVERT)
    return _values(header, info)


def open_gguf(path: Path, name: str) -> Source:
    """A GGUF file of the architectures in `gguf_architectures`.

    Tensors are dequantized to float32 when asked for, one at a time; F32, F16 and BF16 tensors are views of the file.

    Args:
        path: the file, or any part of a model in several files.
        name: what the user called it.

    Raises:
        SourceError: the file is damaged, cut off or forged.
        UnsupportedError: an architecture, tensor type or feature that is not read here.
    """
    parts = read_parts(path)
    header = joined(parts)
    architecture = architecture_of(header)
    config, facts, config_notes = derive_config(header, lambda tensor: _rope_factors(parts, tensor))
    vocab_size = check_config(config, path)
    tensors, notes = _read_tensors(parts, ARCHITECTURES[architecture], facts)
    tokenizer_json, tokenizer_notes = convert_tokenizer(header.metadata, architecture, path)
    templates, template_notes = gguf_chat_templates(header.metadata, path)
    special_tokens = gguf_special_tokens(header.metadata)
    stops = {"eos_token_id": stop_token_ids(header.metadata)}
    generation, generation_notes = generation_defaults(None, config | (stops if stops["eos_token_id"] else {}), vocab_size, path)
    return Source(
        name=name,
        format="gguf",
        sha256=sha256_of([part.path for part in parts]),
        config=config,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        chat_templates=templates,
        special_tokens=special_tokens,
        generation_config=generation,
        notes=(*config_notes, *notes, *tokenizer_notes, *generation_notes, *template_notes),
    )
