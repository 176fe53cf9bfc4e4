"""A headless browser without network for the tests of the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

OVERLAPS = (Path(__file__).parent / "overlaps.js").read_text()


@contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser; skips the test where playwright or a Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(
            f"no browser on this machine: install one of {', '.join(BROWSERS)} (Debian: apt-get install chromium)"
        )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, address: str, width: int = 1280, height: int = 800, scheme: str = "light") -> Iterator[Any]:
    """The page after its charts are drawn, without network; fails if it wrote to the console or asked for anything."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda request: trouble.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    assert trouble == []
    context.close()


def see_everything(page: Any) -> None:
    """Scrolls through the page, opens what is folded, and waits until all is drawn."""
    page.evaluate("document.querySelectorAll('main details').forEach((details) => { details.open = true; })")
    height = page.viewport_size["height"]
    position = 0
    while position < page.evaluate("document.documentElement.scrollHeight"):
        page.evaluate(f"scrollTo(0, {position})")
        page.wait_for_timeout(50)
        position += height // 2
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(200)
