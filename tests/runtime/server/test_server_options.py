"""The server's options for its clients: names, keys, origins, a path, certificates, patience."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cupola.runtime.errors import OptionError
from cupola.runtime.server.serve import serve
from tests.runtime.server.conftest import CONTEXT
from tests.runtime.server.harness import CHAT, COMPLETIONS, PATIENCE, Server, error_of, run_server
from tests.runtime.tiny_artifact import TEMPLATE

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # and its key; for localhost, until 2120
KEYS, NAMES, ORIGIN = ("sk-one", "sk-two"), ("first", "org/second"), "https://example.org"
CHATTING = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = [option for name in NAMES for option in ("--served-model-name", name)]
    options = [*names, "--api-key", KEYS[1], "--allowed-origins", f"{ORIGIN},http://localhost:3000", "--root-path", "/llm/"]
    with run_server(tiny, tmp_path_factory.mktemp("options"), *options, "--sse-keep-alive", "0.005", api_key=KEYS[0]) as server:
        yield server


def test_several_names(served: Server):
    """An answer has the name that was asked for."""
    assert [model["id"] for model in served.http.get("/v1/models").json()["data"]] == list(NAMES)
    for name in NAMES:
        assert served.http.get(f"/v1/models/{name}").json()["id"] == name
        assert served.complete(prompt="a", max_tokens=1, model=name)["model"] == name
        assert served.post({**CHATTING, "model": name}, CHAT).json()["model"] == name
        assert {event["model"] for event in served.events({**CHATTING, "model": name}, CHAT)} == {name}
    assert served.complete(prompt="a", max_tokens=1)["model"] == NAMES[0]
    assert "'first', 'org/second'" in error_of(served.post({"prompt": "a", "model": "gpt-4"}), 404)["message"]


def test_several_keys(served: Server):
    def status(authorization: str) -> int:
        return httpx.get(f"{served.base_url}/v1/models", headers={"Authorization": authorization}, trust_env=False).status_code

    for key in KEYS:
        assert [status(f"{scheme} {key}") for scheme in ("Bearer", "bearer", "BEARER")] == [200] * 3
    assert [status(wrong) for wrong in ("Bearer sk-three", f"Basic {KEYS[0]}", f"Bearer {' '.join(KEYS)}", "Bearer", "")] == [401] * 5


def preflight(server: Server, origin: str) -> httpx.Response:
    """The question that a browser asks before it posts JSON for a page of `origin`; it sends no key with it."""
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return httpx.options(f"{server.base_url}{CHAT}", headers=asked, trust_env=False)


def test_origins(served: Server, server: Server):
    allowed = preflight(served, ORIGIN)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"]
    for origin in ("https://example.org.evil.com", "http://example.org", "null"):
        assert "Access-Control-Allow-Origin" not in preflight(served, origin).headers
    response = served.http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, headers={"Origin": ORIGIN})
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    refused = httpx.post(f"{served.base_url}{COMPLETIONS}", json={}, headers={"Origin": ORIGIN}, trust_env=False)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)  # or the page could not read why
    closed = preflight(server, ORIGIN)  # as servers are unless they are told otherwise
    assert closed.status_code == 405 and "Access-Control-Allow-Origin" not in closed.headers


def test_a_path_before_all_others(served: Server):
    for path in ("/v1/models", "/llm/v1/models", "/llm", "/llm/", "/llm/page/app.js", "/llm/health"):
        assert served.http.get(path).status_code == 200, path
    for path in ("/llmv1/models", "/llm/llm/v1/models"):
        assert served.http.get(path).status_code == 404, path
    assert served.http.get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]
    for path in ("/llm/v1/models", "/v1/models", "/page/../llm/v1/models"):
        assert httpx.get(f"{served.base_url}{path}", trust_env=False).status_code == 401


def test_a_silent_stream_sends_comments(served: Server):
    """While a prompt is computed, say: the events are what they are without. How long it takes is not known, so several are, all new."""
    for start in range(0, 160, 8):
        body = {"prompt": [[start + i] * 3000 for i in range(8)], "max_tokens": 1, "stream": True}
        with served.http.stream("POST", COMPLETIONS, json=body) as response:
            text = response.read().decode()
        parts = text.removesuffix("\n\n").split("\n\n")
        assert parts[-1] == "data: [DONE]"
        assert all(part.startswith("data: ") or part == ": keep-alive" for part in parts)
        if ": keep-alive" in parts:
            return
    raise AssertionError("no comment came in any of the streams")


def test_health_by_other_names(served: Server):
    for path in ("/health", "/v1/health", "/ping"):
        response = httpx.get(served.base_url + path, trust_env=False)
        assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_https(tiny: Path, tmp_path: Path):
    with run_server(tiny, tmp_path, "--ssl-certfile", str(CERTIFICATE), "--ssl-keyfile", str(CERTIFICATE), ready=False) as server:
        assert server.base_url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
        with httpx.Client(base_url=server.base_url, verify=trusted, trust_env=False, timeout=PATIENCE) as client:
            while client.get("/health").status_code == 503:
                continue
            assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 1}).status_code == 200
            with client.stream("POST", CHAT, json={**CHATTING, "stream": True}) as response:
                assert response.read().endswith(b"data: [DONE]\n\n")


def test_a_template_of_ones_own_and_what_it_makes_of_a_chat(tiny: Path, tmp_path: Path, server: Server):
    file = tmp_path / "own.jinja"
    file.write_text("\ufeff{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}")
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}
    with run_server(tiny, tmp_path, "--chat-template", str(file)) as own:
        assert own.post(chat, "/apply-template").json() == {"prompt": "[user|a][assistant|b]>"}
        going_on = {**chat, "continue_final_message": True, "add_generation_prompt": False}
        assert own.post(going_on, "/apply-template").json() == {"prompt": "[user|a][assistant|b"}
        assert own.post({**chat, "max_tokens": 1}, CHAT).json()["usage"]["prompt_tokens"] == len("[user|a][assistant|b]>")
        assert own.http.get("/props").json()["chat_template"] == file.read_text(encoding="utf-8-sig")
    assert server.post(chat, "/apply-template").json() == {"prompt": "user: a\nassistant: b\nbot:"}
    assert error_of(server.post({**chat, "model": "gpt-4"}, "/apply-template"), 404)["code"] == "model_not_found"
    assert error_of(server.post({"messages": []}, "/apply-template"))["param"] == "messages"


def test_props(server: Server, tiny: Path):
    props = server.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == CONTEXT
    assert props["default_generation_settings"]["params"]["temperature"] == 0.5  # as the model's generation_config.json says
    assert props["generation_config"] == {"temperature": 0.5}  # what it sets, without defaults: the chat page has its own
    assert (props["model_alias"], props["total_slots"], props["modalities"]["vision"]) == ("tiny", 8, False)
    assert props["chat_template"] == TEMPLATE and str(tiny.parent) not in str(props)


WRONG: list[tuple[str, dict[str, object]]] = [
    ("ssl_keyfile", {"ssl_keyfile": CERTIFICATE}),
    ("ssl_certfile", {"ssl_certfile": "nowhere.pem"}),
    ("ssl_certfile", {"ssl_certfile": __file__}),
    ("ssl_certfile", {"ssl_certfile": CERTIFICATE, "ssl_keyfile": __file__}),
    ("allowed_origins", {"allowed_origins": ["example.org"]}),
    ("allowed_origins", {"allowed_origins": ["https://example.org/"]}),
    ("root_path", {"root_path": "llm"}),
    ("root_path", {"root_path": "/a/../b c"}),
    ("chat_template", {"chat_template": "nowhere.jinja"}),
    ("sse_keep_alive", {"sse_keep_alive": -1}),
    ("served_model_name", {"served_model_name": ["a", ""]}),
    ("api_key", {"api_key": ""}),
    ("api_key", {"api_key": ["a", "b\n"]}),
]


@pytest.mark.parametrize(("field", "options"), WRONG, ids=lambda value: str(value)[:60])
def test_options_that_are_wrong(tiny: Path, field: str, options: dict[str, object]):
    with pytest.raises(OptionError) as caught:
        serve(tiny, port=0, **options)
    assert caught.value.field == field and caught.value.fix


def test_a_template_that_is_none(tiny: Path, tmp_path: Path):
    file = tmp_path / "broken.jinja"
    file.write_text("{{ bos_token }}\n{% for %}")
    with pytest.raises(OptionError, match=r"broken\.jinja: chat_template: line 2: "):
        serve(tiny, port=0, chat_template=file)
