"""Fixtures of tests that drive a real browser: the browser, and one page of a project that is watched."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from agentalign.config.project import Project
from agentalign.ui.screenshots.make import CHROMIUM_FLAGS, serving

PATIENCE = 180_000


def browser_fixture() -> Any:
    """A browser of the module."""

    @pytest.fixture(scope="module")
    def browser(chromium: str) -> Iterator[Browser]:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            yield browser
            browser.close()

    return browser


def page_fixture(rater: str = "rater") -> Any:
    """The page of the module's `project`, with the person at it; it may neither break nor ask another server for anything."""

    @pytest.fixture(scope="module")
    def page(chromium: str, project: Project) -> Iterator[Page]:
        with sync_playwright() as playwright, serving(project, rater) as url:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            page = browser.new_context(viewport={"width": 1280, "height": 720}, base_url=url).new_page()
            faults: list[str] = []
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda request: faults.append(request.url) if not request.url.startswith((url, "data:", "blob:")) else None)
            page.set_default_timeout(PATIENCE)
            yield page
            browser.close()
            assert faults == [], "a script error, or a request to another server"

    return page
