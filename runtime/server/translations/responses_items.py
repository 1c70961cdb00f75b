"""Items of a response's `input`, as the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Object

TEXT_PARTS = ("input_text", "output_text", "text")
ITEM_FIELDS = 'give {"role": "user", "content": "…"}, or an item of the type message, function_call, function_call_output or reasoning'


class Conversation:
    """Messages that are made of items, one after the other. `fields` names the item that each message began with."""

    def __init__(self) -> None:
        self.messages: list[Object] = []
        self.fields: list[str] = []

    def add(self, item: Object, field: str) -> None:
        """Takes the next item. Raises RequestError."""
        kind = item.get("type", "message" if "role" in item else None)
        match kind:
            case "message":
                self._add_message(item, field)
            case "function_call":
                call = {"name": item.get("name"), "arguments": item.get("arguments")}
                self._assistant(field).setdefault("tool_calls", []).append(
                    {"id": item.get("call_id"), "type": "function", "function": call}
                )
            case "function_call_output":
                content = _text(item.get("output"), f"{field}.output")
                self._append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content}, field)
            case "reasoning":
                self._assistant(field, begins=("content", "tool_calls"))["reasoning_content"] = _reasoning(item, field)
            case _:
                raise RequestError(f"is of the type {kind!r:.60}, which is not supported", field=field, fix=ITEM_FIELDS)

    def _add_message(self, item: Object, field: str) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise RequestError(f"is {role!r:.60}", field=f"{field}.role", fix="give user, assistant, system or developer")
        content = _text(item.get("content"), f"{field}.content")
        if role != "assistant":
            self._append({"role": role, "content": content}, field)
            return
        message = self._assistant(field)
        if message["content"] is not None and "tool_calls" not in message:
            message = self._append({"role": "assistant", "content": None}, field)
        message["content"] = content if message["content"] is None else f"{message['content']}\n{content}"

    def _assistant(self, field: str, *, begins: Sequence[str] = ()) -> Object:
        """The assistant's message that still goes on; a new one if it has what an item of this kind `begins` before."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant" or any(last.get(name) is not None for name in begins):
            return self._append({"role": "assistant", "content": None}, field)
        return last

    def _append(self, message: Object, field: str) -> Object:
        self.messages.append(message)
        self.fields.append(field)
        return message


def conversation_of(instructions: str | None, items: Iterable[tuple[Object, str]]) -> Conversation:
    """The chat of instructions and of items, each with the name of its field. Raises RequestError."""
    conversation = Conversation()
    if instructions:
        conversation.add({"role": "system", "content": instructions}, "instructions")
    for item, field in items:
        conversation.add(item, field)
    for message in conversation.messages:
        if message["role"] == "assistant" and message["content"] is None and "tool_calls" not in message:
            message["content"] = ""  # it broke off while it was thinking
    return conversation


def _text(content: object, field: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"is {content!r:.60}", field=field, fix="give a string, or a list of parts")
    return "\n".join(_part(part, f"{field}[{i}]") for i, part in enumerate(content))


def _part(part: object, field: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) and kind in (*TEXT_PARTS, "refusal") else None
    if isinstance(text, str):
        return text
    what = f"has the type {kind!r:.40}" if isinstance(kind, str) and kind not in TEXT_PARTS else f"is {part!r:.60}"
    raise RequestError(f"{what}, and this model takes text only", field=field, fix='give {"type": "input_text", "text": "…"}')


def _reasoning(item: Object, field: str) -> str | None:
    """The text of a reasoning item: the thoughts themselves, or what others wrote of them."""
    if item.get("encrypted_content") and not item.get("content") and not item.get("summary"):
        raise RequestError("was encrypted elsewhere, and can't be read here", field=f"{field}.encrypted_content", fix="leave the item out")
    texts = []
    for name in ("content", "summary"):
        for i, part in enumerate(item.get(name) or ()):
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise RequestError(f"is {part!r:.60}", field=f"{field}.{name}[{i}]", fix='give {"type": "reasoning_text", "text": "…"}')
            texts.append(part["text"])
        if texts:
            break
    return "\n".join(texts) or None
