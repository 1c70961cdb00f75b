"""The forms in which `LLM` takes prompts: vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cupola.runtime.engine.validator import Prompt
from cupola.runtime.errors import RequestError

PromptDict = Mapping[str, object]
Prompts = Prompt | PromptDict | Sequence[Prompt | PromptDict]
FIX = 'give text, token ids, {"prompt": "…"}, {"prompt_token_ids": […]}, or a list of those'


def list_prompts(given: Prompts) -> list[Prompt]:
    """The prompts, one or several, each as text or token ids. Raises RequestError."""
    if isinstance(given, str | Mapping):
        return [_prompt_of(given)]
    if not isinstance(given, Sequence | np.ndarray):
        raise RequestError(f"is {given!r:.60}", field="prompts", fix=FIX)
    if len(given) and not isinstance(given[0], str | list | tuple | Mapping):
        return [given]  # type: ignore[list-item]
    return [_prompt_of(item) for item in given]  # type: ignore[arg-type]


def _prompt_of(item: Prompt | PromptDict) -> Prompt:
    if not isinstance(item, Mapping):
        return item
    given = {name: value for name, value in item.items() if value is not None}
    unknown = sorted(map(str, set(given) - {"prompt", "prompt_token_ids"}))
    if unknown or not given:
        raise RequestError(f"has {unknown[0]!r:.60}" if unknown else "is empty", field="prompts", fix=FIX)
    # Both are one prompt: the text is what the token ids were made of.
    prompt = given.get("prompt_token_ids", given.get("prompt"))
    wanted = str if "prompt_token_ids" not in given else (list, tuple, np.ndarray)
    if not isinstance(prompt, wanted):
        raise RequestError(f"has {prompt!r:.60}", field="prompts", fix=FIX)
    return prompt  # type: ignore[return-value]


def list_priorities(given: int | Sequence[int] | None, num_prompts: int) -> list[int]:
    """A priority for each prompt, 0 by default. Raises RequestError."""
    several = [given or 0] * num_prompts if given is None or isinstance(given, int) else list(given)
    if len(several) != num_prompts:
        raise RequestError(f"has {len(several)} entries for {num_prompts} prompts", field="priority", fix="give one, or one a prompt")
    for value in several:
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"has {value!r:.60}", field="priority", fix="give whole numbers, lower ones for what goes first")
    return several
