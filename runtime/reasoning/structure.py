"""Grammars of answers that think first: the form that an answer must have begins after the thinking, which a budget may end.

All of it is one of XGrammar's structural tags, in which special tokens are text, so that markers of either kind are seen.
"""

from __future__ import annotations

import json
from typing import Any

from cupola.runtime.reasoning.formats import ReasoningFormat
from cupola.runtime.structured.structured_outputs import StructuredOutputs

Tag = dict[str, Any]
_SPACE: Tag = {"type": "regex", "pattern": r"[ \r\n\t]{0,8}"}
_ANYTHING: Tag = {"type": "any_text"}
MAX_WHITESPACE = 1  # characters in a row between JSON's tokens: small models would go on and on


def after_thinking(
    structured: StructuredOutputs | None, format: ReasoningFormat, *, thinks: bool, budget: int | None = None
) -> StructuredOutputs | None:
    """The form of a whole answer, its thinking included.

    Args:
        structured: the form of what comes after the thinking; None if anything may.
        thinks: whether the answer begins within the thinking; otherwise the model begins to think, or does not.
        budget: tokens of thinking at most; the end marker is what comes then. None is no limit.
    """
    if structured is None and budget is None:
        return None
    content = _ANYTHING if budget is None else {**_ANYTHING, "max_tokens": budget}
    blocks = [_block(begin, format, content) for begin in ([""] if thinks else format.begins)]
    if structured is None:
        whole = _sequence(blocks[0], _ANYTHING) if thinks else _triggered(blocks, format)
    else:
        body = _tag_of(structured)
        ways = [_sequence(block, _SPACE, body) for block in blocks]
        if body["type"] == "triggered_tags":  # free text, which is not to hide a block from its budget
            body = {**body, "excludes": [*body.get("excludes", ()), *format.begins]}
        whole = ways[0] if thinks else {"type": "or", "elements": [*ways, body]}
    return StructuredOutputs(structural_tag={"type": "structural_tag", "format": whole})


def _block(begin: str, format: ReasoningFormat, content: Tag) -> Tag:
    return {"type": "tag", "begin": begin, "content": content, "end": list(format.ends)}


def _triggered(blocks: list[Tag], format: ReasoningFormat) -> Tag:
    return {"type": "triggered_tags", "triggers": list(format.begins), "tags": blocks}


def _sequence(*elements: Tag) -> Tag:
    return {"type": "sequence", "elements": list(elements)}


def _tag_of(structured: StructuredOutputs) -> Tag:
    kind, text = structured.source()
    if kind == "json":
        return {"type": "json_schema", "json_schema": json.loads(text), "max_whitespace_cnt": MAX_WHITESPACE}
    if kind == "regex":
        return {"type": "regex", "pattern": text}
    if kind == "grammar":
        return {"type": "grammar", "grammar": text}
    tag: Tag = json.loads(text)["format"]
    return tag
