"""Turns OpenAI's messages into what a chat template takes. Source: the reference of OpenAI's chat completions."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence

from cupola.runtime.errors import RequestError
from cupola.runtime.tool_calls.calls import MAX_DEPTH, is_deeper, parse_object
from cupola.runtime.tool_calls.checks import MAX_TOOLS, Tool, check_name
from cupola.runtime.tool_calls.formats import HERMES, TemplateTraits, ToolFormat

Message = dict[str, object]
ROLES = ("system", "developer", "user", "assistant", "tool")
_LETTERS = string.ascii_letters + string.digits
_INSTRUCTIONS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""  # the words that Hermes and Qwen models were trained with


def check_messages(messages: object) -> list[Message]:
    """The messages in a template's terms: text joined, arguments as objects, nothing but what templates know.

    Raises:
        RequestError: naming the field and the fix.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"is {messages!r:.60}", field="messages", fix="give a list of at least one message")
    checked: list[Message] = []
    called: dict[str, str] = {}  # of the assistant's last message: id to function
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            fix = f'give {{"role": "user", "content": "…"}}; roles are {", ".join(ROLES)}'
            raise RequestError(f"is {message!r:.60}", field=field, fix=fix)
        entry: Message = {"role": message["role"], "content": _join_content(message, field)}
        if isinstance(message.get("name"), str):
            entry["name"] = message["name"]
        if entry["role"] == "assistant":
            calls = _check_calls(message.get("tool_calls"), f"{field}.tool_calls")
            called = {str(call["id"]): call["function"]["name"] for call in calls}  # type: ignore[index]
            entry |= {"tool_calls": calls} if calls else {}
            _keep_reasoning(message, entry, field)
        elif entry["role"] == "tool":
            entry |= _check_result(message, called, field)
        else:
            called = {}
        checked.append(entry)
    return checked


def _join_content(message: Mapping[str, object], field: str) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message["role"] == "assistant":
        return None
    if not isinstance(content, list | tuple):
        raise RequestError(f"is {content!r:.60}", field=f"{field}.content", fix="give a string")
    return "\n".join(_text_of(part, f"{field}.content[{j}]") for j, part in enumerate(content))


def _text_of(part: object, field: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind) if isinstance(part, Mapping) and kind in ("text", "refusal") else None
    if isinstance(text, str):
        return text
    what = f"has the type {kind!r:.40}" if isinstance(kind, str) and kind != "text" else f"is {part!r:.60}"
    raise RequestError(f"{what}, and this model takes text only", field=field, fix='give {"type": "text", "text": "…"}')


def _check_calls(calls: object, field: str) -> list[dict[str, object]]:
    if calls is None:
        return []
    if not isinstance(calls, list | tuple) or len(calls) > MAX_TOOLS:
        raise RequestError(f"is {calls!r:.60}", field=field, fix=f"give a list of at most {MAX_TOOLS} calls")
    return [_check_call(call, f"{field}[{i}]") for i, call in enumerate(calls)]


def _check_call(call: object, field: str) -> dict[str, object]:
    function = call.get("function") if isinstance(call, Mapping) and call.get("type", "function") == "function" else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(call.get("id"), str):
        fix = 'give {"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}'
        raise RequestError(f"is {call!r:.60}", field=field, fix=fix)
    arguments = function.get("arguments")
    if not isinstance(arguments, str | Mapping | None):
        raise RequestError(f"is {arguments!r:.60}", field=f"{field}.function.arguments", fix="give a string of JSON")
    if is_deeper(arguments, MAX_DEPTH):
        raise RequestError(f"is nested more than {MAX_DEPTH} levels deep", field=f"{field}.function.arguments", fix="give a flatter object")
    if isinstance(arguments, str) and arguments.strip():
        parsed = parse_object(arguments)
        arguments = arguments if parsed is None else parsed  # a call that broke off is shown as it was
    name = check_name(function.get("name"), f"{field}.function.name")
    return {"id": call["id"], "type": "function", "function": {"name": name, "arguments": arguments or {}}}


def _keep_reasoning(message: Mapping[str, object], entry: Message, field: str) -> None:
    if entry["content"] is None and "tool_calls" not in entry:
        if not isinstance(message.get("refusal"), str):
            raise RequestError("is null, and there are no tool calls", field=f"{field}.content", fix="give a string")
        entry["content"] = message["refusal"]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        entry["reasoning_content"] = entry["thinking"] = reasoning  # templates read it by one of these names


