"""The engine's loop over a model that fails on demand: what a failed step costs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from cupola.runtime.device.host import HostOutput
from cupola.runtime.device.interface import Batch
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.server import messages as m
from cupola.runtime.server.engine_process import Channel, EngineLoop
from tests.runtime.fakes import BLOCK, MODEL, VOCAB, FakeExecutor, generate_alone

ERRORS = {"an exception": RuntimeError("the device is on fire"), "no memory": MemoryError(), "a wrong type": TypeError("int")}
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(0, VOCAB - 1, 5 + n)] for n in range(6)]
GREEDY = SamplingParams(temperature=0, max_tokens=15)
SAMPLED = SamplingParams(n=2, seed=3, max_tokens=15)


class Failing(FakeExecutor):
    """Fails in the steps of these numbers, after it has written K/V, or in the middle of it."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__(64, 0)
        self.failures = failures

    def _step(self, batch: Batch) -> HostOutput:
        logits = super()._step(batch)
        error = self.failures.get(self.num_steps)
        if error is not None:
            self.pages[0][batch.slots[0] // BLOCK] = -7  # what a kernel left half done
            raise error
        return logits


class Side:
    """The server's end, and the loop in a thread."""

    def __init__(self, executor: FakeExecutor, pace: float | None = None) -> None:
        self.engine = Engine(executor, MODEL, executor.kv, EngineConfig(max_num_seqs=4, max_tokens_per_second=pace))
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(60)
        self._frames, self._decoder = m.Frames(), msgspec.msgpack.Decoder(m.ToServer)
        self._thread = threading.Thread(target=self._run, args=(theirs,), daemon=True)
        self._thread.start()
        self.last: m.Stepped | None = None

    def _run(self, theirs: socket.socket) -> None:
        with theirs, pytest.raises(EOFError):
            EngineLoop(self.engine, Channel(theirs)).run()

    def send(self, *messages: m.ToEngine) -> None:
        self._socket.sendall(b"".join(map(m.frame, messages)))

    def receive(self) -> Iterator[m.ToServer]:
        for frame in self._frames.push(self._socket.recv(1 << 20)):
            yield self._decoder.decode(frame)

    def answers(self, names: set[str]) -> dict[str, list[list[int]] | m.Refused]:
        """Each request's completions, or why it was given up."""
        tokens: dict[str, dict[int, list[int]]] = {name: {} for name in names}
        refused: dict[str, m.Refused] = {}
        unfinished = set(names)
        while unfinished:
            for message in self.receive():
                if isinstance(message, m.Refused):
                    refused[message.request_id] = message
                    unfinished.remove(message.request_id)
                elif isinstance(message, m.Stepped):
                    self.last = message
                    for delta in message.requests:
                        if delta.request_id not in names:  # it was aborted, and a step came before
                            continue
                        for completion in delta.completions:
                            tokens[delta.request_id].setdefault(completion.index, []).extend(completion.token_ids)
                        unfinished -= {delta.request_id} if delta.finished else set()
        return {name: refused.get(name) or [tokens[name][i] for i in sorted(tokens[name])] for name in names}

    def close(self) -> None:
        self._socket.close()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.engine.check_idle()


def add(name: int, params: SamplingParams) -> m.Add:
    return m.Add(request_id=str(name), prompt_token_ids=PROMPTS[name], params=params, priority=0, cache_salt=b"")


def alone(name: int, params: SamplingParams) -> list[list[int]]:
    return [token_ids for token_ids, _ in generate_alone(PROMPTS[name], params)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("steps", [[1], [2], [3, 5, 7, 9], list(range(2, 60, 2))], ids=str)
def test_a_failed_step_changes_no_answer(error: str, steps: list[int], capfd: pytest.CaptureFixture[str]):
    side = Side(Failing(dict.fromkeys(steps, ERRORS[error])))
    params = [GREEDY, SAMPLED, GREEDY, SAMPLED, GREEDY, GREEDY]
    side.send(*(add(i, params[i]) for i in range(6)))
    assert side.answers({str(i) for i in range(6)}) == {str(i): alone(i, params[i]) for i in range(6)}
    side.close()
    assert "a step failed" in capfd.readouterr().err


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", [1, 4])
def test_two_failed_steps_end_what_is_there_and_nothing_else(error: str, step: int):
    side = Side(Failing({step: ERRORS[error], step + 1: ERRORS[error]}))
    side.send(*(add(i, GREEDY) for i in range(6)))
    answers = side.answers({str(i) for i in range(6)})
    for answer in answers.values():
        assert isinstance(answer, m.Refused) and not answer.is_input_error
        assert "a step failed" in answer.message
    side.send(add(0, GREEDY), add(1, SAMPLED))
    assert side.answers({"0", "1"}) == {"0": alone(0, GREEDY), "1": alone(1, SAMPLED)}
    assert side.last is not None and side.last.stats.kv_usage == 0
    side.close()


def test_aborts_among_failures_leave_no_block():
    side = Side(Failing(dict.fromkeys(range(1, 40, 3), ERRORS["an exception"])))
    for i in range(6):
        side.send(add(i, SAMPLED))
        if i % 2:
            side.send(m.Abort(str(i)), m.Abort(str(i)), m.Abort("nobody"))
    assert side.answers({"0", "2", "4"}) == {str(i): alone(i, SAMPLED) for i in (0, 2, 4)}
    side.close()


def test_what_the_engine_refuses_leaves_the_rest_alone():
    side = Side(FakeExecutor(64, 0))
    side.send(m.Add("x", [VOCAB], GREEDY, 0, b""), m.Add("y", [], GREEDY, 0, b""), add(1, GREEDY))
    answers = side.answers({"x", "y", "1"})
    assert isinstance(answers["x"], m.Refused) and answers["x"].field == "prompt"
    assert isinstance(answers["y"], m.Refused) and answers["y"].is_input_error
    assert answers["1"] == alone(1, GREEDY)
    side.close()


def test_an_engine_that_fails_to_take_a_request_goes_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    side = Side(FakeExecutor(64, 0))
    take = side.engine.add_request

    def take_all_but_one(request_id, *args, **options):
        if request_id == "0":
            raise MemoryError
        return take(request_id, *args, **options)

    monkeypatch.setattr(side.engine, "add_request", take_all_but_one)
    side.send(add(0, GREEDY), add(1, GREEDY))
    answers = side.answers({"0", "1"})
    assert isinstance(answers["0"], m.Refused) and not answers["0"].is_input_error
    assert answers["1"] == alone(1, GREEDY)
    side.close()
    assert "MemoryError" in capfd.readouterr().err


def test_an_engine_that_waits_for_its_pace_takes_messages_and_says_that_it_lives() -> None:
    side = Side(FakeExecutor(), pace=0.01)  # a token in 100 seconds
    heard: list[m.RequestDelta] = []
    for name in ("0", "1"):  # the second one's first token does not wait for the pace
        side.send(add(int(name), GREEDY))
        while name not in {delta.request_id for delta in heard}:
            heard += [delta for message in side.receive() if isinstance(message, m.Stepped) for delta in message.requests]
    assert [(delta.request_id, len(delta.completions[0].token_ids)) for delta in heard] == [("0", 1), ("0", 1), ("1", 1)]
    (sign,) = side.receive()
    assert isinstance(sign, m.Stepped) and (sign.requests, sign.stats.num_running) == ([], 2)
    side.send(m.Abort("0"), m.Abort("1"))
    while sign.stats.num_running:
        *_, sign = side.receive()
        assert isinstance(sign, m.Stepped) and not sign.requests
    side.close()
