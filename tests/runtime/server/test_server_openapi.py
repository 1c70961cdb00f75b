"""The server's OpenAPI document is true, whatever schemathesis makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.runtime.server.harness import PATIENCE, Server, run_server, unharmed
from tests.runtime.tiny_artifact import make_artifact

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STORED = "/v1/responses/{response_id}"
REFUSED = ("/v1/embeddings", "/v1/models/{model}", STORED, f"{STORED}/input_items", f"{STORED}/cancel")  # whatever is asked
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/apply-template": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/v1/responses/input_tokens": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
NUM_EXAMPLES = {"/v1/completions": 40, "/v1/chat/completions": 40}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose longest answer is short."""
    folder: Path = tmp_path_factory.mktemp("short")
    with run_server(make_artifact(folder / "artifact", context=128).path, folder) as server:
        yield server


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_operation(short: Server, mode: schemathesis.GenerationMode):
    schema = schemathesis.openapi.from_url(f"{short.base_url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/metrics", "/health"} <= {operation.path for operation in operations}
    with unharmed(short), requests.Session() as session:
        session.trust_env = False
        for operation in operations:
            if mode is schemathesis.GenerationMode.POSITIVE or list(operation.body):
                statuses = try_operation(operation, mode, session)
                assert mode is schemathesis.GenerationMode.NEGATIVE or 200 in statuses or operation.path in REFUSED, operation.path


def try_operation(operation: Any, mode: schemathesis.GenerationMode, session: requests.Session) -> Counter[int]:
    """Sends what the document allows, or what it does not, the same on every run. Returns the answers' statuses."""
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    @settings(
        max_examples=NUM_EXAMPLES.get(operation.path, 10),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case, data: st.DataObject) -> None:
        if isinstance(case.body, dict) and data.draw(st.integers(0, 3)):  # with all fields at once, some are always wrong
            fields = data.draw(st.sets(st.sampled_from(sorted(case.body)), max_size=2)) if case.body else ()
            case.body = GOOD.get(operation.path, {}) | {field: case.body[field] for field in fields}
        statuses[case.call_and_validate(session=session, checks=CHECKS, timeout=PATIENCE).status_code] += 1

    send()
    return statuses


def test_the_document_names_what_there_is(short: Server):
    document = short.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"200", "4XX", "5XX"} <= set(operation["responses"]), (method, path)
            assert "422" not in operation["responses"]
            assert operation["description"]
