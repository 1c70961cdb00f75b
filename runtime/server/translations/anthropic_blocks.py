"""Anthropic's messages, which are made of blocks, as the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Object

BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}
UNSIGNED = "unsigned"  # a signature of thoughts: what stands for it, since clients don't send thoughts back without one


def chat_messages(messages: Sequence[Object], system: str | Sequence[Object] | None) -> tuple[list[Object], list[str]]:
    """The messages as a chat has them, and the field that each began with. Turns of one role that follow each other are one.

    Raises:
        RequestError: naming the field and the fix.
    """
    found: list[tuple[Object, str]] = []
    if system:
        found.append(({"role": "system", "content": _text(system, "system")}, "system"))
    for i, message in enumerate(messages):
        field, role = f"messages[{i}]", message.get("role")
        if role not in BLOCKS:
            raise RequestError(f"is {role!r:.60}", field=f"{field}.role", fix="give user or assistant")
        for made in _user(message, field) if role == "user" else [_other(message, field)]:
            before = found[-1][0] if found else {}
            if made["role"] != before.get("role") or made["role"] in ("tool", "system"):
                found.append((made, field))
            else:
                found[-1] = (_joined(before, made), found[-1][1])
    if not messages:
        raise RequestError("is empty", field="messages", fix="give at least one message")
    return [message for message, _ in found], [field for _, field in found]


def _joined(first: Object, second: Object) -> Object:
    """Two turns of one role as one."""
    texts = [message["content"] for message in (first, second) if message["content"]]
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return {**first, **second, "content": "\n".join(texts) or None} | ({"tool_calls": calls} if calls else {})


def _user(message: Object, field: str) -> Iterator[Object]:
    """The results of tools, and then what else there is."""
    texts = []
    for block, at in _blocks(message, field):
        if block["type"] == "text":
            texts.append(_text_of(block, at))
        else:
            content = _text(block.get("content") or "", f"{at}.content")
            failed = "Error: " if block.get("is_error") is True else ""  # chats have no field for it
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": failed + content}
    if texts or not message["content"]:
        yield {"role": "user", "content": "\n".join(texts)}


def _other(message: Object, field: str) -> Object:
    texts, thoughts, calls = [], [], []
    for block, at in _blocks(message, field):
        match block["type"]:
            case "text":
                texts.append(_text_of(block, at))
            case "thinking":
                thoughts.append(_text_of(block, at, "thinking"))
            case "tool_use":
                if not isinstance(block.get("input"), dict):
                    raise RequestError(f"is {block.get('input')!r:.60}", field=f"{at}.input", fix="give an object")
                function = {"name": block.get("name"), "arguments": block["input"]}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case _:
                raise RequestError("was encrypted elsewhere, and can't be read here", field=at, fix="leave the block out")
    made: Object = {"role": message["role"], "content": "\n".join(texts) or (None if calls else "")}
    return made | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {}) | ({"tool_calls": calls} if calls else {})


def _blocks(message: Object, field: str) -> Iterator[tuple[Object, str]]:
    """The blocks of a message that its role may have, and their fields."""
    content, allowed = message.get("content"), BLOCKS[message["role"]]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError(f"is {content!r:.60}", field=f"{field}.content", fix="give a string, or a list of blocks")
    for i, block in enumerate(content):
        at = f"{field}.content[{i}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind not in allowed:
            fix = f"a message of the role {message['role']} may have {', '.join(allowed)}"
            raise RequestError(f"is a block of the type {kind!r:.60}, which is not supported", field=at, fix=fix)
        yield block, at


def _text(content: object, field: str) -> str:
    """The text of a string, or of blocks that hold nothing else."""
    if isinstance(content, str):
        return content
    blocks = _blocks({"role": "system", "content": content}, field.removesuffix(".content"))
    return "\n".join(_text_of(block, at) for block, at in blocks)


def _text_of(block: Object, field: str, name: str = "text") -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise RequestError(f"is {text!r:.60}", field=f"{field}.{name}", fix="give a string")
    return text
