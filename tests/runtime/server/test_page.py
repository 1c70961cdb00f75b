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
    sampling = {name: request[name] for name in set(request) - {"model", "messages", "stream", "stream_options"}}
    assert sampling == {"temperature": 0.7, "min_p": 0.05, "max_tokens": 2048}  # the model's own configuration says nothing of it


@pytest.mark.parametrize("said", [{"temperature": 0.3}, None])
def test_what_the_model_says_of_sampling_holds(browser: Browser, backend: Backend, said: dict | None) -> None:
    backend.generation_config = said
    with opened_page(browser, backend.url) as page:
        expect(ask(page, "Hello?").locator(".note")).to_contain_text("tokens")
        # The model is named as soon as the page knows it.
        assert set(backend.requests[0]) | {"model"} == {"model", "messages", "stream", "stream_options", "max_tokens"}


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
    assert backend.went_away.wait(60)
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
    """The heights of a figure's line, upwards from its lowest point."""
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
    page.locator(".user").get_by_role("button", name="Edit").click()
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
    fields = [
        ("Temperature", "temperature", 0.5), ("Top p", "top_p", 0.9), ("Top k", "top_k", 40), ("Min p", "min_p", 0.1), ("Seed", "seed", 7),
        ("Repetition penalty", "repetition_penalty", 1.1), ("Presence penalty", "presence_penalty", -0.5),
        ("Frequency penalty", "frequency_penalty", 0.25), ("Max tokens", "max_tokens", 64),
    ]  # fmt: skip
    for label, _, value in fields:
        page.get_by_label(label).fill(str(value))
    page.get_by_label("Thinking").select_option("off")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    page.reload()
    expect(ask(page, "Hello?").locator(".note")).to_contain_text("tokens")
    names = {"chat_template_kwargs": {"enable_thinking": False}, **{name: value for _, name, value in fields}}
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


def keep_conversations(page: Page, backend: Backend, questions: dict[str, str]) -> None:
    """A conversation for each question, with its answer; the last one is open."""
    for question, answer in questions.items():
        backend.pieces = [answer]
        page.get_by_role("button", name="New chat").click(force=True)
        expect(ask(page, question).locator(".note")).to_contain_text("tokens")


def titles(page: Page) -> Locator:
    return page.locator("#conversations .title")


def test_conversations_are_listed_searched_and_opened(page: Page, backend: Backend) -> None:
    ask(page, "Which birds dive?")
    expect(page.locator(".assistant .note")).to_contain_text("tokens")
    keep_conversations(page, backend, {"How do domes stand?": "By thrust.", "And " + "very " * 30 + "long?": "Yes."})
    expect(titles(page)).to_have_count(3)
    expect(titles(page).nth(0)).to_have_text("And very very very very very very very very very very very…")
    expect(titles(page).nth(0)).to_have_attribute("aria-current", "true")
    search = page.get_by_label("Search the conversations")
    search.fill("THRUST domes")  # words of a question and of an answer
    expect(titles(page)).to_have_text(["How do domes stand?"])
    titles(page).first.click()
    expect(page.locator(".user .content")).to_have_text("How do domes stand?")
    expect(page).to_have_title("How do domes stand? – cupola")
    search.fill("nowhere")
    expect(page.locator("#no-conversations")).to_have_text("Nothing found.")
    search.fill("")
    page.reload()
    expect(page.locator(".assistant .content")).to_have_text("By thrust.")  # the address names the one that is open
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.locator("#empty")).to_be_visible()
    expect(titles(page)).to_have_count(3)


def test_conversations_are_renamed_exported_and_deleted(page: Page, backend: Backend) -> None:
    keep_conversations(page, backend, {"Which birds dive?": "Some *ducks*.", "How do domes stand?": "By thrust."})
    titles(page).nth(1).hover()
    page.get_by_role("button", name="Rename “Which birds dive?”").click()
    page.get_by_label("New name").fill("Birds")
    page.keyboard.press("Enter")
    expect(titles(page)).to_have_text(["How do domes stand?", "Birds"])
    titles(page).nth(1).hover()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export “Birds”").click()
    assert download.value.suggested_filename == "Birds.md"
    markdown = download.value.path().read_text(encoding="utf-8")
    assert markdown == "# Birds\n\n## You\n\nWhich birds dive?\n\n## Answer\n\nSome *ducks*.\n"
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    exported = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert [(each["name"], each["messages"][1]["content"]) for each in exported] == [("", "By thrust."), ("Birds", "Some *ducks*.")]
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete “How do domes stand?”").click()
    expect(titles(page)).to_have_text(["Birds"])
    expect(page.locator("#empty")).to_be_visible()
    page.reload()
    expect(titles(page)).to_have_text(["Birds"])


def test_an_answer_goes_on_while_another_conversation_is_read(page: Page, backend: Backend) -> None:
    keep_conversations(page, backend, {"First?": "One."})
    page.get_by_role("button", name="New chat").click()
    backend.pieces, backend.held_from = ["Two", " three"], 1
    expect(ask(page, "Second?").locator(".content")).to_have_text("Two")
    titles(page).nth(1).click()
    expect(page.locator(".assistant .content")).to_have_text("One.")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    expect(page.locator(".running .title")).to_have_text("Second?")
    backend.go_on.set()
    expect(page.locator(".running")).to_have_count(0)
    titles(page).filter(has_text="Second?").click()
    expect(page.locator(".assistant .content")).to_have_text("Two three")


