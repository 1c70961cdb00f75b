"""A headless Chromium for tests of the page: `from tests.browser import browser` gives the fixture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

TIMEOUT_MS = 60_000  # for what should take a few milliseconds, on a machine that does much else
expect.set_options(timeout=TIMEOUT_MS)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The installed browser's path; `make browser` installs one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser, for all of a module's tests."""
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(NAMES)}): make browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def opened_page(browser: Browser, url: str, width: int = 1100, height: int = 760, scheme: str = "light") -> Iterator[Page]:
    """A page with storage of its own, at `url`. Afterwards: it loaded nothing from elsewhere, and no script of it failed."""
    context: BrowserContext = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        requested: list[str] = []
        failures: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda message: failures.append(message.text) if is_failure(message.type, message.text) else None)
        page.goto(url)
        yield page
        assert [address for address in requested if not address.startswith((url, "data:"))] == []
        assert failures == []
    finally:
        context.close()


def is_failure(kind: str, text: str) -> bool:
    """True if a line of the console is the page's fault; Chromium itself writes one for each answer that is an error."""
    return kind in ("error", "warning") and not text.startswith("Failed to load resource")
