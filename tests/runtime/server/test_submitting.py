"""The way from validator to the engine: whatever is raised on it, nothing stays counted."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest

from cupola.runtime.engine.sampling_params import MAX_INT, SamplingParams
from cupola.runtime.errors import InputError
from cupola.runtime.server import messages as m
from cupola.runtime.server.engine_client import EngineClient
from cupola.runtime.server.generation import Generation
from cupola.runtime.server.metrics import Metrics
from cupola.runtime.server.middleware import Observer
from cupola.runtime.server.service import ServerConfig, Service
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from tests.runtime.fakes import VOCAB

UNSENDABLE = SamplingParams(n=100, structured_outputs=StructuredOutputs(json={"type": "string", "default": 2**64}))
START = m.Start("nowhere", "", m.EngineConfig(), 0, None, None, 0, None, None, "10GB", None)


class Transport(asyncio.Transport):
    """Takes what is written, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.messages: list[m.ToEngine] = []
        self._error, self._frames = error, m.Frames()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._error is not None:
            raise self._error
        self.messages += [msgspec.msgpack.decode(frame, type=m.ToEngine) for frame in self._frames.push(bytes(data))]


def add(name: str, params: SamplingParams) -> m.Add:
    return m.Add(name, [1, 2], params, 0, b"")


def client_of(transport: Transport) -> EngineClient:
    client = EngineClient(START, lambda _stats: None, 20.0)
    client._transport = transport
    return client


def test_what_can_not_be_encoded_is_not_counted():
    client = client_of(Transport())
    with pytest.raises(OverflowError):
        client.submit([add("good", SamplingParams()), add("bad", UNSENDABLE)])
    assert client.num_sequences == 0
    assert not client._streams
    assert client._transport.messages == []


def test_what_can_not_be_written_is_not_counted():
    client = client_of(Transport(RuntimeError("the transport is closed")))
    with pytest.raises(RuntimeError):
        client.submit([add("good", SamplingParams(n=3))])
    assert client.num_sequences == 0


class Holding(Service):
    """A service that lets everything through to an engine that never answers."""

    def __init__(self, client: EngineClient) -> None:
        self._client, self.config, self.metrics = client, ServerConfig("model"), Metrics("model")

    def submit(self, prompts, params, priority, cache_salt, grammar):
        return self._client.submit([add(str(i), params) for i in range(len(prompts))])


@pytest.mark.parametrize("how", ["an exception", "the route forgets it"])
def test_a_request_that_ends_anyhow_gives_back_what_it_held(how: str):
    """Even if nobody closes the generation that it began: the request's record does so."""
    client, seen = client_of(Transport()), []

    async def app(scope, receive, send):
        Generation(Holding(client), scope["cupola.record"], [(1,), (2,)], SamplingParams(n=4))
        seen.append(client.num_sequences)
        if how == "an exception":
            raise KeyError("a bug")

    async def send(message):
        pass

    async def run():
        await Observer(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)

    asyncio.run(run())
    assert seen == [8]
    assert client.num_sequences == 0
    assert [type(message) for message in client._transport.messages] == [m.Add, m.Add, m.Abort, m.Abort]


def extremes() -> Iterator[SamplingParams]:
    """Parameters with each number as large and as small as `SamplingParams` takes it."""
    numbers = (-MAX_INT - 1, -MAX_INT, -100, -2, -1, 0, 1, 2, 100, 128, MAX_INT, 2**64, -100.0, -2.0, 5e-324, 0.01, 1.0, 2.0, 100.0)
    for name in (field.name for field in dataclasses.fields(SamplingParams)):
        for number in numbers:
            with suppress(InputError):
                yield dataclasses.replace(SamplingParams(), **{name: number})
    yield SamplingParams(stop_token_ids=[0, MAX_INT], logit_bias={0: -100.0, MAX_INT: 100}, stop=["\x00", "\U0010ffff"])


def plain(message: m.ToEngine) -> object:
    """The content of a message, with tuples and lists alike."""
    return json.loads(msgspec.json.encode(message))


def test_all_that_is_admitted_crosses_to_the_engine():
    admitted = list(extremes())
    assert len(admitted) > 60
    for params in admitted:
        sent = m.Add("x", [0, VOCAB, 2**31 - 1], params, -(2**31), b"\xff" * 16, b"{}")
        (frame,) = m.Frames().push(m.frame(sent))
        assert plain(msgspec.msgpack.decode(frame, type=m.ToEngine)) == plain(sent)