def test_the_one_conversation_of_earlier_versions_is_taken_over(page: Page) -> None:
    messages = [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "Yes."}]
    page.evaluate("messages => localStorage.setItem('cupola.conversation', JSON.stringify(messages))", messages)
    page.reload()
    expect(titles(page)).to_have_text(["Old?"])
    page.reload()
    expect(titles(page)).to_have_count(1)


def test_a_browser_without_room_says_so(page: Page, backend: Backend) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }")
    expect(ask(page, "Hello?").locator(".content")).to_have_text("Hello there")
    expect(page.locator("#not-kept")).to_contain_text("no more room")


def test_thinking_is_folded(page: Page, backend: Backend) -> None:
    backend.thoughts, backend.pieces, backend.held_from = ["Let me", " see."], ["42"], 2
    answer = ask(page, "Well?")
    expect(answer.locator("summary")).to_have_text("Thinking…")
    expect(answer.locator(".thought")).to_be_hidden()
    answer.locator("summary").click()
    expect(answer.locator(".thought")).to_have_text("Let me see.")
    backend.go_on.set()
    expect(answer.locator(".content")).to_have_text("42")
    expect(answer.locator("summary")).to_contain_text("Thought for")
    backend.thoughts, backend.held_from = [], None
    expect(ask(page, "Sure?").locator(".note")).to_contain_text("tokens")
    assert sent(backend) == [("user", "Well?"), ("assistant", "42"), ("user", "Sure?")]  # thoughts are not sent back
    expect(page.locator(".assistant").last.locator(".thinking")).to_be_hidden()
    page.reload()
    expect(page.locator(".assistant").first.locator("summary")).to_contain_text("Thought for")


def test_an_answer_is_continued(page: Page, backend: Backend) -> None:
    backend.pieces, backend.finish_reason = ["One, two, "], "length"
    answer = ask(page, "Count.")
    expect(answer.locator(".note")).to_contain_text("Ended at the limit of tokens")
    backend.pieces, backend.finish_reason = ["three."], "stop"
    answer.get_by_role("button", name="Continue").click()
    expect(answer.locator(".content")).to_have_text("One, two, three.")
    assert sent(backend) == [("user", "Count."), ("assistant", "One, two, ")]
    request = backend.requests[-1]
    assert (request["continue_final_message"], request["add_generation_prompt"]) == (True, False)
    page.reload()
    expect(page.locator(".assistant .content")).to_have_text("One, two, three.")


def test_older_turns_are_edited(page: Page, backend: Backend) -> None:
    for question, answer in (("First?", "One."), ("Second?", "Two.")):
        backend.pieces = [answer]
        expect(ask(page, question).locator(".note")).to_contain_text("tokens")
    first = page.locator(".assistant").first
    first.get_by_role("button", name="Edit").click()
    first.get_by_label("The answer").fill("Uno.")
    first.get_by_role("button", name="Save").click()
    expect(first.locator(".content")).to_have_text("Uno.")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".assistant .note").last).to_contain_text("tokens")
    assert sent(backend) == [("user", "First?"), ("assistant", "Uno."), ("user", "Second?")]
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    expect(page.locator("#editing")).to_contain_text("replaces all that comes after it")
    expect(ask(page, "Other?").locator(".note")).to_contain_text("tokens")
    expect(page.locator(".message")).to_have_count(2)
    assert sent(backend) == [("user", "Other?")]


def test_a_stop_before_the_first_word_leaves_no_empty_bubble(page: Page, backend: Backend) -> None:
    backend.held_from = 0
    answer = ask(page, "Hello?")
    page.keyboard.press("Escape")
    expect(answer.locator(".note")).to_have_text("Stopped before the answer began")
    assert answer.locator(".content").evaluate("node => node.getBoundingClientRect().height") == 0
    for name in ("Copy", "Edit", "Continue"):
        expect(answer.get_by_role("button", name=name)).to_be_hidden()
    expect(answer.get_by_role("button", name="Regenerate")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1200, 800)])
def test_all_parts_have_their_place(browser: Browser, backend: Backend, width: int, height: int, scheme: str) -> None:
    with opened_page(browser, backend.url, width, height, scheme) as page:
        expect(page.locator("#model")).to_have_text("smollm2")
        backend.thoughts = ["Hm. " * 60]
        keep_conversations(page, backend, {"x" * 200: "Yes.", "Which?": "This, " * 50})
        page.locator("summary").click()
        if width == 390:
            expect(page.locator("#conversations")).to_be_hidden()
            page.get_by_role("button", name="Conversations", exact=True).click()
        for node in (page.locator("#conversations"), page.get_by_label("Search the conversations"), titles(page).first):
            expect(node).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Parameters", exact=True).click(force=True) if width == 1200 else page.keyboard.press("Escape")
        if width == 390:
            expect(page.locator("#conversations")).to_be_hidden()
            page.get_by_role("button", name="Parameters", exact=True).click()
        expect(page.get_by_label("Temperature")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.querySelectorAll('.side, #scroller')].every(node => node.scrollWidth <= node.clientWidth)")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(19, 23, 22)") is (scheme == "dark")


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
