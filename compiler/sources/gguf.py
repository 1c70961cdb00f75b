"""A GGUF file as a source: tensors dequantized exactly as the format defines, under their transformers names."""

from __future__ import annotations

from pathlib import Path

from cupola.compiler.sources.base import Array, Source
from cupola.compiler.sources.chat_templates import gguf_chat_templates
from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.files import hash_of
from cupola.compiler.sources.generation import generation_defaults
from cupola.compiler.sources.gguf_config import architecture_in, architecture_of, derive_config
from cupola.compiler.sources.gguf_header import RECONVERT, GGUFHeader
from cupola.compiler.sources.gguf_split import joined, read_parts
from cupola.compiler.sources.gguf_tensors import read_tensors
from cupola.compiler.sources.gguf_tokenizer import convert_tokenizer, stop_token_ids
from cupola.compiler.sources.gguf_values import read_values
from cupola.compiler.sources.licenses import gguf_license
from cupola.compiler.sources.special_tokens import gguf_special_tokens
from cupola.runtime.errors import SourceError


def _rope_factors(parts: tuple[GGUFHeader, ...], name: str) -> Array:
    header, info = next(((part, info) for part in parts for info in part.tensors if info.name == name), (parts[0], None))
    if info is None:
        raise SourceError("is missing", file=header.path, field=name, fix=RECONVERT)
    if info.type_name != "F32":
        raise SourceError(f"has the type {info.type_name}, not F32", file=header.path, field=name, fix=RECONVERT)
    return read_values(header, info)


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
    tensors, notes = read_tensors(header, parts, architecture_in(header), facts)
    tokenizer_json, tokenizer_notes = convert_tokenizer(header.metadata, architecture, path)
    templates, template_notes = gguf_chat_templates(header.metadata, path)
    special_tokens = gguf_special_tokens(header.metadata)
    stops = {"eos_token_id": stop_token_ids(header.metadata)}
    generation, generation_notes = generation_defaults(None, config | (stops if stops["eos_token_id"] else {}), vocab_size, path)
    return Source(
        name=name,
        format="gguf",
        hash=hash_of([part.path for part in parts]),
        config=config,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        chat_templates=templates,
        special_tokens=special_tokens,
        generation_config=generation,
        notes=(*config_notes, *notes, *tokenizer_notes, *generation_notes, *template_notes),
        license=gguf_license(header.metadata),
    )
