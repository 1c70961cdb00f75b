"""Prompts for what stands between a prefix and a suffix, as code models learnt them: with special tokens around the two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cupola.runtime.errors import RequestError


@dataclass(frozen=True)
class MiddleFormat:
    """One convention.

    Args:
        tokens: those that the tokenizer must have.
        prompt: the prompt, with {prefix} and {suffix}.
    """

    tokens: tuple[str, ...]
    prompt: str


def _in_order(prefix: str, suffix: str, middle: str) -> MiddleFormat:
    """The most common format: the prefix, the suffix, then the middle."""
    return MiddleFormat((prefix, suffix, middle), f"{prefix}{{prefix}}{suffix}{{suffix}}{middle}")


FORMATS = (
    _in_order("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    _in_order("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code, StableCode, Refact
    _in_order("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    _in_order("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
    _in_order("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    _in_order("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    _in_order("<PRE>", "<SUF>", "<MID>"),
    MiddleFormat(  # Seed Coder
        ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"), "<[fim-suffix]>{suffix}<[fim-prefix]>{prefix}<[fim-middle]>"
    ),
    MiddleFormat(("[SUFFIX]", "[PREFIX]"), "[SUFFIX]{suffix}[PREFIX]{prefix}"),  # Codestral
)


def middle_prompt(added_tokens: Collection[str], prefix: str, suffix: str) -> str:
    """The prompt for a tokenizer with these added tokens. Raises RequestError if it has none of the formats' tokens."""
    found = next((format for format in FORMATS if all(token in added_tokens for token in format.tokens)), None)
    if found is None:
        fix = "leave it out, or serve a model that was trained to fill in the middle"
        raise RequestError("is not supported: the model's tokenizer has no tokens to fill in the middle", field="suffix", fix=fix)
    head, _, rest = found.prompt.partition("{suffix}")  # texts may hold braces
    return head.replace("{prefix}", prefix, 1) + suffix + rest.replace("{prefix}", prefix, 1)
