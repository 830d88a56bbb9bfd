"""Comparing in a browser without a mouse: criterion by criterion, blind, with undo and reload."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from small_desk import HOSTILE, make_run
from test_ui_browser import CONTRAST, PATIENCE, Server, Watched, browser, saved, server, store, watched

from agentalign.store.store import Store

pytestmark = [pytest.mark.hard, pytest.mark.browser]
GONE = "(kind) => !document.querySelector('.in-hand ' + kind)"
CRITERIA = """
tone: {description: 'Is the agent <b>friendly</b>?', scale: [1, 5]}
honest: {description: Is all it says true?, gate: true}
"""


def ask(server: Server) -> None:
    (Path(server.project.tasks) / "desk" / "criteria.yaml").write_text(CRITERIA, encoding="utf-8")


def row(page: Page, criterion: str) -> str:
    return page.locator(f'.ballot-row[data-criterion="{criterion}"] .mark.chosen.saved').inner_text(timeout=PATIENCE).split("\n")[0]


def test_a_pair_is_compared_criterion_by_criterion_without_a_mouse(watched: Watched, server: Server, store: Store) -> None:
    ask(server)
    store.add([make_run(answer=f"Yes. {HOSTILE[1]}", policy="desk@9"), make_run(answer="No.", policy="base")])
    page = watched.page
    page.goto(f"{server.url}/#/compare?taskset=desk")
    page.wait_for_selector(".ballot-row.active")
    assert "desk@9" not in page.content()
    expect(page.locator(".ballot .question")).to_contain_text("<b>friendly</b>")
    page.keyboard.press("1")
    page.keyboard.press("m")
    page.keyboard.type("B promises what it cannot know")
    page.keyboard.press("Enter")
    page.keyboard.press("0")
    expect(page.locator('.ballot-row.active[data-criterion="overall"]')).to_have_count(1)
    page.keyboard.press("4")
    for criterion, shown in (("tone@1", "A far better"), ("honest@1", "Both bad"), ("overall", "B better")):
        assert row(page, criterion).startswith(shown)
    page.keyboard.press("u")
    expect(page.locator('.ballot-row[data-criterion="overall"] .chosen')).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("all in all")
    saved(page)  # the page guards what is not saved yet against a reload
    page.reload()
    page.wait_for_selector('.ballot-row.active[data-criterion="overall"]')
    assert row(page, "tone@1").startswith("A far")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_contain_text("No pair is left", timeout=PATIENCE)
    saved(page)
    said = [(p.criterion, p.withdrawn, p.both_bad, p.strength, p.note) for p in store.preferences("desk")]
    assert said == [
        ("tone@1", False, False, 3, ""),
        ("honest@1", False, True, 1, "B promises what it cannot know"),
        ("overall", False, False, 1, ""),
        ("overall", True, False, 1, ""),
        ("overall", False, False, 1, ""),
    ]
    assert page.evaluate("window.pwned") is None


def test_a_queue_of_runs_and_pairs_is_drained_by_keyboard_and_no_page_sticks_out(watched: Watched, server: Server, store: Store) -> None:
    ask(server)
    runs = [make_run(answer=f"Answer {number}.", policy=f"desk@{number}", sample=number) for number in range(3)]
    store.add(runs)
    store.queue_items.add([runs[2].id])
    store.pairs.add([(runs[0].id, runs[1].id)])
    page = watched.page
    page.set_viewport_size({"width": 820, "height": 700})
    page.goto(f"{server.url}/#/queue")
    met = set()
    for _ in range(2):
        page.wait_for_selector(".in-hand :is(.ballot-row.active, .card.active)")
        assert "desk@" not in page.content()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), "what is to be judged scrolls, not the page"
        is_pair = page.locator(".ballot").count() == 1
        met.add(is_pair)
        for key in ("2", "1", "3") if is_pair else ("4", "1"):
            page.keyboard.press(key)
        expect(page.locator(".mark.chosen.saved")).to_have_count(3 if is_pair else 2, timeout=PATIENCE)
        page.keyboard.press("Enter")
        page.wait_for_function(GONE, arg=".ballot" if is_pair else ".card")
    expect(page.locator(".empty")).to_contain_text("Nothing is left for you", timeout=PATIENCE)
    assert met == {True, False}
    assert {p.criterion for p in store.preferences("desk")} == {"tone@1", "honest@1", "overall"}
    assert [item.status for item in store.queue_items.items()] == ["full", "full"]


def test_the_ballot_fits_small_screens_and_reads_well_in_both_colour_schemes(browser: Browser, server: Server, store: Store) -> None:
    ask(server)
    store.add([make_run(answer="Yes.", policy="desk@9"), make_run(answer="No.", policy="base")])
    for scheme, size in (("light", (1280, 720)), ("dark", (820, 1180))):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/#/compare?taskset=desk")
        page.wait_for_selector(".ballot-row.active")
        page.keyboard.press("2")
        page.wait_for_selector(".mark.chosen.saved")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), size
        cut = "[...document.querySelectorAll('.ballot .mark, .ballot button')].filter((b) => b.scrollWidth > b.clientWidth + 1).length"
        assert page.evaluate(cut) == 0, "no button's words are cut"
        for selector in (".ballot .question", ".ballot-name span", ".ballot-row.active .mark", ".ballot .mark.chosen"):
            ratio = page.evaluate(CONTRAST, selector)
            assert ratio >= 4.5, f"{selector} has contrast {ratio:.1f} in {scheme}"
        context.close()


def test_a_pair_is_answered_with_reasons_and_cannot_judge_and_queued_for_all_without_a_mouse(
    watched: Watched, server: Server, store: Store
) -> None:
    chips = ["cold", "too <b>long</b>", HOSTILE[1][:40]]
    criteria = f"tone: {{description: Friendly?, scale: [1, 5], chips: {json.dumps(chips)}}}\nhonest: {{description: True?, gate: true}}\n"
    (Path(server.project.tasks) / "desk" / "criteria.yaml").write_text(criteria, encoding="utf-8")
    store.add([make_run(answer="Yes.", policy="desk@9"), make_run(answer="No.", policy="base")])
    page = watched.page
    page.goto(f"{server.url}/#/compare?taskset=desk")
    page.wait_for_selector(".ballot-row.active")
    badges = page.locator(".ballot .reason kbd").all_inner_texts()
    page.keyboard.press(badges[1])
    expect(page.locator(".ballot .reason.chosen")).to_contain_text("too <b>long</b>")
    assert store.preferences("desk") == [], "a reason alone is no answer"
    page.keyboard.press("1")
    expect(page.locator('.ballot-row.active[data-criterion="honest@1"]')).to_have_count(1)
    expect(page.locator(".ballot .reasons")).to_be_hidden()
    page.keyboard.press("d")
    page.keyboard.press("d")
    for criterion, shown in (("tone@1", "A far better"), ("honest@1", "?"), ("overall", "?")):
        assert row(page, criterion).startswith(shown)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press(badges[2])
    expect(page.locator(".ballot .reason.chosen")).to_have_count(2)
    page.keyboard.press("u")
    expect(page.locator(".ballot .reason.chosen")).to_have_count(1)
    saved(page)
    page.keyboard.press("E")
    expect(page.locator(".notice")).to_contain_text("all in all", timeout=PATIENCE)
    page.reload()
    page.wait_for_selector(".empty")
    said = [(p.criterion, p.cant_judge, p.chips) for p in store.preferences("desk")]
    assert said[:3] == [("tone@1", False, (chips[1],)), ("honest@1", True, ()), ("overall", True, ())]
    assert said[3:] == [("tone@1", False, (chips[1], chips[2])), ("tone@1", False, (chips[1],))]

    page.goto(f"{server.url}/#/queue")
    page.wait_for_selector(".fill summary")
    page.locator(".fill summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator('.fill-form select[name="family"] option')).to_have_count(2, timeout=PATIENCE)
    page.locator('.fill-form input[name="overlap"]').focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    expect(page.locator(".fill-form [role=status]")).to_contain_text("1 pair is new", timeout=PATIENCE)
    (item,) = store.queue_items.items()
    assert (item.overlap, item.is_gold) == (2, False)
    page.wait_for_selector(".in-hand .ballot-row.active")
    expect(page.locator(".in-hand .mark.chosen")).to_have_count(0)  # what was said before is not shown
    page.keyboard.press("2")
    page.keyboard.press("d")
    page.keyboard.press("3")
    expect(page.locator(".in-hand .mark.chosen.saved")).to_have_count(3, timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.keyboard.press("Enter")
    page.wait_for_function(GONE, arg=".ballot")
    assert store.queue_items.items()[0].done == 1
    assert page.evaluate("window.pwned") is None


def test_a_lead_tests_raters_with_the_pair_that_was_just_compared(watched: Watched, server: Server, store: Store) -> None:
    ask(server)
    store.add([make_run(answer="Yes.", policy="desk@9"), make_run(answer="No.", policy="base")])
    page = watched.page
    page.goto(f"{server.url}/#/compare?taskset=desk")
    page.wait_for_selector(".ballot-row.active")
    for key in "303E":
        page.keyboard.press(key)
    expect(page.locator(".notice")).to_contain_text("held to your answers", timeout=PATIENCE)
    (item,) = store.queue_items.items()
    assert item.is_gold
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_contain_text("No pair is left", timeout=PATIENCE)
    assert {p.criterion: p.pair_answer for p in store.preferences("desk")} == {"tone@1": 2.0, "honest@1": 3.0, "overall": 2.0}


def test_a_lead_tests_raters_with_a_run_by_the_marks_just_given(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".card.active")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    page.keyboard.press("E")
    expect(page.locator(".notice")).to_contain_text("you have given this run no mark", timeout=PATIENCE)
    page.keyboard.press("4")
    page.keyboard.press("E")
    expect(page.locator(".notice")).to_contain_text("held to your answers", timeout=PATIENCE)
    (item,) = store.queue_items.items()
    assert (item.trajectory, item.is_gold, item.gold_by) == (run.id, True, "rater")
    page.keyboard.press("?")
    expect(page.locator(".sheet")).to_contain_text("test raters with this run, by my answers")
