"""The list of runs in a browser, without a mouse: narrowed to one task, and ticked runs put into the queue."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import pytest
from playwright.sync_api import expect
from small_desk import make_run
from test_ui_browser import PATIENCE, Server, Watched, browser, server, store, watched

from agentalign.store.store import Store

pytestmark = [pytest.mark.hard, pytest.mark.browser]


def test_the_list_is_narrowed_to_a_task_by_its_field(watched: Watched, server: Server, store: Store) -> None:
    store.add([make_run(task=task, sample=number) for number, task in enumerate(("cancel 7&8", "cancel 7&8", "refund"))])
    page = watched.page
    page.goto(f"{server.url}/#/runs?policy=base&taskset=desk")
    rows = page.locator("table.runs tbody tr")
    expect(rows).to_have_count(3, timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert page.locator("#aa-tasks option").evaluate_all("all => all.map((one) => one.value)") == ["cancel 7&8", "refund"]
    page.keyboard.press("t")
    page.keyboard.type("cancel 7&8")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(2, timeout=PATIENCE)
    expect(page.get_by_label("Task", exact=True)).to_have_value("cancel 7&8")
    assert "policy=base" in page.url, "what was narrowed before stays so"
    page.keyboard.press("t")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(3, timeout=PATIENCE)


def test_a_lead_puts_ticked_runs_and_two_as_a_pair_into_the_queue_by_keyboard(watched: Watched, server: Server, store: Store) -> None:
    store.add([make_run(answer=f"Answer {number}.", sample=number) for number in range(2)])
    page = watched.page
    page.goto(f"{server.url}/#/runs")
    page.wait_for_selector("table.runs tbody tr")
    page.keyboard.press("q")
    expect(page.locator(".notice")).to_contain_text("Tick the runs", timeout=PATIENCE)
    page.keyboard.press("X")
    for key, overlap, told in (("q", "3", "2 runs are new"), ("Q", "2", "1 pair is new"), ("q", "4", "2 runs were in it")):
        page.keyboard.press(key)
        expect(page.locator(".queueing input")).to_be_focused(timeout=PATIENCE)
        page.keyboard.type(overlap)
        page.keyboard.press("Enter")
        expect(page.locator(".notice")).to_contain_text(told, timeout=PATIENCE)
    page.keyboard.press("Q")
    expect(page.locator(".queueing .fill-form")).to_contain_text("as one pair", timeout=PATIENCE)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".fill-form")).to_have_count(0)
    assert sorted((item.other is None, item.overlap) for item in store.queue_items.items()) == [(False, 2), (True, 4), (True, 4)]
    page.keyboard.press("?")
    expect(page.locator(".sheet")).to_contain_text("put the two ticked runs into the queue as a pair")
