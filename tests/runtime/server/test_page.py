"""The chat page in a browser, against a server that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import browser, opened_page
from tests.runtime.server.fake_backend import KEY, Backend, error, running_backend

__all__ = ["browser"]
ATTACK = """<img src=x onerror="window.hit = 1"> <script>window.hit = 2</script> **<b onclick=x>bold</b>**

- <svg onload="window.hit = 3">

`<i>code</i>` [link](javascript:window.hit=4)

```html
</code></pre><script>window.hit = 5</script>
```
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with running_backend() as backend:
        yield backend
        backend.go_on.set()


@pytest.fixture
def page(browser: Browser, backend: Backend) -> Iterator[Page]:
    with opened_page(browser, backend.url) as page:
        expect(page.locator("#model")).to_have_text("smollm2")
        yield page


def ask(page: Page, question: str) -> Locator:
    """Sends the question; gives the answer's element."""
    page.get_by_role("textbox", name="Your message").fill(question)
    page.keyboard.press("Enter")
    return page.locator(".assistant").last


def sent(backend: Backend) -> list[tuple[str, str]]:
    """The messages of the last request."""
    return [(message["role"], message["content"]) for message in backend.requests[-1]["messages"]]


def test_an_answer_appears_piece_by_piece(page: Page, backend: Backend) -> None:
    backend.pieces, backend.held_from = ["One", " two", " three"], 2
    answer = ask(page, "Count.")
    expect(answer.locator(".content")).to_have_text("One two")
    expect(answer).to_have_attribute("aria-busy", "true")
    backend.go_on.set()
    expect(answer.locator(".content")).to_have_text("One two three")
    expect(answer.locator(".note")).to_contain_text("3 tokens")
    expect(answer.locator(".note")).to_contain_text("prompt of 12, 8 cached")
    expect(answer).to_have_attribute("aria-busy", "false")
    expect(page.locator("#said")).to_have_text("Answered")
    request = backend.requests[0]
    assert request["model"] == "smollm2" and request["stream"] is True and request["stream_options"] == {"include_usage": True}
    assert set(request) == {"model", "messages", "stream", "stream_options"}  # what the user left alone is the server's to choose


@pytest.mark.parametrize("way", ["key", "button"])
def test_a_stop_keeps_what_came_and_the_server_sees_it(page: Page, backend: Backend, way: str) -> None:
    backend.pieces, backend.held_from = ["One", " two", " three"], 2
    answer = ask(page, "Count.")
    expect(answer.locator(".content")).to_have_text("One two")
    if way == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(answer.locator(".note")).to_have_text("Stopped")
    assert backend.went_away.wait(20)
    expect(answer.locator(".content")).to_have_text("One two")
    backend.pieces = ["Yes"]
    expect(ask(page, "Go on.").locator(".content")).to_have_text("Yes")
    assert sent(backend) == [("user", "Count."), ("assistant", "One two"), ("user", "Go on.")]


def test_the_figures_move(page: Page, backend: Backend) -> None:
    expect(page.locator("#figure-running .value")).to_have_text("0")
    backend.pieces, backend.held_from = ["x"] * 100, 99
    ask(page, "Count.")
    expect(page.locator("#figure-running .value")).to_have_text("1")
    expect(page.locator("#figure-kv .value")).to_have_text("25 %")
    expect(page.locator("#figure-waiting .value")).to_have_text("3")
    assert max(heights(page, "tokens")) > 0  # a line that rises: tokens came
    backend.go_on.set()
    expect(page.locator("#figure-running .value")).to_have_text("0")
    expect(page.locator("#figure-kv .value")).to_have_text("0 %")


def heights(page: Page, name: str) -> list[float]:
    """What a figure's line shows, upwards from its lowest point."""
    points = page.locator(f"#figure-{name} .line").get_attribute("points").split()
    ordinates = [float(point.split(",")[1]) for point in points]
    return [max(ordinates) - y for y in ordinates]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((429, "too many requests", {"Retry-After": "7"}), "Try again in 7 seconds"),
        ((503, "loading", {}), "isn't ready"),
        ((400, "top_p must be at most 1", {}), "refused the request: top_p must be at most 1"),
        ((500, "out of luck", {}), "failed: out of luck"),
    ],
)
def test_a_refusal_is_said_in_the_conversation_and_can_be_tried_again(page: Page, backend: Backend, refusal: tuple, words: str) -> None:
    backend.refusal = error(*refusal)
    answer = ask(page, "Hello?")
    expect(answer.get_by_role("alert")).to_contain_text(words)
    backend.refusal = None
    answer.get_by_role("button", name="Try again").click()
    expect(page.locator(".assistant .content")).to_have_text("Hello there")
    expect(page.locator(".assistant .error")).to_be_empty()
    assert sent(backend) == [("user", "Hello?")]


