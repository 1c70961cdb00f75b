"""Prompts at and past their limits: group 2 of the bad inputs."""

from __future__ import annotations

import pytest

from tests.runtime.server.conftest import CONTEXT
from tests.runtime.server.harness import CHAT, COMPLETIONS, Server, error_of
from tests.runtime.tiny_artifact import VOCAB

MAX_CHARACTERS = 64 * CONTEXT
EMPTY = {
    "no text": "",
    "no tokens": [],
    "a list of no text": [""],
    "a list of no tokens": [[]],
    "no text among others": ["a", ""],
    "no tokens among others": [[1], []],
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing(server: Server, name: str):
    assert error_of(server.post({"prompt": EMPTY[name]}))["param"] == "prompt"


def test_no_prompt(server: Server):
    assert error_of(server.post({"max_tokens": 1}))["param"] == "prompt"
    assert error_of(server.post({"max_tokens": 1}, CHAT))["param"] == "messages"


LONG = {
    "tokens": [1] * 100_000,
    "texts": ["a"] * 100_000,
    "lists of tokens": [[1]] * 100_000,
    "empty lists": [[]] * 100_000,
    "texts, one too many": ["a"] * 1025,
}


@pytest.mark.parametrize("name", LONG)
def test_long_lists(server: Server, name: str):
    assert error_of(server.post({"prompt": LONG[name], "max_tokens": 1}))["param"] == "prompt"


@pytest.mark.parametrize("token_id", [-1, VOCAB, VOCAB + 1, 2**31, 2**32, 2**63 - 1, -(2**63)])
def test_token_ids_out_of_range(server: Server, token_id: int):
    for prompt in ([token_id], [1, token_id], [[1], [token_id]]):
        error = error_of(server.post({"prompt": prompt}))
        assert error["param"] == "prompt" and str(token_id) in error["message"]
    assert error_of(server.post({"tokens": [token_id]}, "/detokenize"))["param"] == "tokens"


def test_every_token_id_in_range(server: Server):
    """The logits are wider than the tokenizer knows tokens: what has no text is a token nevertheless."""
    answer = server.complete(prompt=list(range(VOCAB)), max_tokens=1, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == list(range(VOCAB))
    assert server.post({"tokens": list(range(VOCAB))}, "/detokenize").status_code == 200


def test_one_token_less_than_the_context(server: Server):
    choice = server.complete(prompt=[7] * (CONTEXT - 1), max_tokens=100, ignore_eos=True, return_token_ids=True)["choices"][0]
    assert (len(choice["token_ids"]), choice["finish_reason"]) == (1, "length")


def test_as_many_tokens_as_the_context(server: Server):
    choice = server.complete(prompt=[7] * CONTEXT, max_tokens=100, ignore_eos=True, return_token_ids=True)["choices"][0]
    assert (len(choice["token_ids"]), choice["finish_reason"]) == (1, "length")


def test_one_token_more_than_the_context(server: Server):
    for prompt in ([7] * (CONTEXT + 1), "a" * (CONTEXT + 1), [[7], [7] * (CONTEXT + 1)]):
        error = error_of(server.post({"prompt": prompt}))
        sentence = f"This model's maximum context length is {CONTEXT} tokens. However, your prompt has {CONTEXT + 1} tokens."
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded") and error["message"].startswith(sentence)
    chat = error_of(server.post({"messages": [{"role": "user", "content": "a" * CONTEXT}]}, CHAT))
    assert chat["code"] == "context_length_exceeded" and chat["message"].startswith(sentence[:40])


def test_text_as_long_as_is_tokenized(server: Server):
    """Refused for its tokens, which are counted."""
    for text in ("a" * MAX_CHARACTERS, "😀" * MAX_CHARACTERS, " t" * (MAX_CHARACTERS // 2)):
        assert "tokens. Please reduce" in error_of(server.post({"prompt": text}))["message"]


def test_megabytes_of_text_are_refused_before_they_are_tokenized(server: Server):
    for text in ("a" * (MAX_CHARACTERS + 1), "a" * (15 << 20), "😀" * (3 << 20), " t" * (7 << 20)):
        for body, path in (
            ({"prompt": text}, COMPLETIONS),
            ({"prompt": ["a", text]}, COMPLETIONS),
            ({"prompt": text}, "/tokenize"),
        ):
            error = error_of(server.post(body, path))
            assert "characters, too many" in error["message"] and error["code"] == "context_length_exceeded"


def test_megabytes_of_messages(server: Server):
    for messages in (
        [{"role": "user", "content": "a" * (14 << 20)}],
        [{"role": "user", "content": "a" * 100}] * 100_000,
        [{"role": "a" * (4 << 20), "content": "b"}],
    ):
        for path in (CHAT, "/tokenize"):
            assert error_of(server.post({"messages": messages}, path))["param"].startswith(("prompt", "messages"))


@pytest.mark.parametrize(
    "messages", [[], [{}], [{"role": 1}], [{"role": "user", "content": 1}], [{"role": "user", "content": {}}], [{"content": "a"}]], ids=str
)
def test_messages_that_are_none(server: Server, messages: object):
    for path in (CHAT, "/tokenize"):
        assert error_of(server.post({"messages": messages}, path))["param"].startswith("messages")


def test_text_that_names_special_tokens(server: Server):
    for text in ("<end>", "a<end>b", "<end>" * 100, "<|im_start|>", "</s><s>[INST]", "<0x00>"):
        answer = server.complete(prompt=text, max_tokens=1, echo=True)
        assert answer["choices"][0]["text"].startswith(text)
        assert server.post({"messages": [{"role": "user", "content": text}], "max_tokens": 1}, CHAT).status_code == 200


@pytest.mark.parametrize(
    "text", ["\0", "\x1b[2J", "\u202e", "\ufeff", "\ufffd", "\U0010ffff", "a\u0301" * 1000, "\r\n" * 1000, "\u2028"], ids=ascii
)
def test_odd_text(server: Server, text: str):
    answer = server.complete(prompt=text, max_tokens=1, echo=True)
    assert answer["choices"][0]["text"].startswith(text)


def test_more_sequences_than_one_request_may_have(server: Server):
    for prompt, n in ((["a"] * 1024, 2), (["a"] * 1024, 128), ([[1] * 2000] * 512, 128)):
        assert error_of(server.post({"prompt": prompt, "n": n, "max_tokens": 1}))["param"] == "prompt"


def test_tokenize_takes_a_prompt_or_messages(server: Server):
    messages = [{"role": "user", "content": "a"}]
    for body in ({}, {"prompt": "a", "messages": messages}, {"prompt": None}):
        assert error_of(server.post(body, "/tokenize"))["param"] == "prompt"
    assert server.post({"prompt": ""}, "/tokenize").json()["tokens"] == []
    assert server.post({"tokens": []}, "/detokenize").json() == {"prompt": ""}
    assert error_of(server.post({"tokens": [0] * 2_000_000}, "/detokenize"))["param"] == "tokens"


def test_a_prompt_is_cut_where_that_is_asked_for(server: Server):
    for prompt in ("abcdef", [97, 98, 99, 100, 101, 102]):
        answer = server.complete(prompt=prompt, max_tokens=1, truncate_prompt_tokens=2, echo=True, logprobs=0, return_token_ids=True)
        assert answer["choices"][0]["prompt_token_ids"] == [101, 102] and answer["choices"][0]["text"].startswith("ef")
        assert answer["usage"]["prompt_tokens"] == 2
    answer = server.complete(prompt=[7] * 20_000, max_tokens=100, truncate_prompt_tokens=-1, ignore_eos=True)
    assert answer["usage"]["prompt_tokens"] == CONTEXT - 100
    body = {"messages": [{"role": "user", "content": "a" * 2 * CONTEXT}], "max_tokens": 1, "truncate_prompt_tokens": 9}
    assert server.post(body, CHAT).json()["usage"]["prompt_tokens"] == 9
