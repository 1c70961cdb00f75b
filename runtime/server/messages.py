"""The messages between the server's process and the engine's: msgspec structs in msgpack, never pickle.

A frame is the length of its message in four bytes, little-endian, and the message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from cupola.runtime.engine.engine import EngineConfig
from cupola.runtime.engine.outputs import EngineStats, TokenLogprobs
from cupola.runtime.engine.sampling_params import SamplingParams

LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first message: which artifact to load, and how. `sha256` is the artifact's; the fields but `config` are `LLM`'s arguments."""

    artifact: str
    sha256: str
    config: EngineConfig
    kv_memory: int | str | None
    memory_budget: int | str | None
    gpu_memory_utilization: float | None
    swap_memory: int | str
    swap_folder: str | None
    cache_folder: str | None
    cache_size: int | str
    device: str | None


class Add(msgspec.Struct, tag=True, frozen=True):
    """A request, checked by `Validator`.

    `grammar` is its structured output, checked by a `GrammarCompiler`; `params` have none: a schema may hold numbers that msgpack has not.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int
    cache_salt: bytes
    grammar: bytes | None = None


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Whoever asked has gone: forget it."""

    request_id: str


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Asks whether the engine still answers; it does so with `Stepped`."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The model is loaded. `max_length` is in tokens; `num_blocks` hold K/V."""

    max_length: int
    num_blocks: int
    max_num_seqs: int


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """The model can't be loaded; the process ends. `is_input_error` is whether what the user gave is at fault."""

    message: str
    is_input_error: bool


class CompletionDelta(msgspec.Struct, array_like=True, frozen=True):
    """New output of one completion; `token_ids` may be ahead of `text`, which holds back what a stop string may yet remove."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None
    stop_reason: int | str | None
    error: str | None = None


class RequestDelta(msgspec.Struct, array_like=True, frozen=True):
    """New output of one request. The last one has `finished`; `queue_seconds` are from its arrival until it was first scheduled.

    Of the tokens that were drafted for it so far, `num_accepted_tokens` were right.
    """

    request_id: str
    completions: list[CompletionDelta]
    finished: bool
    num_cached_tokens: int
    queue_seconds: float
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """One step of the engine."""

    requests: list[RequestDelta]
    stats: EngineStats


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The engine did not take a request, or had to give it up; `is_input_error` is whether the request is at fault."""

    request_id: str
    message: str
    is_input_error: bool
    field: str | None = None
    fix: str | None = None


ToEngine = Start | Add | Abort | Ping
ToServer = Ready | LoadFailed | Stepped | Refused

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToEngine | ToServer) -> bytes:
    """The bytes to send."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class Frames:
    """Takes bytes as they come and gives whole messages, still encoded."""

    def __init__(self) -> None:
        self._received = bytearray()

    def push(self, data: bytes) -> Iterator[bytes]:
        """The messages that `data` completes."""
        self._received += data
        start = 0
        while len(self._received) - start >= LENGTH.size:
            end = start + LENGTH.size + LENGTH.unpack_from(self._received, start)[0]
            if end > len(self._received):
                break
            yield bytes(self._received[start + LENGTH.size : end])
            start = end
        del self._received[:start]
