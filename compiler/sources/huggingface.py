"""A Hugging Face folder as a source: `config.json`, safetensors (sharded or not), tokenizer, chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cupola.compiler.sources.base import WEIGHT_DTYPES, LazyTensor, Source
from cupola.compiler.sources.chat_templates import read_chat_templates, template_files
from cupola.compiler.sources.checkpoints import Unpacked, unpack_checkpoint, without_quantization
from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.files import hash_of, member, read_json_object
from cupola.compiler.sources.generation import generation_defaults
from cupola.compiler.sources.licenses import folder_license
from cupola.compiler.sources.safetensors_file import read_metadata, read_safetensors
from cupola.compiler.sources.special_tokens import add_end_token, read_special_tokens
from cupola.compiler.sources.text_model import text_fields, with_stored_head
from cupola.compiler.sources.tokenizer_extras import EXTRA_FILES
from cupola.compiler.sources.tokenizer_files import read_tokenizer
from cupola.runtime.errors import SourceError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pt2", ".ckpt", ".pkl", ".pickle")

BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids|num_batches_tracked)$")
"""Tensors that old checkpoints carry and models compute for themselves."""

_CONTENT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *EXTRA_FILES,
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    INDEX,
)


def _index(folder: Path, path: Path) -> dict[str, str]:
    """tensor name -> file name, as a weight index gives them."""
    weight_map = read_json_object(path).get("weight_map")
    sound = (
        isinstance(weight_map, dict) and weight_map and all(key.isprintable() and isinstance(name, str) for key, name in weight_map.items())
    )
    if not isinstance(weight_map, dict) or not sound:
        raise SourceError("does not map tensor names to file names", file=path, field="weight_map", fix="download it again")
    return weight_map


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a folder: the single one, as transformers takes it first, or those that its index names.

    Raises:
        SourceError: there are none, one is missing, lies elsewhere, or they are pickles (which are never opened).
    """
    index = None if member(folder, SINGLE) else member(folder, INDEX)
    names = sorted(set(_index(folder, index).values())) if index else [SINGLE]
    paths = [(name, member(folder, name)) for name in names]
    missing = [name for name, path in paths if path is None]
    if not missing:
        return tuple(path for _, path in paths if path is not None)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles and not index:
        raise SourceError(
            "is a pickle, which may run code and is never opened", file=folder / pickles[0], fix="give the weights as safetensors"
        )
    raise SourceError("is missing", file=folder / missing[0], fix="download the folder again, or wait until its download is done")


def _read_weights(folder: Path, files: tuple[Path, ...]) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """The checkpoint's tensors, and notes on an index that does not fit them."""
    tensors: dict[str, LazyTensor] = {}
    for path in files:
        found = {
            name: tensor for name, tensor in read_safetensors(path).items() if tensor.dtype in WEIGHT_DTYPES or not BUFFERS.search(name)
        }
        if doubled := tensors.keys() & found.keys():
            raise SourceError("is in another file of the folder too", file=path, field=min(doubled), fix="download the folder again")
        tensors |= found
    index = member(folder, INDEX)
    if index is None:
        return tensors, ()
    if files == (member(folder, SINGLE),):
        return tensors, (f"{INDEX} is left out: {SINGLE} has the weights",)
    absent = [name for name in sorted(_index(folder, index).keys() - tensors.keys()) if not BUFFERS.search(name)]
    return tensors, (f"{INDEX} names {len(absent)} tensors that no file holds, such as {absent[0]:.60}",) if absent else ()


def _optional_json(folder: Path, name: str) -> dict[str, Any] | None:
    path = member(folder, name)
    return read_json_object(path) if path else None


def _code_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """That a model's own code is not run, where transformers has its class."""
    if not config.get("auto_map"):
        return ()
    return (f"the code that auto_map names is not run: transformers' own class of {config['model_type']} is taken",)


def content_files(folder: Path) -> tuple[Path, ...]:
    """Every file of a folder that the compiled model depends on."""
    return (*(path for name in _CONTENT if (path := member(folder, name))), *template_files(folder), *weight_files(folder))


def _read_model(folder: Path, config: dict[str, Any], path: Path, trust_remote_code: bool) -> tuple[Unpacked, int]:
    """The model, its configuration checked, and the size of its vocabulary."""
    vocab_size = check_config(without_quantization(config), path, trust_remote_code)
    model = _read_quantized(folder, config, path)
    plain = model.config
    if text_fields(plain) is not plain:
        plain = with_stored_head(plain, model.tensors)
    return replace(model, config=plain, notes=(*_code_notes(config), *model.notes)), vocab_size


def _read_quantized(folder: Path, config: dict[str, Any], path: Path) -> Unpacked:
    """The checkpoint, with the weights that were quantized in the place of what they are stored as."""
    files = weight_files(folder)
    tensors, notes = _read_weights(folder, files)
    metadata = {name: text for file in files for name, text in read_metadata(file).items()}
    model = unpack_checkpoint(config, tensors, metadata, path)
    return replace(model, notes=(*notes, *model.notes))


def open_huggingface(folder: Path, name: str, trust_remote_code: bool = False) -> Source:
    """A folder as transformers' `save_pretrained` writes it, or the hub holds it.

    Weights keep their stored type and are read when asked for. Nothing in the folder is run.

    Args:
        folder: holds `config.json` and `model.safetensors`, or shards and `model.safetensors.index.json`.
        name: what the user called it.
        trust_remote_code: changes only what the refusal of such a model says.

    Raises:
        SourceError: a file is missing, damaged or lies elsewhere; weights are pickles.
        UnsupportedError: the model needs code of its own, or is not one that cupola can run.
    """
    config_path = member(folder, "config.json")
    if config_path is None:
        raise SourceError("is missing", file=folder / "config.json", fix="give a folder with config.json and safetensors, or a GGUF file")
    model, vocab_size = _read_model(folder, read_json_object(config_path), config_path, trust_remote_code)
    config = model.config
    tokenizer_config = _optional_json(folder, "tokenizer_config.json") or {}
    tokenizer_json, tokenizer_notes = read_tokenizer(folder, tokenizer_config, vocab_size)
    given = _optional_json(folder, "generation_config.json")
    text = text_fields(config)
    generation, notes = generation_defaults(given, text, vocab_size, folder / "generation_config.json" if given else config_path)
    special_tokens = read_special_tokens(folder, tokenizer_config, text, tokenizer_json)
    generation, end_notes = add_end_token(generation, text, special_tokens, tokenizer_json)
    templates, template_notes = read_chat_templates(folder, tokenizer_config)
    return Source(
        name=name,
        format="huggingface",
        hash=hash_of(content_files(folder)),
        config=config,
        tensors=model.tensors,
        tokenizer_json=tokenizer_json,
        chat_templates=templates,
        special_tokens=special_tokens,
        generation_config=generation,
        notes=(*model.notes, *tokenizer_notes, *notes, *end_notes, *template_notes),
        quantized_by=model.method,
        license=folder_license(folder),
    )
