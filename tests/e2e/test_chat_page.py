"""Chromium chats through the page with the real server and the real model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.browser import browser, opened_page
from tests.conftest import Compiled
from tests.runtime.server.harness import Server, run_server

__all__ = ["browser"]


@pytest.fixture(scope="module")
def server(smollm2: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(smollm2.path, tmp_path_factory.mktemp("page"), "--served-model-name", "smollm2") as server:
        yield server


def ask_without_end(route: Route) -> None:
    """Lets the answer go on past its end, so that it is still on its way when the test stops it, however long the test takes."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))


def test_a_chat_through_the_page(browser: Browser, server: Server) -> None:
    with opened_page(browser, f"{server.base_url}/") as page:
        expect(page.locator("#model")).to_have_text("smollm2")
        expect(page.locator("#figure-running .value")).to_have_text("0")
        page.get_by_role("button", name="Parameters").first.click()
        page.locator("[name=temperature]").first.fill("0")
        page.get_by_role("button", name="Close the parameters").click()
        question = page.get_by_role("textbox", name="Your message")

        question.fill("What is the capital of Japan?")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant .content").last).to_have_text("The capital of Japan is Tokyo.")
        expect(page.locator("#figure-running .value")).to_have_text("0")  # or the next answer's figures may be this one's

        page.route("**/v1/chat/completions", ask_without_end)
        question.fill("Tell me a very long story about a dome, with at least ten chapters.")
        page.keyboard.press("Enter")
        answer = page.locator(".assistant").last
        expect(answer).to_have_attribute("aria-busy", "true")
        expect(page.locator("#figure-running .value")).to_have_text("1")  # the figures move while it is said
        expect(page.locator("#figure-tokens .value")).to_have_text(re.compile(r"^[1-9]"))
        assert server.metrics()["num_requests_running"] == 1
        page.get_by_role("button", name="Stop").click()
        expect(answer.locator(".note")).to_have_text("Stopped")
        assert answer.locator(".content").inner_text()
        server.wait_idle()  # what the answer held is free
        expect(page.locator("#figure-running .value")).to_have_text("0")
        expect(page.locator("#figure-kv .value")).to_have_text("0 %")
        assert len(server.lines()) and {line["status"] for line in server.lines() if line.get("path") == "/v1/chat/completions"} == {
            200,
            499,
        }
