"""Fields that are not the server's are ignored if they can't change the answer, else refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.server.foreign_fields import ALIASES, IGNORED, REFUSED, settle_fields
from cupola.runtime.server.protocol import ChatRequest, CompletionRequest
from tests.runtime.server.harness import CHAT, Server, error_of, run_server

CHATTING = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
CHANGING: dict[str, object] = {  # fields that would change the answer, with values that do
    "smoothing_factor": 0.5, "tfs_z": 0.9, "adaptive_target": 0.5, "lora": [{"id": 0, "scale": 1}],
    "logprob_token_ids": [1], "use_beam_search": True, "functions": [{}], "function_call": "auto", "n_probs": 3, "vllm_xargs": {"a": 1},
    "audio": {"voice": "x"}, "modalities": ["audio"], "options": {"temperature": 0}, "negative_prompt": "x", "verbosity": "low",
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGING)
def test_what_would_change_the_answer_is_refused_by_name(server: Server, field: str):
    for path, body in ((CHAT, CHATTING), ("/v1/completions", {"prompt": "a", "max_tokens": 1})):
        error = error_of(server.post({**body, field: CHANGING[field]}, path))
        assert error["param"] == field and error["message"].startswith(field)


def test_what_changes_nothing_is_let_pass(server: Server):
    """Clients send these with every request."""
    usual = {field: refusal.neutral[0] for field, refusal in REFUSED.items() if refusal.neutral}
    others = {"user": "me", "metadata": {"a": "b"}, "store": True, "cache_prompt": True, "service_tier": "auto", "smoothing_curve": 0.2}
    for path, body in ((CHAT, CHATTING), ("/v1/completions", {"prompt": "a", "max_tokens": 1})):
        assert server.post({**usual, **others, **dict.fromkeys(CHANGING), **body}, path).status_code == 200


def test_an_unknown_field_is_refused_with_what_may_have_been_meant(server: Server):
    error = error_of(server.post({"prompt": "a", "max_token": 1}))
    assert error["param"] == "max_token" and "did you mean max_tokens?" in error["message"]
    error = error_of(server.post({"prompt": "a", "zzz": 1}))
    assert error["param"] == "zzz" and "--ignored-fields" in error["message"]
    assert error_of(server.post({"prompt": "a", "stream": True, "stream_options": {"usage": True}}))["param"] == "stream_options.usage"
    assert error_of(server.post({"prompt": "a", "response_format": {"type": "text", "strict": 1}}))["param"] == "response_format.strict"


@pytest.mark.parametrize("name", ["", "\0", "a\nb", "\u202e", "x" * 100_000, "__class__"], ids=lambda name: ascii(name[:9]))
def test_odd_names(server: Server, name: str):
    assert len(error_of(server.post({"prompt": "a", name: 1}))["param"]) <= 60


def test_other_names(server: Server):
    answer = server.complete(prompt="a", n_predict=3, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 3
    assert server.complete(prompt="a", max_new_tokens=3, max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    error = error_of(server.post({"prompt": "a", "n_predict": 3, "max_tokens": 4}))
    assert error["param"] == "n_predict" and "max_tokens is 4" in error["message"]
    assert settle_fields({"repeat_penalty": 1.1}, {"repetition_penalty"}) == {"repetition_penalty": 1.1}
    with pytest.raises(RequestError, match="n_predict"):
        settle_fields({"n_predict": 1}, {"prompt"})  # a route that generates nothing


def test_a_server_may_be_told_to_ignore_fields(tiny: Path, tmp_path: Path):
    with run_server(tiny, tmp_path, "--ignored-fields", "chat_id, features") as server:
        assert server.post({"prompt": "a", "chat_id": 1, "features": {}, "max_tokens": 1}).status_code == 200
        assert error_of(server.post({"prompt": "a", "chat": 1}))["param"] == "chat"


def test_the_tables_have_nothing_twice():
    assert not IGNORED & set(REFUSED) and not (IGNORED | set(REFUSED)) & set(ALIASES)
    everywhere = set(ChatRequest.model_fields) & set(CompletionRequest.model_fields)
    assert not everywhere & (IGNORED | set(REFUSED) | set(ALIASES)), "a field that there is now is in a table of those that there are not"


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
        {"grammar": 'root ::= "{\\"a\\": \\"" [xy] "\\"}"'},
    ],
    ids=["json_object", "response_format", "json_schema", "grammar"],
)
def test_llama_servers_ways_to_ask_for_structure(server: Server, fields: dict[str, object]):
    answer = server.complete(prompt="a", max_tokens=50, temperature=0, **fields)
    assert answer["choices"][0]["text"].replace(" ", "") in ('{"a":"x"}', '{"a":"y"}')
    reply = server.post({**CHATTING, **fields, "max_tokens": 50}, CHAT).json()
    assert reply["choices"][0]["message"]["content"].replace(" ", "") in ('{"a":"x"}', '{"a":"y"}')


def test_structure_that_contradicts_itself(server: Server):
    for fields, param in (
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": {"schema": True}}}, "response_format.schema"),
        ({"json_schema": SCHEMA, "grammar": "root ::= [a]"}, "json_schema"),
        ({"json_schema": SCHEMA, "guided_json": {"type": "object"}}, "guided_json"),
    ):
        assert error_of(server.post({"prompt": "a", **fields}))["param"] == param
    assert server.post({"prompt": "a", "max_tokens": 1, "json_schema": SCHEMA, "guided_json": SCHEMA}).status_code == 200  # the same twice
    assert server.post({"prompt": "a", "max_tokens": 1, "grammar": ""}).status_code == 200


def test_prompt_logprobs_are_not_swallowed_by_a_stream(server: Server):
    for path, body in ((CHAT, CHATTING), ("/v1/completions", {"prompt": "a"})):
        assert error_of(server.post({**body, "stream": True, "prompt_logprobs": 1}, path))["param"] == "prompt_logprobs"
