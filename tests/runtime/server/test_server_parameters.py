"""Every parameter at its edges and beyond them: group 3 of the bad inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.server.conftest import CONTEXT
from tests.runtime.server.harness import CHAT, Server, error_of, run_server
from tests.runtime.tiny_artifact import VOCAB, make_artifact

HUGE = 10**9
MAX = 2**63 - 1
LONGEST_STOP, MOST_STOPS, MOST_BIASES = 1024, 64, 1024
EDGES: dict[str, tuple[list[object], list[object]]] = {  # field -> values that are right, and values that are not
    "n": ([1, 128], [0, -1, 129, HUGE]),
    "temperature": ([0, 1e-9, 1e-5, 100, None], [-1, -1e-9, 100.1, 1e9, 1e308]),
    "top_p": ([0, 0.0, 5e-324, 1e-9, 1, 1.0, None], [-0.1, 1.1, 1.0000001, HUGE]),
    "top_k": ([-1, 0, 1, VOCAB, VOCAB + 1, HUGE, MAX, None], [-2, -5]),
    "min_p": ([0, 1, 0.5, None], [-0.1, 1.1, HUGE]),
    "repetition_penalty": ([0.01, 1, 100, None], [0, 0.001, -1, 100.1, 1e308]),
    "repeat_last_n": ([-1, 0, 64, HUGE, None], [-2, -MAX]),
    "presence_penalty": ([-2, 2, None], [-2.1, 2.1, HUGE]),
    "frequency_penalty": ([-2, 2, None], [-2.1, 2.1, HUGE]),
    "max_tokens": ([1, -1], [0, -2, -MAX]),
    "min_tokens": ([0, 1, None], [-1, 2, HUGE, MAX]),
    "seed": ([0, -1, MAX, -MAX - 1, None], []),
    "logprobs": ([0, 1, 20, None], [-1, -2, 21, HUGE, MAX]),
    "prompt_logprobs": ([0, 1, 20, None], [-1, -2, 21, HUGE, MAX]),
    "stop": (
        ["a", [], ["a", "b"], "a" * LONGEST_STOP, [str(i) for i in range(MOST_STOPS)], ["\0"], ["\ufffd"], None],
        ["", [""], ["a", ""], "a" * (LONGEST_STOP + 1), ["a"] * (MOST_STOPS + 1), ["a"] * 10_000, ["ab"] * 1_000_000],
    ),
    "stop_token_ids": ([[], [0], [VOCAB - 1], [1] * MOST_STOPS, None], [[-1], [VOCAB], [HUGE], [1] * (MOST_STOPS + 1), [1] * 1_000_000]),
    "logit_bias": (
        [{}, {"0": 100}, {str(VOCAB - 1): -100}, {"007": 0.5}, None],
        [
            *(
                {key: 1}
                for key in ("-1", str(VOCAB), str(HUGE), "9" * 18, "9" * 5000, "x", "", " 1", "1 ", "1.0", "1e1", "٣", "0x1", "1_0", "²")
            ),
            *({"1": bias} for bias in (-100.1, 100.1, HUGE)),
            {"1": 1, "x": 1},
            {str(i): 1 for i in range(MOST_BIASES + 1)},
        ],
    ),
    "bad_words": ([[], ["a", "\ufffd", "b c"], None], ["a", [""], [" "], ["a"] * 65, ["a" * 129]]),
    "allowed_token_ids": ([[0], list(range(VOCAB)), None], [[], [-1], [VOCAB], [HUGE]]),
    "truncate_prompt_tokens": ([-1, 1, HUGE, None], [0, -2]),
    "typical_p": ([0, 0.5, 1, None], [-0.1, 1.1]),
    "xtc_probability": ([0, 1, None], [-0.1, 1.1]),
    "dry_multiplier": ([0, 0.8, None], [-1, HUGE]),
    "dry_sequence_breakers": ([[], ["\n", "\0"], None], [[""], ["a"] * 65]),
    "mirostat": ([0, 2, None], [1, 3, -1]),
    "top_n_sigma": ([-1, 1.5, None], [-2, HUGE]),
    "dynatemp_range": ([0, 0.5, None], [-1, HUGE]),
    "samplers": (["kt", [], ["top_k", "temperature"], None], ["q", ["infill"]]),
    "priority": ([-(2**31), 2**31 - 1], [-(2**31) - 1, 2**31, HUGE * 10]),
    "cache_salt": (["a", "é" * 64, "\0", None], ["", "a" * 65]),
    "best_of": ([1, None], [2, 0, -1]),
    "suffix": (["", None], ["a"]),
    "use_beam_search": ([False], [True]),
    "functions": ([None], [[], [{}]]),
    "stream_options": ([None], [{}, {"include_usage": True}]),
    "response_format": ([None, {"type": "text"}], [{}, {"type": "xml"}, {"type": "json_schema"}]),
}


@pytest.mark.parametrize("field", EDGES)
def test_edges(server: Server, field: str):
    right, wrong = EDGES[field]
    for value in right:
        response = server.post({"prompt": "a", "max_tokens": 1, field: value})
        assert response.status_code == 200, (value, response.text)
    for value in wrong:
        param = error_of(server.post({"prompt": "a", "max_tokens": 1, field: value}))["param"]
        assert param is not None and param.split(".")[0] == field, value


def test_max_tokens_without_an_end(server: Server):
    """The output may fill the rest of the context, and no more."""
    for max_tokens in (-1, 6, HUGE, MAX):
        choice = server.complete(prompt=[7] * (CONTEXT - 5), max_tokens=max_tokens, ignore_eos=True, return_token_ids=True)["choices"][0]
        assert (len(choice["token_ids"]), choice["finish_reason"]) == (5, "length")


def test_echo_alone(server: Server):
    """OpenAI's way to ask for nothing but a prompt's log-probabilities."""
    choice = server.complete(prompt="abc", max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"][1:] == ["b", "c"]
    for body in ({"max_tokens": 0}, {"max_tokens": 0, "echo": True, "stream": True}):
        assert error_of(server.post({"prompt": "a", **body}))["param"] == "max_tokens"
    assert error_of(server.post({"prompt": "a", "echo": True, "stream": True, "logprobs": 1}))["param"] == "echo"


def test_chat_has_its_own(server: Server):
    def ask(**fields: object) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}

    right: list[dict[str, object]] = [
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 20},
        {"max_completion_tokens": 1},
        {"max_completion_tokens": -1, "max_tokens": None, "stop": ["a", "e", " "]},
        {"top_logprobs": 0},
    ]
    for fields in right:
        assert server.post(ask(**fields), CHAT).status_code == 200, fields
    wrong: list[tuple[str, object]] = [
        ("top_logprobs", 1),
        ("top_logprobs", -1),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", -2),
    ]
    wrong += [("chat_template", "{{ 1 }}"), ("n", 129), ("logprobs", 1), ("modalities", ["audio"]), ("audio", {"voice": "x"})]
    for field, value in wrong:
        assert error_of(server.post(ask(**{field: value}), CHAT))["param"] in (field, "modalities"), field
    assert error_of(server.post(ask(logprobs=True, top_logprobs=21), CHAT))["param"] in ("logprobs", "top_logprobs")


def test_echo_of_the_last_message_and_tokens_by_their_ids(server: Server):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "So"}]
    body = {"messages": messages, "max_tokens": 3, "temperature": 0, "continue_final_message": True, "add_generation_prompt": False}
    plain = server.post(body, CHAT).json()["choices"][0]["message"]["content"]
    echoed = server.post({**body, "echo": True}, CHAT).json()["choices"][0]["message"]["content"]
    assert echoed == "So" + plain
    events = list(server.events({**body, "echo": True}, CHAT))
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == echoed
    ids = {"return_tokens_as_token_ids": True, "return_token_ids": True, "ignore_eos": True, "prompt": "a", "max_tokens": 3}
    choice = server.complete(**ids, logprobs=1)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    tokens = server.post({**body, "logprobs": True, "return_tokens_as_token_ids": True}, CHAT).json()["choices"][0]["logprobs"]["content"]
    assert all(token["token"].startswith("token_id:") for token in tokens)


def test_nothing_is_left_to_say(server: Server):
    body = {"prompt": "a", "max_tokens": 5, "allowed_token_ids": [98], "bad_words": ["b"]}
    assert error_of(server.post(body))["param"] == "allowed_token_ids"
    assert "error" in list(server.events(body))[-1]


def test_bad_words_do_not_come(server: Server):
    body = {"prompt": "a", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    text = server.complete(**body)["choices"][0]["text"]
    letters = [letter for letter in set(text) if letter.isascii() and letter.isprintable() and letter.strip()][:5]
    assert letters
    without = server.complete(**body, bad_words=letters)["choices"][0]["text"]
    assert not set(letters) & set(without)


def test_the_role_comes_with_the_first_text(server: Server):
    events = list(server.events(ask_chat(n=2, max_tokens=6, temperature=0, ignore_eos=True), CHAT))
    for index in range(2):
        deltas = [event["choices"][0]["delta"] for event in events if event["choices"][0]["index"] == index]
        assert deltas[0]["role"] == "assistant" and deltas[0]["content"]
        assert not any("role" in delta for delta in deltas[1:])


def ask_chat(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "a"}], **fields}


def test_all_at_once(server: Server):
    """Each at an edge, together."""
    answer = server.complete(
        prompt=["a", "b"], n=3, max_tokens=3, min_tokens=3, temperature=100, top_p=5e-324, top_k=1, min_p=1, repetition_penalty=100,
        presence_penalty=2, frequency_penalty=-2, logit_bias={"1": -100}, seed=-MAX, stop=["\ufffd" * 9], logprobs=20, prompt_logprobs=20,
        priority=-5, cache_salt="x", echo=True,
    )  # fmt: skip
    assert len(answer["choices"]) == 6


# Stop strings, over a model whose greedy text is known without it -------------------------------------------------------------------

CYCLE = "aü😀b€c"  # no byte twice: each says which one follows


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model that writes CYCLE for ever, a byte a token."""
    folder: Path = tmp_path_factory.mktemp("cycle")
    weight = np.zeros((VOCAB, VOCAB), np.float32)
    bytes_ = CYCLE.encode()
    weight[list(bytes_), list(bytes_[1:] + bytes_[:1])] = 10
    with run_server(make_artifact(folder / "artifact", weight=weight, context=CONTEXT).path, folder) as server:
        yield server


