"""Debian's chromium for tests: without it they skip, or fail where CI is set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    if CHROMIUM is None:
        _missing("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


class Watched:
    """A page that must not write to the console, ask for anything beyond its own file, or open a dialog."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, **options: Any) -> None:
        self.wrong: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.route("**/*", self._route)
        self.file, self.page = file.resolve().as_uri(), context.new_page()
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.goto(self.file)

    def _route(self, route: Any) -> None:
        if route.request.url.split("#")[0] == self.file:
            route.continue_()
        else:
            self.wrong.append(f"request: {route.request.url}")
            route.abort()

    def close(self) -> None:
        """Close the page; nothing was wrong with it."""
        self.page.context.close()
        assert self.wrong == []
