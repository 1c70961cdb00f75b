"""A message's content: blocks that are written from a chat's pieces, and the events that tell of it. Source: Anthropic's reference."""

from __future__ import annotations

from pydantic_core import from_json

from cupola.runtime.server.protocol import Object
from cupola.runtime.server.translations.anthropic_blocks import UNSIGNED
from cupola.runtime.server.translations.pieces import Piece

NEW_BLOCKS = {  # by the kind of a piece: what stands in a block before its text
    "text": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}
DELTAS = {"text": ("text_delta", "text"), "reasoning": ("thinking_delta", "thinking"), "call": ("input_json_delta", "partial_json")}


class ContentWriter:
    """Writes `blocks`, and says for each piece which events it makes."""

    def __init__(self) -> None:
        self.blocks: list[Object] = []
        self._open: tuple[str, int] | None = None  # kind and index of the last block's pieces, while more may come
        self._arguments = ""

    def push(self, piece: Piece) -> list[Object]:
        """Takes the next piece."""
        events = []
        if (piece.kind, piece.index) != self._open:
            events = [*self.close(), self._begin(piece)]
        if not piece.text:
            return events
        kind, name = DELTAS[piece.kind]
        if piece.kind == "call":
            self._arguments += piece.text
        else:
            self.blocks[-1][name] += piece.text
        return [*events, self._event("content_block_delta", {"delta": {"type": kind, name: piece.text}})]

    def close(self) -> list[Object]:
        """Ends the block that is open, if one is."""
        if self._open is None:
            return []
        kind, self._open = self._open[0], None
        events = []
        if kind == "reasoning":
            self.blocks[-1]["signature"] = UNSIGNED
            events.append(self._event("content_block_delta", {"delta": {"type": "signature_delta", "signature": UNSIGNED}}))
        elif kind == "call":
            self.blocks[-1]["input"] = read_arguments(self._arguments)
        return [*events, self._event("content_block_stop", {})]

    def _begin(self, piece: Piece) -> Object:
        self._open, self._arguments = (piece.kind, piece.index), ""
        call = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
        self.blocks.append(dict(NEW_BLOCKS.get(piece.kind, call)))
        return self._event("content_block_start", {"content_block": dict(self.blocks[-1])})

    def _event(self, type: str, fields: Object) -> Object:
        return {"type": type, "index": len(self.blocks) - 1, **fields}


def read_arguments(text: str) -> Object:
    """The arguments of a call as an object; of one that broke off, what was there."""
    try:
        found = from_json(text or "{}", allow_inf_nan=False, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