def test_an_answer_that_breaks_off_is_kept_and_marked(page: Page, backend: Backend) -> None:
    backend.breaks_off = True
    answer = ask(page, "Hello?")
    expect(answer.get_by_role("alert")).to_contain_text("ended before it was complete")
    expect(answer.locator(".content")).to_have_text("Hello there")
    backend.inner_error = "the engine died"
    expect(ask(page, "And now?").get_by_role("alert")).to_contain_text("The server failed: the engine died")


def test_a_server_that_is_gone_is_noticed_and_found_again(page: Page, backend: Backend) -> None:
    page.context.set_offline(True)
    answer = ask(page, "Hello?")
    expect(answer.get_by_role("alert")).to_contain_text("can't be reached")
    expect(page.locator("#model")).to_have_text("not reachable")
    page.context.set_offline(False)
    expect(page.locator("#model")).to_have_text("smollm2")
    expect(ask(page, "Hello again?").locator(".content")).to_have_text("Hello there")
    assert sent(backend) == [("user", "Hello again?")]  # a question without its answer isn't sent: sides take turns


def test_a_server_with_a_key_asks_for_it(browser: Browser, backend: Backend) -> None:
    backend.wants_key = True
    with opened_page(browser, backend.url) as page:
        expect(page.locator("#empty-trouble")).to_contain_text("asks for an API key")
        answer = ask(page, "Hello?")
        answer.get_by_label("API key").fill("wrong")
        answer.get_by_role("button", name="Use this key").click()
        expect(answer.get_by_role("alert")).to_contain_text("did not accept this API key")
        answer.get_by_label("API key").fill(KEY)
        answer.get_by_role("button", name="Use this key").click()
        expect(answer.locator(".content")).to_have_text("Hello there")
        expect(page.locator("#model")).to_have_text("smollm2")
        expect(page.locator("#figure-running .value")).to_have_text("0")
        assert KEY not in json.dumps(page.evaluate("() => ({...localStorage})"))


def test_what_a_model_says_is_never_markup(page: Page, backend: Backend) -> None:
    backend.pieces = [ATTACK[i : i + 3] for i in range(0, len(ATTACK), 3)]
    answer = ask(page, "<img src=x onerror='window.hit = 6'>")
    expect(answer.locator(".note")).to_contain_text("tokens")
    assert page.evaluate("window.hit") is None
    assert page.locator("#messages :is(img, script, svg, b, i, a)").count() == 0
    expect(answer.locator("strong")).to_have_text("<b onclick=x>bold</b>")
    expect(answer.locator("p code")).to_have_text("<i>code</i>")
    expect(answer.locator("pre")).to_have_text("</code></pre><script>window.hit = 5</script>")
    expect(page.locator(".user .content")).to_have_text("<img src=x onerror='window.hit = 6'>")


def test_questions_are_edited_asked_anew_and_kept(page: Page, backend: Backend) -> None:
    box = page.get_by_role("textbox", name="Your message")
    box.fill("Two")
    box.press("Shift+Enter")
    box.type("lines")
    box.press("Enter")
    expect(page.locator(".user .content")).to_have_text("Two\nlines")
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    backend.pieces = ["Again"]
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".assistant .content")).to_have_text("Again")
    page.get_by_role("button", name="Edit").click()
    expect(box).to_have_value("Two\nlines")
    assert ask(page, "Better").count() == 1
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    assert sent(backend) == [("user", "Better")]
    page.reload()
    expect(page.locator(".user .content")).to_have_text("Better")
    expect(page.locator(".assistant .content")).to_have_text("Again")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    page.reload()
    expect(page.locator("#empty")).to_be_visible()


def test_parameters_are_sent_checked_and_kept(page: Page, backend: Backend) -> None:
    page.get_by_role("button", name="Parameters", exact=True).click()
    page.get_by_label("System prompt").fill("Be brief.")
    values = {"Temperature": "0.5", "Top p": "0.9", "Top k": "40", "Max tokens": "64", "Seed": "7"}
    for label, value in values.items():
        page.get_by_label(label).fill(value)
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    page.reload()
    expect(ask(page, "Hello?").locator(".note")).to_contain_text("tokens")
    names = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 64, "seed": 7}
    assert {name: backend.requests[-1].get(name) for name in names} == names
    assert sent(backend) == [("system", "Be brief."), ("user", "Hello?")]
    page.get_by_role("button", name="Parameters", exact=True).click()
    page.get_by_label("Top p").fill("3")
    ask(page, "Hello?")
    assert len(backend.requests) == 1 and page.get_by_label("Top p").evaluate("input => !input.checkValidity()")
    page.get_by_role("button", name="Back to the defaults").click()
    expect(page.get_by_label("Top p")).to_have_value("")


