"""OpenAI's own client drives every endpoint and parameter, over real HTTP, on the real model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import httpx
import jsonschema
import numpy as np
import openai
import pytest

import cupola
from tests.conftest import Compiled
from tests.runtime.server.harness import Server, eventually, run_server

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = "smollm2"
COLD = {"cache_salt": "cold"}  # computed afresh: on AMX, bits depend on how many tokens are computed together (DESIGN, D37)


@pytest.fixture(scope="module")
def server(smollm2_w4a8: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(smollm2_w4a8.path, tmp_path_factory.mktemp("openai"), "--served-model-name", MODEL, api_key="secret") as server:
        yield server
        server.wait_idle()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def llm(smollm2_w4a8: Compiled) -> cupola.LLM:
    """The same model without a server: what answers are compared with."""
    return cupola.LLM(smollm2_w4a8.path, kv_memory="64MB")


def post(server: Server, path: str, body: dict) -> dict:
    response = server.post(body, path)
    assert response.status_code == 200, response.text
    return response.json()


# Models, tokens, state


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert model.id == MODEL and client.models.retrieve(MODEL) == model
    assert model.to_dict()["max_model_len"] == 2048
    with pytest.raises(openai.NotFoundError, match="gpt-5"):
        client.models.retrieve("gpt-5")


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="Hi")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_embeddings_are_refused_clearly(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model=MODEL, input="Hi", encoding_format="float")


def test_tokens_there_and_back(server: Server, llm: cupola.LLM) -> None:
    text = "Grüße aus Köln ☕"
    found = post(server, "/tokenize", {"prompt": text, "return_token_strs": True})
    assert found["tokens"] == llm.tokenize(text) and found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 2048
    assert post(server, "/detokenize", {"tokens": found["tokens"]})["prompt"] == text
    chat = post(server, "/tokenize", {"messages": QUESTION})
    assert chat["tokens"] == llm.tokenize(llm.render_chat(QUESTION), add_special_tokens=False)


def test_version_and_metrics(server: Server) -> None:
    assert server.http.get("/version").json() == {"version": cupola.__version__}
    page = server.http.get("/metrics").text
    for name in (
        "num_requests_running num_requests_waiting kv_cache_usage_perc num_preemptions_total prefix_cache_queries_total "
        "prefix_cache_hits_total prompt_tokens_total generation_tokens_total time_to_first_token_seconds_bucket "
        "inter_token_latency_seconds_bucket e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket "
        "request_prefill_time_seconds_bucket request_decode_time_seconds_bucket request_inference_time_seconds_bucket "
        "request_prompt_tokens_bucket request_generation_tokens_bucket request_max_num_generation_tokens_bucket request_params_n_bucket "
        "request_params_max_tokens_bucket iteration_tokens_total_bucket time_per_output_token_seconds_bucket "
        "request_time_per_output_token_seconds_bucket request_prefill_kv_computed_tokens_bucket"
    ).split():
        assert f"cupola:{name}{{" in page, name


# Completions


def test_completion_equals_the_library(client: openai.OpenAI, llm: cupola.LLM) -> None:
    prompt = "The capital of France is"
    made = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=12)
    [output] = llm.generate(prompt, cupola.SamplingParams(temperature=0, max_tokens=12))
    assert made.choices[0].text == output.outputs[0].text
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None and made.usage.completion_tokens == 12 and made.usage.prompt_tokens == len(output.prompt_token_ids)


def test_completions_of_many_prompts_and_token_ids(client: openai.OpenAI, llm: cupola.LLM) -> None:
    texts = ["One two three", "Red green"]
    alone = [client.completions.create(model=MODEL, prompt=text, temperature=0, max_tokens=4).choices[0].text for text in texts]
    together = client.completions.create(model=MODEL, prompt=texts, temperature=0, max_tokens=4)
    assert [choice.text for choice in together.choices] == alone
    ids = [llm.tokenize(text) for text in texts]
    assert [choice.text for choice in client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=4).choices] == alone
    assert client.completions.create(model=MODEL, prompt=ids[0], temperature=0, max_tokens=4).choices[0].text == alone[0]


def test_n_and_seed(client: openai.OpenAI) -> None:
    def draw(seed: int) -> list[str]:
        made = client.completions.create(model=MODEL, prompt="My favourite animal is", n=3, seed=seed, temperature=1, max_tokens=8)
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        return [choice.text for choice in made.choices]

    first = draw(5)
    assert first == draw(5) != draw(6) and len(set(first)) > 1


def test_completion_logprobs_and_echo(client: openai.OpenAI, llm: cupola.LLM) -> None:
    made = client.completions.create(model=MODEL, prompt="The capital of", temperature=0, max_tokens=3, logprobs=2, echo=True)
    choice = made.choices[0]
    assert choice.text.startswith("The capital of") and choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.text_offset == [choice.text.index(token) for token in choice.logprobs.tokens or []]
    assert all(2 <= len(top) <= 3 for top in (choice.logprobs.top_logprobs or [])[1:])
    ids = llm.tokenize(choice.text)
    logits = llm.logits(ids).astype("float64")
    at = len(ids) - 1
    expected = logits[at - 1, ids[at]] - np.logaddexp.reduce(logits[at - 1])
    assert choice.logprobs.token_logprobs[at] == pytest.approx(expected, abs=0.3)  # the paths of few and of many tokens round differently
    scored = client.completions.create(model=MODEL, prompt="The capital of", temperature=0, max_tokens=0, logprobs=1, echo=True)
    assert scored.choices[0].text == "The capital of" and len(scored.choices[0].logprobs.tokens) == 3  # type: ignore[union-attr, arg-type]


def test_stop_strings_and_ids(client: openai.OpenAI, llm: cupola.LLM) -> None:
    def ask(**extra: object) -> openai.types.CompletionChoice:
        return client.completions.create(model=MODEL, prompt="1, 2, 3, 4,", temperature=0, max_tokens=20, **extra).choices[0]

    whole = ask().text
    assert " 6," in whole
    stopped = ask(stop=" 6,")
    assert stopped.text == whole[: whole.index(" 6,")] and stopped.finish_reason == "stop"
    assert ask(stop=[" 6,"], extra_body={"include_stop_str_in_output": True}).text == stopped.text + " 6,"
    comma = llm.tokenize(",")[0]
    assert ask(extra_body={"stop_token_ids": [comma]}).to_dict()["stop_reason"] == comma


def test_what_shapes_the_distribution(client: openai.OpenAI, llm: cupola.LLM) -> None:
    def ask(prompt: str = "The sky is", **extra: object) -> str:
        extra_body = extra.pop("extra_body", {})
        return client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=10, **{"temperature": 0, **extra}, extra_body=extra_body
        ).choices[0].text  # fmt: skip

    plain = ask()
    assert ask(temperature=1, extra_body={"top_k": 1}) == plain == ask(temperature=1, extra_body={"min_p": 1})
    assert ask(temperature=1, top_p=1e-9) == plain
    wanted = llm.tokenize(" banana")[0]
    assert ask(logit_bias={str(wanted): 100}).startswith(llm.detokenize([wanted]) * 3)
    repeating = ask("a a a a a a a a")
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repetition_penalty": 5}}):
        assert ask("a a a a a a a a", **penalty) != repeating
    short = client.completions.create(model=MODEL, prompt="Say no more.<|im_end|>", temperature=0, max_tokens=30)
    long = client.completions.create(
        model=MODEL, prompt="Say no more.<|im_end|>", temperature=0, max_tokens=30, extra_body={"ignore_eos": True, "min_tokens": 30}
    )
    assert long.usage is not None and short.usage is not None
    assert long.usage.completion_tokens == 30 >= short.usage.completion_tokens


def test_streamed_completion(client: openai.OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt=["One, two,", "Red, green,"], n=2, seed=3, max_tokens=9)
    pieces, usage = ["", "", "", ""], None
    for chunk in client.completions.create(
        model=MODEL, prompt=["One, two,", "Red, green,"], n=2, seed=3, max_tokens=9, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in made.choices]
    assert usage is not None and made.usage is not None and usage.completion_tokens == made.usage.completion_tokens


def test_what_is_not_supported_is_refused(client: openai.OpenAI) -> None:
    for name, value in {"suffix": "end", "best_of": 3}.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="Hi", **{name: value})
        assert caught.value.param == name and caught.value.type == "invalid_request_error"


def test_prompt_logprobs_priority_and_salt(server: Server, llm: cupola.LLM) -> None:
    body = {"prompt": "The capital of France", "temperature": 0, "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
    [choice] = post(server, "/v1/completions", {**body, "priority": -3, "cache_salt": "mine"})["choices"]
    ids = llm.tokenize("The capital of France")
    assert choice["prompt_token_ids"] == ids and len(choice["token_ids"]) == 2
    assert choice["prompt_logprobs"][0] is None
    assert [next(iter(entry)) for entry in choice["prompt_logprobs"][1:]] == [str(token_id) for token_id in ids[1:]]


# Chats


def test_chat_whole_and_streamed(client: openai.OpenAI, llm: cupola.LLM) -> None:
    [output] = llm.chat(QUESTION, cupola.SamplingParams(temperature=0, max_tokens=30))
    made = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=30)
    message = made.choices[0].message
    assert message.content == output.outputs[0].text and message.role == "assistant"
    assert made.choices[0].finish_reason == output.outputs[0].finish_reason
    text, reason, usage = "", None, None
    for chunk in client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=30, stream=True, stream_options={"include_usage": True}, extra_body=COLD
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    assert text == message.content and reason == output.outputs[0].finish_reason
    assert usage is not None and made.usage is not None and usage.total_tokens == made.usage.total_tokens


def test_cached_tokens_are_told(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Consider this. " * 40 + "What did I say?"}]
    counts = [client.chat.completions.create(model=MODEL, messages=long, temperature=0, max_tokens=4).usage for _ in range(2)]
    cold, warm = (usage.prompt_tokens_details.cached_tokens for usage in counts)  # type: ignore[union-attr]
    assert cold < 40 and warm >= 128


def test_chat_logprobs(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert bytes(entry.bytes or []).decode() == entry.token
    assert made.choices[0].message.content == "".join(entry.token for entry in logprobs.content)


def test_chat_goes_on_with_its_last_message(client: openai.OpenAI) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    made = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=3, extra_body=extra)
    assert (made.choices[0].message.content or "").startswith(" Paris")


# Structure

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]{2,11}$"},
        "rivers": {"type": "array", "items": {"enum": ["Seine", "Po"]}, "maxItems": 2},
    },
    "required": ["city", "rivers"],
    "additionalProperties": False,
}


def test_response_formats(client: openai.OpenAI) -> None:
    def ask(response_format: dict) -> dict:
        made = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1, seed=2, max_tokens=200, response_format=response_format
        )
        return json.loads(made.choices[0].message.content or "")

    answer = ask({"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}})
    jsonschema.validate(answer, PLACE)
    made = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, response_format={"type": "json_object"})
    assert (made.choices[0].message.content or "").startswith("{")
    plain = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2, response_format={"type": "text"})
    assert not (plain.choices[0].message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("field", "value", "is_right"),
    [
        ("guided_regex", "(red|blue){2}", lambda text: re.fullmatch("(red|blue){2}", text)),
        ("guided_choice", ["north", "south"], lambda text: text in ("north", "south")),
        ("guided_grammar", 'root ::= "a" root | "b"', lambda text: re.fullmatch("a*b?", text)),
        ("guided_json", {"type": "integer", "minimum": 10, "maximum": 99}, lambda text: 10 <= json.loads(text) <= 99),
        ("structured_outputs", {"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ],
)
def test_guided_decoding(server: Server, field: str, value: object, is_right: Callable[[str], object]) -> None:
    body = {"prompt": "Choose:", "temperature": 1, "seed": 4, "max_tokens": 20, "n": 3, field: value}
    choices = post(server, "/v1/completions", body)["choices"]
    assert len(choices) == 3 and all(is_right(choice["text"]) for choice in choices), choices


def test_two_structures_at_once_are_refused(client: openai.OpenAI) -> None:
    extra = {"guided_regex": "a", "guided_choice": ["b"]}
    with pytest.raises(openai.BadRequestError, match="given together"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body=extra)


# Tools


def tool(name: str, **properties: object) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Calls {name}", "parameters": parameters}}


WEATHER = tool("get_weather", city={"enum": ["Paris", "Rome"]}, days={"type": "integer", "minimum": 1, "maximum": 9})
CLOCK = tool("get_time", zone={"enum": ["UTC", "CET"]})


def test_a_chat_with_tools_goes_two_rounds(client: openai.OpenAI) -> None:
    messages: list = [{"role": "user", "content": "What will the weather be in Paris?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    asked = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER, CLOCK], tool_choice=choice, temperature=1, seed=1, max_tokens=100
    ).choices[0]
    assert asked.finish_reason in ("tool_calls", "stop") and asked.message.tool_calls is not None
    [call] = asked.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    messages += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"}]
    told = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER, CLOCK], tool_choice="none", temperature=0, max_tokens=30
    )
    assert told.choices[0].message.content and not told.choices[0].message.tool_calls
    second = client.chat.completions.create(
        model=MODEL,
        messages=[*messages, {"role": "user", "content": "And the time?"}],
        tools=[CLOCK],
        tool_choice="required",
        temperature=1,
        seed=1,
    )
    assert [call.function.name for call in second.choices[0].message.tool_calls or []] == ["get_time"]  # type: ignore[union-attr]


def test_streamed_tool_calls_equal_whole_ones(client: openai.OpenAI) -> None:
    asking: dict = {
        "model": MODEL, "messages": [{"role": "user", "content": "Weather and time?"}], "tools": [WEATHER, CLOCK],
        "tool_choice": "required", "temperature": 1, "seed": 7, "max_tokens": 200, "extra_body": COLD,
    }  # fmt: skip
    whole = client.chat.completions.create(**asking).choices[0]
    calls: dict[int, list[str]] = {}
    reason = None
    for chunk in client.chat.completions.create(**asking, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or []:
                name, arguments = calls.setdefault(delta.index, ["", ""])
                calls[delta.index] = [name + (delta.function.name or ""), arguments + (delta.function.arguments or "")]
    expected = [[call.function.name, json.loads(call.function.arguments)] for call in whole.message.tool_calls or []]
    assert expected and reason == whole.finish_reason
    assert [[name, json.loads(arguments)] for name, arguments in calls.values()] == expected


def test_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=3, max_tokens=200
    )
    assert len(made.choices[0].message.tool_calls or []) == 1


def test_tools_left_to_the_model(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[WEATHER], tool_choice="auto", temperature=0, max_tokens=20)
    assert made.choices[0].message.content or made.choices[0].message.tool_calls


def test_wrong_tools_are_refused(client: openai.OpenAI) -> None:
    for field, asking in {
        "tool_choice": {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
        "tools[0].function.name": {"tools": [tool("not a name")]},
        "functions": {"functions": [WEATHER["function"]]},
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=QUESTION, **asking)
        assert (caught.value.param or "").startswith(field), caught.value.body


# The key, and ids


@pytest.mark.parametrize("wrong", ["", "Bearer", "Bearer secre", "Bearer secret2", "Bearer sécret", "secret"])
def test_without_the_key_nothing_is_told(server: Server, wrong: str) -> None:
    for path in ("/v1/models", "/metrics"):
        response = httpx.get(server.base_url + path, headers=[(b"Authorization", wrong.encode("latin-1"))])
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.base_url}/health").status_code == 200


def test_request_ids_go_in_and_out(server: Server) -> None:
    response = server.http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1}, headers={"X-Request-Id": "mine-42"})
    assert response.headers["X-Request-Id"] == "mine-42" and response.json()["id"] == "cmpl-mine-42"
    [line] = eventually(lambda: [entry for entry in server.lines() if entry.get("request_id") == "mine-42"])
    assert line["status"] == 200 and line["output_tokens"] == 1 and line["path"] == "/v1/completions"