def _check_result(message: Mapping[str, object], called: Mapping[str, str], field: str) -> Message:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in called:
        fix = "let it follow an assistant's message whose tool_calls have this id"
        raise RequestError(f"is {call_id!r:.60}, which answers no call", field=f"{field}.tool_call_id", fix=fix)
    return {"tool_call_id": call_id, "name": called[call_id]}


def fit_to_template(messages: Sequence[Message], tools: Sequence[Tool], traits: TemplateTraits) -> list[Message]:
    """Checked messages as this template takes them: what it can't write itself is put into words, in Hermes's convention."""
    fitted: list[Message] = []
    for message in _one_call_each(messages) if traits.shows_calls and traits.shows_one_call else messages:
        role = message["role"]
        if role == "tool" and not traits.shows_results:
            _add_result(fitted, str(message["content"]))
        elif role == "assistant" and "tool_calls" in message:
            fitted.append(_fit_calls(message, traits))
        elif role == "developer" and not traits.takes_developer:
            fitted.append({**message, "role": "system"})
        elif role == "tool":
            fitted.append({**message, "tool_call_id": _fit_id(str(message["tool_call_id"]), traits)})
        else:
            fitted.append(dict(message))
    if tools and not traits.lists_tools:
        _add_instructions(fitted, tools, traits)
    return fitted


def _one_call_each(messages: Sequence[Message]) -> Iterator[Message]:
    """Calls made at once as if they were made one after the other, each followed by its result."""
    results = {str(message["tool_call_id"]): message for message in messages if message["role"] == "tool"}
    split: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list) and len(calls) > 1:
            ids = [str(call["id"]) for call in calls]
            split.update(ids)
            for i, call in enumerate(calls):
                yield {**message, "content": None if i else message["content"], "tool_calls": [call]}
                if ids[i] in results:
                    yield results[ids[i]]
        elif message.get("tool_call_id") not in split:
            yield message


def _fit_calls(message: Message, traits: TemplateTraits) -> Message:
    calls = message["tool_calls"]
    assert isinstance(calls, list)
    content = message["content"] or (None if traits.shows_calls and traits.format.without_content else "")
    if traits.shows_calls:
        calls = [{**call, "id": _fit_id(call["id"], traits)} for call in calls]
        return {**message, "content": content, "tool_calls": calls}
    texts = [_write_call(call["function"], traits.format) for call in calls]
    kept: Message = {name: message[name] for name in ("reasoning_content", "thinking") if name in message}
    return {"role": "assistant", **kept, "content": "\n".join([content, *texts] if isinstance(content, str) and content else texts)}


def _write_call(function: Mapping[str, object], format: ToolFormat) -> str:
    assert HERMES.written is not None
    begin, end = format.written or HERMES.written
    return begin.replace("NAME", str(function["name"])) + json.dumps(function["arguments"], ensure_ascii=False) + end


def _fit_id(call_id: str, traits: TemplateTraits) -> str:
    """`call_id`, or a name for it that the template accepts, the same wherever it stands."""
    length = traits.format.id_length
    if length is None or (len(call_id) == length and call_id.isascii() and call_id.isalnum()):
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:length])


def _add_result(messages: list[Message], content: str) -> None:
    """As a user's message. The results of several calls share one, for templates that want roles to alternate."""
    text = f"<tool_response>\n{content}\n</tool_response>"
    last = messages[-1]
    if last["role"] == "user" and str(last["content"]).startswith("<tool_response>"):
        last["content"] = f"{last['content']}\n{text}"
    else:
        messages.append({"role": "user", "content": text})


def _add_instructions(messages: list[Message], tools: Sequence[Tool], traits: TemplateTraits) -> None:
    specs = "\n".join(json.dumps(tool.spec, ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=specs)
    role = "system" if traits.takes_system else "user"
    if messages[0]["role"] == role:
        words = f"{messages[0]['content']}\n\n{text}" if role == "system" else f"{text}\n\n{messages[0]['content']}"
        messages[0] = {**messages[0], "content": words}
    else:
        messages.insert(0, {"role": role, "content": text})
