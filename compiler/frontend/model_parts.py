"""Parts that models have and cupola can't run, found in the built model before anything is traced: one table.

Tracing finds them too, but late, and says of a router that it merges axes. Here a module's class says what it is:
transformers names them alike in every family. What this table doesn't know, `compiler/frontend/cross_token_check.py` still refuses.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from cupola.compiler.frontend.experts import is_caught
from cupola.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Part:
    """A kind of layer.

    Attributes:
        name: what it is, so that "the model has …" can be said of it.
        classes: a regular expression that matches the class names of its modules as a whole.
    """

    name: str
    classes: str


UNSUPPORTED_PARTS = (
    Part("a mixture of experts of a kind of its own", r"\w*(Experts|ExpertGLU|CDMoE)"),
    Part("recurrent state that is kept relative to the largest key so far (RWKV)", r"Rwkv\w*Attention"),
    Part("recurrent state (xLSTM, by its own package)", r"mLSTMLayer"),
    Part("convolutions over tokens", r"\w*(ShortConvolution|CCAProjection)"),
    Part("sparse attention whose keys an indexer chooses", r"\w*(Indexer|Compressor)"),
    Part("attention within hashed chunks", r"LSHSelfAttention|LocalSelfAttention"),
    Part("several residual streams that predict one another (AltUp)", r"\w*AltUp"),
    Part("prompts whose tokens see later ones", r"PaliGemmaModel"),
    Part("attention to the whole prompt and a window of the answer", r"UnlimitedOcrTextAttention"),
    Part("attention over predicted n-grams", r"ProphetNetNgramSelfAttention"),
    Part("cross-attention", r"\w*CrossAttention"),
)


def refuse_unsupported_parts(model: Any, model_type: str, file: str, among: Container[str] | None = None) -> None:
    """Checks the modules of a model, which may be on the meta device; if `among` is given, those of these paths alone.

    Raises:
        UnsupportedError: naming every part that cupola lacks, and one module of each.
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for part in UNSUPPORTED_PARTS if among is None or path in among else ():
            if re.fullmatch(part.classes, type(module).__name__) and not is_caught(module):
                found.setdefault(part.name, path)
    if found:
        parts = [f"{name} ({path})" for name, path in found.items()]
        listed = " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), parts[-1]])
        fix = "models whose only memory of earlier tokens is attention compile"
        raise UnsupportedError(f"has {listed}, which cupola does not run", file=file, field=model_type, fix=fix)
