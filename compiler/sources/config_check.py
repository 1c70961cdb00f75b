"""Is a `config.json` one that transformers can build a causal language model of, of sane size?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from cupola.compiler.sources.files import one_line
from cupola.compiler.sources.text_model import text_fields
from cupola.models import find_family
from cupola.runtime.errors import SourceError, UnsupportedError

_HIGHEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 18,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "intermediate_size": 1 << 22,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 31,
}
_FIX = "use the config.json that came with the weights"
_OLD_NAMES = {"hidden_size": "n_embed"}
_PER_LAYER = ("intermediate_size",)  # may be a list, a size for each layer
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_OTHER_KINDS = {
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "reads images beside text",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "reads sound",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "has an encoder beside its decoder",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "fills in masked tokens, for which it sees the later ones too",
}
"""transformers' tables of models that are not causal language models -> what such a model does, the first that fits."""
_SENSES = {"vision_config": "images", "vq_config": "images", "audio_config": "sound"}


def _declared(config_class: Any) -> frozenset[str]:
    """The fields that a configuration class has, by all of their names."""
    return frozenset((*(field.name for field in dataclasses.fields(config_class)), *getattr(config_class, "attribute_map", {})))


def _sizes(config: Mapping[str, Any], config_class: Any, file: object) -> dict[str, int]:
    """The sizes that the configuration states, by their usual names, each checked.

    Only what the class knows can be missing: models without attention have no heads.
    """
    aliases: Mapping[str, str] = getattr(config_class, "attribute_map", {})
    declared = _declared(config_class)
    sizes = {}
    for usual, highest in _HIGHEST.items():
        field = next((name for name in (usual, aliases.get(usual), _OLD_NAMES.get(usual)) if name and config.get(name) is not None), None)
        if field is None:
            if usual in _REQUIRED and usual in declared:
                raise SourceError("is missing", file=file, field=aliases.get(usual, usual), fix=_FIX)
            continue
        value = config[field]
        values = value if usual in _PER_LAYER and isinstance(value, list) and value else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) and 1 <= each <= highest for each in values):
            raise SourceError(f"is {value!r:.40}, not a whole number from 1 to {highest}", file=file, field=field, fix=_FIX)
        sizes[usual] = max(values)
    return sizes


def _check_heads(sizes: Mapping[str, int], file: object) -> None:
    heads, hidden, kv_heads = sizes.get("num_attention_heads", 1), sizes.get("hidden_size", 1), sizes.get("num_key_value_heads", 1)
    fix = _FIX
    if "head_dim" not in sizes and hidden % heads:
        raise SourceError(f"{heads} heads do not divide the hidden size, {hidden}", file=file, field="num_attention_heads", fix=fix)
    if heads % kv_heads:
        raise SourceError(f"{kv_heads} do not divide the {heads} attention heads", file=file, field="num_key_value_heads", fix=fix)


