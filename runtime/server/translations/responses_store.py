"""Responses that may still be asked for, in memory: what was used longest ago goes first."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from cupola.runtime.server.errors import ServerError
from cupola.runtime.server.protocol import Object

MAX_RESPONSES, MAX_BYTES = 4096, 64 << 20


@dataclass(frozen=True)
class StoredResponse:
    """A response, what it was asked, and the whole conversation up to its end."""

    response: Object
    input_items: tuple[Object, ...]
    history: tuple[Object, ...]
    num_bytes: int


class ResponseStore:
    """The responses of the last requests, of at most `max_bytes` in JSON, each with its conversation."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._items: dict[str, tuple[Object, str]] = {}  # an item by its id, and the response that it came with
        self._num_bytes = 0

    def add(self, response: Object, input_items: tuple[Object, ...], history: tuple[Object, ...]) -> None:
        """Keeps a response. Conversations share their items, and still each counts whole: an earlier response may go before a later one."""
        num_bytes = len(msgspec.json.encode(response)) + len(json.dumps(history))
        if num_bytes > self._max_bytes:
            return
        self._responses[response["id"]] = StoredResponse(response, input_items, history, num_bytes)
        self._items |= {item["id"]: (item, response["id"]) for item in response["output"]}
        self._num_bytes += num_bytes
        while len(self._responses) > self._max_responses or self._num_bytes > self._max_bytes:
            self.remove(next(iter(self._responses)))

    def get(self, response_id: str, field: str | None = None) -> StoredResponse:
        """A response. Raises ServerError, a 404, or a 400 if a request's `field` names it."""
        found = self._responses.get(response_id)
        if found is None:
            problem = f"the response {response_id!r:.100} is not kept here: it was not stored, was deleted, or was too long ago"
            raise ServerError(
                404 if field is None else 400, problem, code=None if field is None else "previous_response_not_found", field=field
            )
        self._responses.move_to_end(response_id)
        return found

    def item(self, item_id: object, field: str) -> Object:
        """An item of a response's output. Raises ServerError, a 404."""
        found = self._items.get(item_id) if isinstance(item_id, str) else None
        if found is None:
            problem = f"{field}.id: no item {item_id!r:.100} is kept here; send the item itself, or set store to false in the client"
            raise ServerError(404, problem, code="item_not_found", field=f"{field}.id")
        self._responses.move_to_end(found[1])
        return found[0]

    def remove(self, response_id: str) -> None:
        """Forgets a response. Raises ServerError, a 404."""
        found = self.get(response_id)
        del self._responses[response_id]
        self._num_bytes -= found.num_bytes
        for item in found.response["output"]:
            del self._items[item["id"]]
