"""What a rater's key costs the browser, in requests, nodes and layouts: counts hold on any machine, milliseconds do not."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

from typing import Any

import pytest
from playwright.sync_api import Page, expect
from small_desk import make_run
from test_ui_browser import PATIENCE, Server, Watched, browser, saved, server, store, watched

from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.store.store import Store
from agentalign.ui.listing import PAGE

pytestmark = [pytest.mark.hard, pytest.mark.browser]

N_STEPS = 500

RESOURCES = """() => performance.getEntriesByType("resource").map((entry) => ({
  path: new URL(entry.name).pathname, began: entry.startTime, ended: entry.responseEnd, bytes: entry.transferSize,
}))"""

SEEN = """() => [...document.querySelectorAll(".timeline .entry > header")]
  .filter((head) => head.checkVisibility({ contentVisibilityAuto: true })).length"""

# Every node that is added or removed below an element while something is done.
WATCH = """(selector) => {
  window.changed = 0;
  const count = (one) => (window.changed += one.addedNodes.length + one.removedNodes.length);
  const watch = new MutationObserver((found) => found.forEach(count));
  watch.observe(document.querySelector(selector), { childList: true, subtree: true });
}"""


def long_run(sample: int = 0) -> Trajectory:
    said = [Message(role="user", content="Go on.")]
    for step in range(N_STEPS):
        call = ToolCall(id=f"c{step}", name="look", arguments=f'{{"order": "W{step}"}}')
        said += [Message(role="assistant", content=f"Step {step}.", tool_calls=(call,))]
        said += [Message(role="tool", content="a line\n" * 20, tool_call_id=call.id, name="look")]
    return Trajectory(taskset="desk", messages=tuple(said), origin=Origin(kind="rollout", reference="base", sample=sample))


def resources(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(RESOURCES)
    return found


def test_the_first_screen_waits_for_nothing_of_gradios_and_a_second_load_for_no_script_again(
    watched: Watched, server: Server, store: Store
) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/run/{run.id}")
    page.wait_for_selector(".timeline .entry")
    page.wait_for_selector("#aa-shell .aa .timeline .entry")  # Gradio is there too, and the page stands in its shell
    assert page.locator(".aa:visible").count() == 1
    found = resources(page)
    ours = [one for one in found if one["path"].startswith("/ui/") and one["path"].endswith((".js", ".css"))]
    (drawn_from,) = [one for one in found if one["path"] == f"/api/runs/{run.id}"]
    gradios = [one for one in found if one["path"].startswith("/assets/") and one["path"].endswith(".js")]
    assert len(ours) <= 20 and gradios
    assert min(one["began"] for one in gradios) >= drawn_from["ended"]
    # No script is found out about by reading another: all of ours are asked for before the first of them has run.
    assert max(one["began"] for one in ours) <= drawn_from["began"]
    page.goto("about:blank")
    page.goto(f"{server.url}/run/{run.id}")
    page.wait_for_selector("#aa-shell .aa .timeline .entry")
    again = [one for one in resources(page) if one["path"].startswith(("/ui/", "/assets/")) and one["bytes"]]
    assert [one["path"] for one in again] == []


def test_a_long_run_costs_few_nodes_and_only_what_is_seen_is_laid_out(watched: Watched, server: Server, store: Store) -> None:
    run = long_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/run/{run.id}")
    page.wait_for_selector(".timeline .entry")
    assert page.locator(".timeline .entry").count() == N_STEPS + 1
    assert page.evaluate("() => document.querySelectorAll('.timeline *').length") <= 12 * (N_STEPS + 1)
    assert 0 < page.evaluate(SEEN) <= N_STEPS / 5
    # A mark on the run touches no row of it, a mark on a step one row.
    page.evaluate(WATCH, ".timeline")
    page.keyboard.press("4")
    expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
    assert page.evaluate("() => window.changed") == 0
    page.keyboard.press("j")
    page.keyboard.press("1")
    saved(page)
    expect(page.locator('.entry[data-step="0"] .chip.mine.saved')).to_have_text("1", timeout=PATIENCE)
    assert 0 < page.evaluate("() => window.changed") <= 6
    # The last step is reached, though it was never laid out before.
    page.goto(f"{server.url}/#/run/{run.id}?s={N_STEPS - 1}")
    expect(page.locator(f'.entry[data-step="{N_STEPS - 1}"]')).to_be_in_viewport(timeout=PATIENCE)


def test_a_key_in_the_queue_is_one_request(watched: Watched, server: Server, store: Store) -> None:
    runs = [make_run(answer=f"Answer {number}.", sample=number) for number in range(3)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    page = watched.page
    page.goto(f"{server.url}/#/queue")
    page.wait_for_selector(".timeline .entry")
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(f"{request.method} {request.url.removeprefix(server.url)}"))
    before = page.locator(".timeline").inner_text()
    page.keyboard.press("4")
    expect(page.locator(".mark.chosen.saved")).to_have_text("4", timeout=PATIENCE)
    page.keyboard.press("Enter")
    page.wait_for_function("(before) => document.querySelector('.timeline')?.innerText !== before", arg=before)
    page.wait_for_load_state("networkidle")
    told = [one for one in asked if not one.startswith("GET /ui/") and not one.endswith("/beat")]
    assert told[0] == "POST /api/scores" and told[1].startswith("POST /api/queue/") and told[1].endswith("/done")
    # Then the next run stands, and what is read about it beside is read after it is shown.
    assert [one.split("/")[-1] for one in told[2:]] == ["corrections"]


def test_the_lists_next_page_is_read_before_its_end_is_reached_and_once(watched: Watched, server: Server, store: Store) -> None:
    store.add([make_run(answer=f"Answer {number}.", sample=number) for number in range(PAGE + 8)])
    page = watched.page
    page.goto(f"{server.url}/#/runs")
    page.wait_for_selector("tbody tr")
    expect(page.locator("tbody tr")).to_have_count(PAGE, timeout=PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(server.url)))

    def lists() -> int:
        return sum(one.startswith("/api/runs?") for one in asked)

    page.locator("tbody tr").nth(PAGE - 4).click()
    expect(page.locator(".run-head .position")).to_have_text(f"{PAGE - 3} / {PAGE + 8}", timeout=PATIENCE)
    page.wait_for_load_state("networkidle")
    assert lists() == 1, "three runs before the end of what was read"
    for at in range(PAGE - 2, PAGE + 9):
        page.keyboard.press("n")
        expect(page.locator(".run-head .position")).to_have_text(f"{at} / {PAGE + 8}", timeout=PATIENCE)
    assert lists() == 1
