"""A team's server in a browser, without a mouse: in by name and password, and out again."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import expect
from test_ui_browser import PATIENCE, Server, Watched, browser, store, watched

from agentalign.config.project import Project
from agentalign.store.store import Store
from agentalign.ui.app import create_app

pytestmark = [pytest.mark.hard, pytest.mark.browser]
PASSWORD = "correct horse battery"


class TeamServer(Server):
    """With accounts."""

    def app(self) -> uvicorn.Config:
        return uvicorn.Config(create_app(self.project, team=True), port=self.port, log_level="error")


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[Server]:
    store.accounts.set("ada", "rater", PASSWORD)
    server = TeamServer(Project(tmp_path))
    yield server
    server.stop()


def test_somebody_logs_in_and_out_again(watched: Watched, server: Server) -> None:
    page = watched.page
    for _ in range(2):
        page.goto(server.url)
        page.wait_for_url("**/login")
        page.locator("#name").focus()
        page.keyboard.type("ada")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.locator(".bar .who")).to_have_text("ada", timeout=PATIENCE)
        page.wait_for_selector("#aa-shell .aa")
        page.wait_for_load_state("networkidle")  # Gradio's own scripts complain where they are left in the middle
        page.get_by_role("button", name="Log out").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/login")
