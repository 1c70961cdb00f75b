"""Adapters that a model has for each language (X-MOD): all rows go through those of its default language, the others are left out.

The model picks the rows of each language by a mask, whose number no trace knows; an artifact has one language.
"""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from cupola.runtime.errors import UnsupportedError


def keep_default_language(model: nn.Module, file: str) -> tuple[str, ...]:
    """Changes the model in place; returns a note if it has such adapters.

    Raises:
        UnsupportedError: its configuration names no default language, or one that it has no adapters for.
    """
    found = [module for module in model.modules() if hasattr(module, "lang_adapter")]
    if not found:
        return ()
    config: Any = model.config
    language, known = config.default_language, list(config.languages)
    if language not in known:
        problem = f"is {language}, but the model chooses its adapters by language"
        raise UnsupportedError(problem, file=file, field="default_language", fix=f"name one of those that it has: {', '.join(known)}")
    for module in found:
        adapters: Any = module.adapter_modules
        module.adapter_modules = nn.ModuleDict({language: adapters[language]})
        module.lang_adapter = types.MethodType(_adapt_to(language), module)
    return (f"the adapters are those of {language}, the model's default_language",)


def _adapt_to(language: str) -> Any:
    def lang_adapter(self: Any, _lang_ids: Any, hidden_states: Any) -> Any:
        normal = hidden_states
        if self.adapter_layer_norm is not None:
            normal = self.adapter_layer_norm(hidden_states)
        elif self.adapter_reuse_layer_norm:
            normal = self.LayerNorm(hidden_states)
        return self.adapter_modules[language](normal) + (normal if self.ln_before_adapter else hidden_states)

    return lang_adapter