def test_a_copy_is_the_text_that_the_model_wrote(page: Page, backend: Backend) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    backend.pieces = ["**Bold**", "\n\n```\nx = 1\n```"]
    answer = ask(page, "Hello?")
    answer.locator(".code").get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1"
    answer.locator(".foot").get_by_role("button", name="Copy").click()
    expect(answer.locator(".foot").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "**Bold**\n\n```\nx = 1\n```"


def test_a_phone_shows_all_of_it(browser: Browser, backend: Backend) -> None:
    with opened_page(browser, backend.url, width=390, height=844, scheme="dark") as page:
        backend.pieces = ["```\n" + "long " * 100 + "\n```\n", "word" * 200]
        expect(ask(page, "x" * 300).locator(".note")).to_contain_text("tokens")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('#scroller').scrollWidth <= 390")
        for name in ("New chat", "Parameters", "Send"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Parameters", exact=True).click()
        expect(page.get_by_label("System prompt")).to_be_in_viewport(ratio=1)


def test_events_come_out_whole_however_they_are_cut(page: Page) -> None:
    stream = 'data: {"a": 1}\r\n\r\n: a comment\nevent: x\ndata:two\ndata: lines\n\ndata: ü\r\r\ndata: cut off'
    script = """async (text) => {
      const { readEvents } = await import("/page/sse.js");
      const bytes = new TextEncoder().encode(text);
      const results = new Set();
      for (let size = 1; size <= bytes.length; size++) {
        const pieces = [];
        for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
        const body = new ReadableStream({ start: (way) => (pieces.forEach((piece) => way.enqueue(piece)), way.close()) });
        const events = [];
        for await (const data of readEvents(body)) events.push(data);
        results.add(JSON.stringify(events));
      }
      return [...results];
    }"""
    assert [json.loads(result) for result in page.evaluate(script, stream)] == [['{"a": 1}', "two\nlines", "ü"]]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b *c*** d", "<p>a <strong>b <em>c</em></strong> d</p>"),
        ("2 * 3 * 4, **open, `open", "<p>2 * 3 * 4, **open, `open</p>"),
        ("``a `b` c``", "<p><code>a `b` c</code></p>"),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("## Title", "<h4>Title</h4>"),
        ("- a\n  - b\n- c", "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>"),
        ("3. a\n\n   more\n4. b", '<ol start="3"><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>'),
        ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
        ("***", "<hr>"),
    ],
)
def test_markdown(shared_page: Page, text: str, html: str) -> None:
    script = """async (text) => {
      const { showMarkdown } = await import("/page/markdown.js");
      const whole = document.createElement("div");
      showMarkdown(whole, text);
      const grown = document.createElement("div");
      for (let end = 1; end <= text.length; end++) showMarkdown(grown, text.slice(0, end));
      return [whole.innerHTML, grown.innerHTML];
    }"""
    assert shared_page.evaluate(script, text) == [html, html]


@pytest.mark.parametrize("text", ["*" * 20000, "**a " * 5000, "`" * 20000, "> " * 10000, "- " * 10000, "```" + "a" * 20000, "1. " * 5000])
def test_markdown_takes_hostile_texts_in_its_stride(shared_page: Page, text: str) -> None:
    script = """async (text) => {
      const { showMarkdown } = await import("/page/markdown.js");
      const whole = document.createElement("div");
      showMarkdown(whole, text);
      return whole.textContent.length > 0 || whole.querySelector("hr, code") !== null;
    }"""
    assert shared_page.evaluate(script, text)


@pytest.fixture(scope="module")
def shared_page(browser: Browser) -> Iterator[Page]:
    """A page for tests that only call its functions."""
    with running_backend() as backend, opened_page(browser, backend.url) as page:
        yield page


def test_files_are_served_with_their_types_and_asked_for_anew(backend: Backend) -> None:
    with httpx.Client(base_url=backend.url) as client:
        index = client.get("/")
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in index.headers["content-security-policy"] and index.headers["cache-control"] == "no-cache"
        assert client.head("/").headers["content-length"] == str(len(index.content))
        assert client.get("/page/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
        again = client.get("/", headers={"If-None-Match": f'"other", W/{index.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["..%2fpage_routes.py", "%2e%2e/app.py", "nothing.js", "%2fetc%2fpasswd", "app.js%00", "page/app.js"])
def test_nothing_else_is_served(backend: Backend, name: str) -> None:
    with httpx.Client(base_url=backend.url) as client:
        assert client.get(f"/page/{name}").status_code == 404


def test_each_file_of_the_page_is_small_and_calls_nobody_else() -> None:
    files = list(resources.files("cupola.runtime.server").joinpath("page").iterdir())
    assert {"index.html", "style.css", "app.js"} <= {file.name for file in files}
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert len(text.splitlines()) <= 400
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text, file.name
