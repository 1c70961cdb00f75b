"""How models mark what they think: a table, and the choice from it by what a chat template and a tokenizer show."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model marks its thinking.

    Args:
        name: for humans.
        begins: markers before it; one of them is the first of an answer, or the last of a prompt.
        ends: markers after it; the first is what a model is made to write when its budget is used up.
        frames: markers around the answer itself, which say nothing.
        signs: a template that contains all of these speaks the format. By default, one of `begins` or `ends` is enough.
    """

    name: str
    begins: tuple[str, ...]
    ends: tuple[str, ...]
    frames: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.begins, *self.ends, *self.frames)


FORMATS = (  # the first whose signs are found
    ReasoningFormat("mistral", ("[THINK]",), ("[/THINK]",)),  # Magistral, Ministral 3
    ReasoningFormat("seed", ("<seed:think>",), ("</seed:think>",)),
    ReasoningFormat("cohere", ("<|START_THINKING|>",), ("<|END_THINKING|>",), frames=("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ReasoningFormat("kimi_vl", ("◁think▷",), ("◁/think▷",)),
    ReasoningFormat(
        "apriel", ("Here are my reasoning steps:",), ("[BEGIN FINAL RESPONSE]",), frames=("[END FINAL RESPONSE]",),
        signs=("[BEGIN FINAL RESPONSE]",),
    ),
    ReasoningFormat(  # Granite 3.2; 3.3 and later have tags
        "granite", ("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:"),
        signs=("Here is my thought process:",),
    ),
    ReasoningFormat("hunyuan", ("<think>",), ("</think>",), frames=("<answer>", "</answer>"), signs=("<think>", "<answer>")),
    ReasoningFormat("granite_tags", ("<think>",), ("</think>",), frames=("<response>", "</response>"), signs=("<think>", "<response>")),
    ReasoningFormat("think", ("<think>",), ("</think>",)),  # DeepSeek, Qwen, GLM, SmolLM3, MiniMax, Nemotron, OLMo, EXAONE, Phi, ERNIE
)  # fmt: skip


def find_format(template: str, added_tokens: Collection[str] = ()) -> ReasoningFormat | None:
    """How the model marks its thinking; None if neither its template nor the tokens added to its vocabulary show a way."""
    for format in FORMATS:
        if format.signs:
            shown = all(sign in template for sign in format.signs)
        else:
            shown = any(marker in template for marker in (*format.begins, *format.ends)) or format.ends[0] in added_tokens
        if shown:
            return format
    return None


def starts_thinking(format: ReasoningFormat | None, prompt: str) -> bool:
    """True if the answer begins within the thinking, because the prompt ends with the marker that starts it."""
    return format is not None and prompt.rstrip().endswith(format.begins)


def goes_on_thinking(format: ReasoningFormat | None, text: str) -> bool:
    """True if an assistant's unfinished message breaks off within its thinking."""
    if format is None or not text.lstrip().startswith(format.begins):
        return False
    return not any(end in text for end in format.ends)
