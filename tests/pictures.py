"""The pictures of the chat page in docs/, taken in a headless Chromium: `make pictures`. The answers are the script's own."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import find_chromium, opened_page
from tests.runtime.server.fake_backend import Backend, running_backend

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {"wide": (1200, 760), "phone": (390, 760)}
EARLIER = [
    "How do I read a file line by line in Python?",
    "A packing list for three days",
    "Translate “good evening” into five languages",
]
QUESTION = "Why does a dome not fall in?"
THOUGHTS = ["The weight of each ring ", "has to go somewhere: ", "the rings above are pressed together, ", "those below are pulled apart."]
ANSWER = """Because each ring of it is an **arch that closes on itself**:

1. Its weight presses the stones of a ring *together*, so that none of them can slip inwards past the others.
2. Further down, the rings are pulled apart. A chain, or the weight of thick walls, holds them.

The span and the rise of a spherical dome give its radius:

```python
def radius(span, rise):
    return (span**2 / 4 + rise**2) / (2 * rise)
```"""
PIECE = 5  # characters


def main() -> None:
    """Takes the four pictures."""
    with sync_playwright() as playwright, running_backend() as backend:
        backend.num_waiting = 0
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                take(chromium, backend, DOCS / f"chat-{size}-{scheme}.png", width, height, scheme)
        chromium.close()


def take(browser: Browser, backend: Backend, file: Path, width: int, height: int, scheme: str) -> None:
    """A conversation with its answer almost there, beside earlier ones, as a PNG."""
    backend.thoughts, backend.held_from, backend.pause = [], None, 0
    with opened_page(browser, backend.url, width, height, scheme) as page:
        for question in EARLIER:
            backend.pieces = ["Gladly."]
            page.get_by_role("button", name="New chat").click(force=True)
            ask(page, question)
            expect(page.locator(".assistant .note")).to_contain_text("tokens")
        page.get_by_role("button", name="New chat").click()
        backend.thoughts, backend.pause = THOUGHTS, 0.02
        backend.pieces = [ANSWER[i : i + PIECE] for i in range(0, len(ANSWER), PIECE)]
        ask(page, QUESTION)
        expect(page.locator(".assistant .note")).to_contain_text("tokens")
        page.mouse.move(0, 0)
        page.evaluate("() => document.activeElement.blur()")
        page.evaluate("() => (document.querySelector('#scroller').scrollTop = 0)")
        file.write_bytes(page.screenshot())


def ask(page: Page, question: str) -> None:
    """Sends a question."""
    page.get_by_role("textbox", name="Your message").fill(question)
    page.keyboard.press("Enter")


if __name__ == "__main__":
    main()