STOPS = ["b", "😀", "ü", "b€", "€ca", "😀b€", "ca", "caü😀", CYCLE, CYCLE * 3, "😀b€caü😀b€caü"]


@pytest.mark.parametrize("stop", STOPS)
def test_stop_strings_across_tokens_and_characters(cycle: Server, stop: str):
    text = (CYCLE * 20)[1:]
    body = {"prompt": "a", "max_tokens": 100, "temperature": 0, "stop": ["never", stop]}
    expected = text[: text.index(stop)]
    for include in (False, True):
        choice = cycle.complete(**body, include_stop_str_in_output=include)["choices"][0]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (expected + stop * include, "stop", stop)
        events = [event["choices"][0] for event in cycle.events({**body, "include_stop_str_in_output": include})]
        assert "".join(event["text"] for event in events) == expected + stop * include
        assert (events[-1]["finish_reason"], events[-1]["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize("stop", [CYCLE[1:] + CYCLE[:2] + "!", "😀b€!"])
def test_offsets_while_text_is_held(cycle: Server, stop: str):
    """A streamed token's offset is its place in the text, although that comes later."""
    body = {"prompt": "a", "max_tokens": 40, "temperature": 0, "stop": stop, "logprobs": 1}
    whole = cycle.complete(**body)["choices"][0]
    raw = (CYCLE * 20)[1:].encode()
    assert whole["logprobs"]["text_offset"] == [len(raw[:i].decode("utf-8", "ignore")) for i in range(40)]
    events = [event["choices"][0]["logprobs"] for event in cycle.events(body)]
    assert {name: [entry for event in events for entry in event[name]] for name in whole["logprobs"]} == whole["logprobs"]


@pytest.mark.parametrize("stop", ["\ufffd", "ü\ufffd", "\ufffd\ufffd", "cb", CYCLE[::-1]])
def test_half_a_character_stops_nothing(cycle: Server, stop: str):
    text = (CYCLE * 20)[1:].encode()[:50].decode()
    body = {"prompt": "a", "max_tokens": 50, "temperature": 0, "stop": stop}
    choice = cycle.complete(**body)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    assert "".join(event["choices"][0]["text"] for event in cycle.events(body)) == text


def test_every_piece_of_a_stream_is_whole_characters(cycle: Server):
    for max_tokens in range(1, 14):
        raw = (CYCLE * 20)[1:].encode()[:max_tokens]
        text = "".join(event["choices"][0]["text"] for event in cycle.events({"prompt": "a", "max_tokens": max_tokens, "temperature": 0}))
        whole = raw.decode("utf-8", "ignore")
        assert text.rstrip("\ufffd") == whole
        assert ("\ufffd" in text) == (len(whole.encode()) < len(raw))


def test_the_earliest_of_many_stop_strings_wins(cycle: Server):
    for stops in itertools.permutations(["€", "😀b€", "b"]):
        choice = cycle.complete(prompt="a", max_tokens=50, temperature=0, stop=list(stops))["choices"][0]
        assert choice["text"] == "ü😀", stops