def _has_own_class(config: Mapping[str, Any]) -> bool:
    """True if transformers ships the class that a configuration names, so that the model's own code is not needed."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    model_type = str(config.get("model_type"))
    shipped = [table.get(model_type, ()) for table in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)]
    names = {name for each in shipped for name in ((each,) if isinstance(each, str) else each)}
    wanted = config.get("architectures") or names
    return bool(names) and isinstance(wanted, list | tuple) and any(name in names for name in wanted)


def _config_class(config: Mapping[str, Any], file: object) -> Any:
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING_NAMES:
        near = get_close_matches(str(model_type), CONFIG_MAPPING_NAMES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "use a model that the installed transformers knows"
        raise SourceError(
            f"is {model_type!r:.60}, which transformers does not know" if model_type else "is missing",
            file=file,
            field="model_type",
            fix=hint,
        )
    tables = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    if not any(model_type in table for table in tables) and "text_config" not in config:
        kinds = (kind for table, kind in _OTHER_KINDS.items() if model_type in getattr(modeling_auto, table))
        kind = next(kinds, "is a part of another model or no language model")
        problem = f"transformers has no causal language model of the type {model_type!r}, which {kind}"
        raise UnsupportedError(problem, file=file, field="model_type", fix="give a model that continues text")
    return CONFIG_MAPPING[model_type]


def _refuse_composites(config: Mapping[str, Any], config_class: Any, file: object) -> None:
    """Refuses models that are made of several, each with a configuration of its own."""
    parts = [name for name in getattr(config_class, "sub_configs", {}) if name in config]
    text = config.get("text_config")
    if not text and not (parts and "hidden_size" not in _declared(config_class)):
        return
    if getattr(config_class, "is_encoder_decoder", False) is True:
        raise UnsupportedError(
            "has an encoder beside its decoder", file=file, field=config["model_type"], fix="give a model that continues text"
        )
    senses = dict.fromkeys(_SENSES[name] for name in parts if name in _SENSES and config.get(name))
    what = f"reads {' and '.join(senses)} beside text" if text and senses else f"is made of several models ({', '.join(parts)})"
    text_type = text.get("model_type") if isinstance(text, dict) else None
    fix = (
        f"a checkpoint of its text model alone, of the type {text_type}, compiles"
        if find_family(str(text_type))
        else "give a model of text"
    )
    raise UnsupportedError(f"{what}, and cupola compiles models of text alone", file=file, field=config["model_type"], fix=fix)


def _text_part(config: Mapping[str, Any], config_class: Any, file: object) -> tuple[Mapping[str, Any], Any]:
    """The fields of the text model, and their configuration class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    try:
        text = text_fields(config)
    # The configuration classes check their fields with whatever exception came to hand.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"transformers refuses it: {one_line(error)}", file=file, fix=_FIX) from None
    if text is config:
        _refuse_composites(config, config_class, file)
        return config, config_class
    check_quantization(text, file)
    known = text.get("model_type") in CONFIG_MAPPING_NAMES
    return text, CONFIG_MAPPING[text["model_type"]] if known else config_class.sub_configs.get("text_config", config_class)


def _check_rope(config: Mapping[str, Any], file: object) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for field in ("rope_parameters", "rope_scaling"):
        stated = config.get(field)
        kind = stated.get("rope_type", stated.get("type", "default")) if isinstance(stated, dict) else "default"
        if kind != "default" and str(kind) not in ROPE_INIT_FUNCTIONS:
            known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
            raise SourceError(
                f"is {kind!r:.40}, which transformers does not know", file=file, field=f"{field}.rope_type", fix=f"one of: {known}"
            )


def check_quantization(config: Mapping[str, Any], file: object) -> None:
    """Raises UnsupportedError if the weights are quantized in a way of transformers' own."""
    if config.get("quantization_config"):
        raise UnsupportedError(
            "the weights are already quantized",
            file=file,
            field="quantization_config",
            fix="give the model in f32, f16 or bf16, or as a GGUF file",
        )


def check_config(config: Mapping[str, Any], file: object, trust_remote_code: bool = False) -> int:
    """Check a configuration before anything is built from it.

    Args:
        config: the content of `config.json`.
        file: the file to name in errors.
        trust_remote_code: whether the user asked for the model's own code; it only changes what the refusal says.

    Returns:
        The size of the vocabulary.

    Raises:
        SourceError: a field is missing or cannot be right.
        UnsupportedError: it asks for something that cupola does not do.
    """
    if config.get("auto_map") and not _has_own_class(config):
        what = "cupola compiles only the model classes that transformers ships" if trust_remote_code else "asks to run code of its own"
        raise UnsupportedError(what, file=file, field="auto_map", fix="remove the field if transformers' own class is meant")
    check_quantization(config, file)
    config_class = _config_class(config, file)
    text, text_class = _text_part(config, config_class, file)
    sizes = _sizes(text, text_class, file)
    _check_heads(sizes, file)
    _check_rope(text, file)
    try:
        config_class.from_dict(dict(config))
    # The configuration classes check their fields with whatever exception came to hand.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"transformers refuses it: {one_line(error)}", file=file, fix=_FIX) from None
    return sizes["vocab_size"]
