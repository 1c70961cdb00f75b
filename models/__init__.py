"""Model families: only what tracing cannot know, and which families are verified.

A family that is not here still compiles, with a note that nobody verified it.
"""

from cupola.models import (
    apertus,
    arcee,
    bloom,
    codegen,
    cohere,
    cohere2,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    granite,
    helium,
    hunyuan_v1_dense,
    llama,
    ministral,
    mistral,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    seed_oss,
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
    gemma.FAMILY,
    olmo.FAMILY,
    olmo3.FAMILY,
    glm.FAMILY,
    glm4.FAMILY,
    cohere2.FAMILY,
    exaone4.FAMILY,
    ernie4_5.FAMILY,
    hunyuan_v1_dense.FAMILY,
    helium.FAMILY,
    apertus.FAMILY,
    arcee.FAMILY,
    nemotron.FAMILY,
    seed_oss.FAMILY,
    ministral.FAMILY,
    gptj.FAMILY,
    codegen.FAMILY,
    gpt_neo.FAMILY,
    mpt.FAMILY,
)


def find_family(model_type: str) -> Family | None:
    """The verified family of that name, or None."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


__all__ = ["FAMILIES", "Family", "find_family"]
