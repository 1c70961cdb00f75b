"""Models of text and something else: images, sound. Their configuration holds that of a text model, whose sizes and limits are meant.

Such a model is one of transformers' multimodal language models. It is traced as it is, called with token ids alone
(`compiler/frontend/text_path.py`), so nothing here knows the single types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HEAD = "lm_head.weight"


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a `config.json` that describe its text model.

    Of a model of text alone these are `config` itself, the same object. Otherwise they are those of the text model's configuration, as
    transformers completes them, with the token ids that the whole names; or a copy of `config`, if it has them beside a tower's.

    Raises:
        Exception: whatever transformers' configuration classes raise where they cannot read it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    model_type = config.get("model_type")
    if model_type not in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        return config
    whole = CONFIG_MAPPING[model_type].from_dict(dict(config))
    text = whole.get_text_config(decoder=True)
    if whole.is_encoder_decoder or (text is whole and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return config
    if text is whole:  # as Chameleon's
        return dict(config)
    tokens = {name: config[name] for name in _TOKENS if config.get(name) is not None}
    return {**text.to_dict(), **tokens}


def with_stored_head(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """The configuration of a model of text and something else, which ties no head that its checkpoint holds.

    Whether it ties them is said by the whole or by the text model, and often by neither: then the tensors tell.
    """
    found = dict(config)
    if any(name == _HEAD or name.endswith(f".{_HEAD}") for name in tensors):
        found["tie_word_embeddings"] = False
        if isinstance(found.get("text_config"), dict):
            found["text_config"] = {**found["text_config"], "tie_word_embeddings": False}
    return found
