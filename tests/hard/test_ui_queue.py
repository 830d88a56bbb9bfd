"""The queue in a real browser, without a mouse: run after run is rated blind until nothing is left."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import pytest
from playwright.sync_api import expect
from small_desk import make_run
from test_ui_browser import PATIENCE, Server, Watched, browser, saved, server, store, watched

from agentalign.store.store import Store

pytestmark = [pytest.mark.hard, pytest.mark.browser]


def test_a_queue_is_drained_by_keyboard_and_tells_nothing_of_where_its_runs_came_from(
    watched: Watched, server: Server, store: Store
) -> None:
    runs = [make_run(answer=f"Answer {number}.", policy="desk@9", sample=number) for number in range(3)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    page, refused = watched.page, []
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.goto(f"{server.url}/#/queue")
    met = []
    for _ in range(2):
        page.wait_for_selector(".timeline .entry")
        assert "desk@9" not in page.content()
        met.append(page.locator(".timeline").inner_text())
        page.keyboard.press("4")
        expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
        page.keyboard.press("Enter")
        page.wait_for_function("(before) => document.querySelector('.timeline')?.innerText !== before", arg=met[-1])
    page.wait_for_selector(".timeline .entry")
    page.keyboard.press("s")
    page.keyboard.type("I know the customer")
    page.keyboard.press("Enter")
    expect(page.locator(".aa")).to_contain_text("Nothing is left for you", timeout=PATIENCE)
    saved(page)
    marks = [(score.criterion, score.value) for score in store.scores()]
    assert marks == [("tone@1", 4), ("tone@1", 4)]
    assert len({score.trajectory for score in store.scores()}) == len(set(met)) == 2
    items = {item.trajectory: item for item in store.queue_items.items(None, None, 10)}
    assert sorted(item.done for item in items.values()) == [0, 1, 1]
    assert [skip for item in items.values() for skip in item.skips if "I know the customer" in skip]
    assert refused == []
