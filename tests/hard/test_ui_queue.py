"""The queue in a real browser, without a mouse: run after run is rated blind until nothing is left."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import pytest
from playwright.sync_api import Route, expect
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
    for number in range(2):
        expect(page.locator(".queue-bar")).to_contain_text(f"{number} done by me", timeout=PATIENCE)
        page.wait_for_selector(".timeline .entry")
        assert "desk@9" not in page.content()
        met.append(page.locator(".timeline").inner_text())
        page.keyboard.press("4")
        expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
        page.keyboard.press("Enter")
    expect(page.locator(".queue-bar")).to_contain_text("2 done by me", timeout=PATIENCE)
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


def test_keys_between_done_and_the_next_run_mark_nothing(watched: Watched, server: Server, store: Store) -> None:
    """Who is quicker than the server must not change the mark on the run that is done with."""
    runs = [make_run(answer=f"Answer {number}.", sample=number) for number in range(2)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    page = watched.page
    held: list[Route] = []
    page.route("**/done", lambda route: held.append(route))
    page.goto(f"{server.url}/#/queue")
    page.wait_for_selector(".timeline .entry")
    page.keyboard.press("4")
    expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
    with page.expect_request("**/done"):
        page.keyboard.press("Enter")
    page.keyboard.press("2")
    page.keyboard.press("u")
    expect(page.locator(".mark.chosen")).to_have_text("4")
    held[0].continue_()
    expect(page.locator(".queue-bar")).to_contain_text("1 done by me", timeout=PATIENCE)
    page.keyboard.press("5")
    expect(page.locator(".mark.chosen.saved")).to_have_text("5", timeout=PATIENCE)
    saved(page)
    assert [score.value for score in store.scores()] == [4, 5]


def test_a_next_run_that_does_not_come_leaves_nothing_to_mark(watched: Watched, server: Server, store: Store) -> None:
    runs = [make_run(answer=f"Answer {number}.", sample=number) for number in range(2)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    page = watched.page
    page.route("**/api/queue/next", lambda route: route.abort())
    page.goto(f"{server.url}/#/queue")
    expect(page.locator(".in-hand")).to_contain_text("The next one did not come", timeout=PATIENCE)
    expect(page.locator(".notice")).to_contain_text("does not answer")
    page.unroute("**/api/queue/next")
    page.keyboard.press("Enter")
    page.wait_for_selector(".timeline .entry")
    expect(page.locator(".notice")).to_be_hidden()


def test_a_run_whose_page_comes_late_takes_no_keys_of_the_list(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    held: list[Route] = []
    page.route(f"**/api/runs/{run.id}", lambda route: held.append(route))
    page.goto(server.url)
    page.wait_for_selector("table.runs tbody tr")
    page.keyboard.press("j")
    with page.expect_request(f"**/api/runs/{run.id}"):
        page.keyboard.press("Enter")
    page.get_by_role("link", name="Runs").click()
    page.wait_for_function("window.agentalignShown === 2")
    with page.expect_response(f"**/api/runs/{run.id}"):
        held[0].continue_()
    page.wait_for_timeout(500)  # it draws the run, which nobody sees
    page.keyboard.press("j")
    for key in ("x", "4", "1"):
        page.keyboard.press(key)
    expect(page.locator("tr.at input:checked")).to_have_count(1)
    assert "#/run/" not in page.url
    saved(page)
    assert store.scores() == []


def test_a_reload_in_the_queue_brings_the_run_in_hand_again(watched: Watched, server: Server, store: Store) -> None:
    runs = [make_run(answer=f"Answer {number}.", sample=number) for number in range(2)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    page = watched.page
    page.goto(f"{server.url}/#/queue")
    for number in range(2):
        expect(page.locator(".queue-bar")).to_contain_text(f"{number} done by me", timeout=PATIENCE)
        page.wait_for_selector(".timeline .entry")
        before = page.locator(".timeline").text_content()
        page.keyboard.press("j")
        page.wait_for_selector(".entry.at")
        page.reload()
        page.wait_for_selector(".queue-bar .lease")
        page.wait_for_selector(".timeline .entry")
        assert page.locator(".timeline").text_content() == before
        page.keyboard.press("4")
        expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
        page.keyboard.press("Enter")
    expect(page.locator(".aa")).to_contain_text("Nothing is left for you", timeout=PATIENCE)
