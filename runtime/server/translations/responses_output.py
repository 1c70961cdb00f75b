"""A response's output: items that are written from a chat's pieces, and the events that tell of it, in the order of OpenAI's reference."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from cupola.runtime.server.protocol import Object
from cupola.runtime.server.translations.pieces import Piece

PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
PARTS = {"reasoning": "reasoning_text", "text": "output_text"}  # what an item's content is made of


def new_id(prefix: str) -> str:
    """An id that no one can guess: whoever knows it may read what it names."""
    return f"{prefix}_{uuid.uuid4().hex}"


class OutputWriter:
    """Writes `items`, and says for each piece which events it makes. Their `sequence_number` is set by whoever sends them."""

    def __init__(self) -> None:
        self.items: list[Object] = []
        self._kind, self._index = "", 0  # of the last item, while it is open

    def push(self, piece: Piece) -> list[Object]:
        """Takes the next piece."""
        events = []
        if (piece.kind, piece.index) != (self._kind, self._index):
            events += self.close()
            events += self._open(piece)
        if not piece.text:
            return events
        item = self.items[-1]
        if piece.kind == "call":
            item["arguments"] += piece.text
            return [*events, self._event("response.function_call_arguments.delta", {"delta": piece.text})]
        part = item["content"][0]
        part["text"] += piece.text
        if piece.kind == "reasoning":
            return [*events, self._part_event("response.reasoning_text.delta", {"delta": piece.text})]
        part["logprobs"] += piece.logprobs
        return [*events, self._part_event("response.output_text.delta", {"delta": piece.text, "logprobs": [*map(_short, piece.logprobs)]})]

    def close(self, status: str = "completed") -> list[Object]:
        """Ends the item that is open, if one is."""
        if not self._kind:
            return []
        item, kind = self.items[-1], self._kind
        self._kind, item["status"] = "", status
        done = self._event("response.output_item.done", {"item": dict(item)})
        del done["item_id"]
        if kind == "call":
            said = {"name": item["name"], "arguments": item["arguments"]}
            return [self._event("response.function_call_arguments.done", said), done]
        part = item["content"][0]
        said = {"text": part["text"]} | ({"logprobs": [*map(_short, part["logprobs"])]} if kind == "text" else {})
        name = "response.output_text.done" if kind == "text" else "response.reasoning_text.done"
        return [self._part_event(name, said), self._part_event("response.content_part.done", {"part": dict(part)}), done]

    def finish(self, status: str) -> list[Object]:
        """Ends the output; one without any item gets an empty message."""
        events = [] if self.items else self._open(Piece("text", ""))
        return events + self.close(status)

    def _open(self, piece: Piece) -> list[Object]:
        self._kind, self._index = piece.kind, piece.index
        item = {"id": new_id(PREFIXES[piece.kind]), **_new_item(piece), "status": "in_progress"}
        self.items.append(item)
        empty = {**item, "content": []} if "content" in item else dict(item)
        added = self._event("response.output_item.added", {"item": empty})
        del added["item_id"]
        if piece.kind == "call":
            return [added]
        return [added, self._part_event("response.content_part.added", {"part": dict(item["content"][0])})]

    def _event(self, type: str, fields: Object) -> Object:
        return {"type": type, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}

    def _part_event(self, type: str, fields: Object) -> Object:
        return self._event(type, {"content_index": 0, **fields})


def _new_item(piece: Piece) -> Object:
    match piece.kind:
        case "call":
            return {"type": "function_call", "call_id": piece.id, "name": piece.name, "arguments": ""}
        case "reasoning":
            return {"type": "reasoning", "summary": [], "content": [{"type": PARTS["reasoning"], "text": ""}], "encrypted_content": None}
        case _:
            part: Object = {"type": PARTS["text"], "text": "", "annotations": [], "logprobs": []}
            return {"type": "message", "role": "assistant", "content": [part]}


def _short(logprob: Mapping[str, object]) -> Object:
    """A token's log-probability as events have it: without bytes."""
    top = logprob["top_logprobs"]
    assert isinstance(top, list)
    return {
        "token": logprob["token"],
        "logprob": logprob["logprob"],
        "top_logprobs": [{"token": other["token"], "logprob": other["logprob"]} for other in top],
    }
