"""Chat templates come with models and may be hostile: group 5 of the bad inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.runtime.server.conftest import CONTEXT
from tests.runtime.server.harness import CHAT, Server, error_of, run_server, unharmed
from tests.runtime.tiny_artifact import make_artifact
from tests.systems import needs

HOSTILE = {  # nothing that is known before it is rendered: that would be computed, and fail, whatever the chat
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "memory": "{{ messages[0].role * 10**10 }}",
    "power": "{{ (messages | length + 8) ** (9**9) }}",
    "output": "{% for a in range(90000) %}{{ 'a' * 10000 }}{% endfor %}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "globals": "{{ raise_exception.__globals__['sys'].exit() }}",
    "file": "{% include '/etc/passwd' %}",
    "mutation": "{{ messages.append(1) }}",
    "refusal": "{{ raise_exception('no') }}",
}
TEMPLATE = "".join(f"{{% if messages[0].content == '{name}' %}}{text}{{% endif %}}" for name, text in HOSTILE.items()) + "fine"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model's template does to a chat what its first message names."""
    folder: Path = tmp_path_factory.mktemp("hostile")
    with run_server(make_artifact(folder / "artifact", context=CONTEXT, template=TEMPLATE).path, folder) as server:
        yield server


def chat(content: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs("limits of memory") if name == "memory" else ()) for name in HOSTILE])
def test_a_hostile_template_is_an_error_and_nothing_else(hostile: Server, name: str):
    with unharmed(hostile):
        for path in (CHAT,) if name in ("loop", "power") else (CHAT, "/tokenize"):  # each takes its whole time
            error = error_of(hostile.post(chat(name), path))
            assert error["param"] == "messages" and "template" in error["message"]
            assert "root:" not in error["message"] and "<class" not in error["message"]
        assert hostile.post(chat("hello"), CHAT).status_code == 200


def test_others_do_not_wait_for_a_template(hostile: Server):
    """However many chats do: even what takes a thread, such as long texts, goes on. Chats whose clients left are not rendered."""
    with unharmed(hostile), ExitStack() as stack:
        for i in range(20):
            stack.enter_context(hostile.start_request({**chat("loop"), "stream": bool(i % 2)}, CHAT))
        for _ in range(3):
            assert hostile.complete(prompt="a" * (CONTEXT - 10) + "b", max_tokens=1)["usage"]["prompt_tokens"] == CONTEXT - 9
            assert error_of(hostile.post({"prompt": "a" * 5000}))["param"] == "prompt"
            assert hostile.post({"prompt": "a"}, "/tokenize").status_code == 200
    assert hostile.post(chat("hello"), CHAT).status_code == 200
