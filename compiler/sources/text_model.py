"""The text model inside a model of text and images, as a checkpoint of its own: what such a model computes of tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.config_check import check_quantization
from cupola.compiler.sources.files import one_line
from cupola.runtime.errors import SourceError

# Models whose text model is a causal language model that transformers has, with nothing added to it where there is no image.
_WRAPPERS = {"gemma3", "mistral3", "llava", "internvl", "smolvlm", "idefics3"}
# How checkpoints name the parts of the text model -> what it calls them itself. The first that fits counts.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "lm_head.": "lm_head.",
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def has_text_model(config: Mapping[str, Any]) -> bool:
    """True if a `config.json` describes a model of text and images whose text model compiles alone."""
    return str(config.get("model_type")) in _WRAPPERS and isinstance(config.get("text_config"), dict)


def text_config(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], file: object) -> dict[str, Any]:
    """The content of `config.json` for the text model of `config`, whose tensors are as `text_tensors` gives them.

    Raises:
        SourceError: transformers can't read the configuration; `file` is for the message.
        UnsupportedError: its weights are quantized already.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    check_quantization(config, file)
    try:
        whole = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    except Exception as error:  # noqa: BLE001  whatever its classes raise, the configuration caused it
        raise SourceError(f"transformers refuses it: {one_line(error)}", file=file) from None
    text = whole.get_text_config()
    ties = bool(whole.tie_word_embeddings or text.tie_word_embeddings) and "lm_head.weight" not in tensors
    tokens = {name: config[name] for name in _TOKENS if config.get(name) is not None}
    return {**text.to_dict(), **tokens, "tie_word_embeddings": ties}


def text_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Those that belong to the text model, by its own names."""
    found = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            own = _PREFIXES[prefix] + name.removeprefix(prefix)
            found[own] = replace(tensor, name=own)
    return found


def text_note(config: Mapping[str, Any]) -> str:
    """Says that images are left out."""
    return f"this is the text model of {config['model_type']} alone: it takes no images"
