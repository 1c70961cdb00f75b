"""Model families: only what tracing cannot know, and which families are verified.

A family that is not here still compiles, with a note that nobody verified it.
"""

from cupola.models import (
    bloom,
    cohere,
    falcon,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    starcoder2,
)
from cupola.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    mistral.FAMILY,
    gemma2.FAMILY,
    gemma3_text.FAMILY,
    phi.FAMILY,
    phi3.FAMILY,
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    opt.FAMILY,
    falcon.FAMILY,
    bloom.FAMILY,
    olmo2.FAMILY,
    granite.FAMILY,
    smollm3.FAMILY,
    cohere.FAMILY,
    stablelm.FAMILY,
    starcoder2.FAMILY,
)


def find_family(model_type: str) -> Family | None:
    """The verified family of that name, or None."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


__all__ = ["FAMILIES", "Family", "find_family"]
