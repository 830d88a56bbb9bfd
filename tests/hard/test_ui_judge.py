"""Judging in a browser, all without a mouse: a corrected step, first error, can't judge, undo, guidelines."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect
from small_desk import HOSTILE, long_run, make_run
from test_ui_browser import PATIENCE, Server, Watched, browser, saved, server, store, watched

from agentalign.records.preference import Item
from agentalign.records.trajectory import Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store

pytestmark = [pytest.mark.hard, pytest.mark.browser]
__all__ = ["browser", "server", "store", "watched"]
TOOLS = [
    {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "required": ["order_id"]}}},
    {"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}},
]


def run_with_tools() -> Trajectory:
    run = make_run()
    return Trajectory(
        **{name: getattr(run, name) for name in Trajectory.model_fields if name not in ("id", "tools")}, tools=json.dumps(TOOLS)
    )


def test_a_step_is_corrected_and_taken_back_by_keyboard(watched: Watched, server: Server, store: Store) -> None:
    run = run_with_tools()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}?s=0")
    page.wait_for_selector(".card.active")
    page.keyboard.press("c")
    arguments = page.locator('form.correct textarea[name="arguments"]')
    expect(arguments).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Control+a")
    page.keyboard.type('{"order": 2}')
    page.keyboard.press("Control+Enter")
    expect(page.locator(".notice")).to_contain_text("missing argument 'order_id'", timeout=PATIENCE)
    assert list(store.trajectories(RunFilter(origin_kind="correction"))) == []
    expect(arguments).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Control+a")
    page.keyboard.type('{"order_id": "W2"}')
    for _ in range(2):  # the reply, then the note
        page.keyboard.press("Tab")
    page.keyboard.type("the customer said W2")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".corrected")).to_contain_text("W2", timeout=PATIENCE)
    expect(page.locator("form.correct")).to_have_count(0)
    (corrected,) = store.trajectories(RunFilter(origin_kind="correction"))
    (pair,) = store.preferences("desk")
    assert (pair.items, pair.note) == ((Item(corrected.id, 0), Item(run.id, 0)), "the customer said W2")
    assert corrected.messages[-1].tool_calls[0].arguments == '{"order_id":"W2"}'
    page.reload()
    expect(page.locator(".corrected")).to_contain_text("the customer said W2", timeout=PATIENCE)
    page.keyboard.press("c")
    expect(page.locator('form.correct textarea[name="arguments"]')).to_have_value('{\n  "order_id": "W2"\n}', timeout=PATIENCE)
    expect(page.locator('form.correct textarea[name="note"]')).to_have_value("the customer said W2")
    page.keyboard.press("Escape")
    page.locator(".corrected button").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".corrected")).to_have_count(0, timeout=PATIENCE)
    assert [p.withdrawn for p in store.preferences("desk")] == [False, True]


def test_first_error_marks_every_step_and_undo_takes_all_of_it_back(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}?s=1")
    page.wait_for_selector(".card.active")
    page.keyboard.press("f")
    expect(page.locator(".step-marks .mine.saved")).to_have_text(["1", "0"], timeout=PATIENCE)
    page.keyboard.press("u")
    expect(page.locator(".step-marks .mine")).to_have_count(0, timeout=PATIENCE)
    saved(page)
    said = [(s.step, s.status.value, s.value) for s in store.scores()]
    assert said == [(0, "value", 1), (1, "value", 0), (0, "withdrawn", None), (1, "withdrawn", None)]


def test_marks_of_many_steps_go_together_and_survive_a_lost_answer(watched: Watched, server: Server, store: Store) -> None:
    run = long_run(250)
    store.add([run])
    page = watched.page
    sent: list[int] = []

    def lose_first(route: Route) -> None:
        sent.append(len(json.loads(route.request.post_data or "")["marks"]))
        route.abort() if len(sent) == 1 else route.continue_()

    page.route("**/api/scores/many", lose_first)
    page.goto(f"{server.url}/#/run/{run.id}?s=200")
    page.wait_for_selector(".card.active")
    page.keyboard.press("f")
    expect(page.locator(".step-marks .mine.saved")).to_have_count(250, timeout=PATIENCE)
    saved(page)
    assert sent == [100, 100, 100, 49], "the first went alone, a hundred did not arrive and went again"
    assert [(s.step, s.value) for s in store.scores()] == [(step, float(step < 200)) for step in range(250)]


def test_cannot_judge_is_not_does_not_apply_and_undo_brings_the_mark_back(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".card.active")
    chosen = page.locator('.card[data-criterion="tone@1"] .mark.chosen.saved')
    for key, shown in (("4", "4"), ("d", "?"), ("x", "n/a"), ("u", "?"), ("u", "4")):
        page.keyboard.press(key)
        expect(chosen).to_contain_text(shown, timeout=PATIENCE)
    assert [s.status.value for s in store.scores()] == ["value", "cant_judge", "not_applicable", "cant_judge", "value"]
    page.reload()
    expect(chosen).to_have_text("4", timeout=PATIENCE)


def test_reasons_are_ticked_by_their_letters_before_or_after_the_mark_and_undone(watched: Watched, server: Server, store: Store) -> None:
    criteria = f"tone: {{description: Friendly?, scale: [1, 5], chips: [cold, 'too <b>long</b>', {json.dumps(HOSTILE[1][:40])}]}}\n"
    (Path(server.project.tasks) / "desk" / "criteria.yaml").write_text(criteria, encoding="utf-8")
    first, second = make_run(), make_run(answer="No.", sample=1)
    store.add([first, second])
    page = watched.page
    page.goto(f"{server.url}/#/run/{first.id}")
    page.wait_for_selector(".card.active .reason")
    badges = page.locator(".card.active .reason kbd").all_inner_texts()
    page.keyboard.press(badges[1])
    expect(page.locator(".reason.chosen")).to_contain_text("too <b>long</b>")
    assert store.scores() == [], "a reason alone is no mark"
    page.keyboard.press("2")
    expect(page.locator(".mark.chosen.saved")).to_have_text("2", timeout=PATIENCE)
    page.keyboard.press(badges[2])
    expect(page.locator(".reason.chosen")).to_have_count(2)
    page.keyboard.press("u")
    expect(page.locator(".reason.chosen")).to_have_count(1)
    saved(page)
    page.reload()
    expect(page.locator(".reason.chosen")).to_contain_text("too <b>long</b>", timeout=PATIENCE)
    assert [(s.value, s.chips) for s in store.scores()] == [
        (2, ("too <b>long</b>",)),
        (2, ("too <b>long</b>", HOSTILE[1][:40])),
        (2, ("too <b>long</b>",)),
    ]
    assert page.evaluate("window.pwned") is None


def test_the_next_run_is_read_ahead_once_and_shows_ones_own_newest_marks(watched: Watched, server: Server, store: Store) -> None:
    older, newer = make_run(), make_run(answer="No.", sample=1)
    store.add([older, newer])
    page, asked = watched.page, []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith(f"/api/runs/{older.id}") else None)
    page.goto(f"{server.url}/#/run/{newer.id}")
    page.wait_for_selector(".card.active")
    page.wait_for_function("(id) => performance.getEntriesByType('resource').some((one) => one.name.endsWith(id))", arg=older.id)
    page.keyboard.press("n")
    expect(page.locator(".timeline")).to_contain_text("Done.", timeout=PATIENCE)
    assert len(asked) == 1, "what was read ahead is what is shown"
    page.keyboard.press("5")
    expect(page.locator(".mark.chosen.saved")).to_have_text("5", timeout=PATIENCE)
    page.keyboard.press("p")
    expect(page.locator(".timeline")).to_contain_text("No.", timeout=PATIENCE)
    page.keyboard.press("n")
    expect(page.locator(".mark.chosen.saved")).to_have_text("5", timeout=PATIENCE)


def test_guidelines_are_shown_as_they_were_written(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    text = "# How to rate\n" + "\n".join(HOSTILE[:5])
    (Path(server.project.tasks) / "desk" / "guidelines.md").write_text(text, encoding="utf-8")
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".card.active")
    page.keyboard.press("g")
    expect(page.locator(".guidelines pre")).to_have_text(text, use_inner_text=False, timeout=PATIENCE)
    page.keyboard.press("g")
    expect(page.locator(".guidelines")).to_have_count(0)
    assert page.evaluate("window.pwned") is None


def test_the_forms_fit_a_tablet_in_both_colour_schemes(browser: Browser, server: Server, store: Store) -> None:
    run = run_with_tools()
    store.add([run])
    for size in ((1280, 720), (1024, 768), (820, 1180)):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme="dark")
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/#/run/{run.id}?s=0")
        page.wait_for_selector(".card.active")
        for part in (".run-head", ".bar", ".card.active .marks"):
            assert page.locator(part).evaluate("(box) => box.scrollWidth <= box.clientWidth"), (part, size)
        page.keyboard.press("c")
        page.wait_for_selector("form.correct")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), size
        box = page.locator("form.correct").bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= size[0], size
        context.close()
