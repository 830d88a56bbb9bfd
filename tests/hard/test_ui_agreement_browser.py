"""The agreement screen in a real browser: from a figure to a decision by keyboard, hostile names that stay text, both colour schemes."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from small_browser import browser_fixture
from small_desk import HOSTILE, make_desk, make_run

from agentalign.config.project import Project
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui.screenshots.make import serving

pytestmark = [pytest.mark.hard, pytest.mark.browser]

PATIENCE = 60_000
EVIL = HOSTILE[1]
browser = browser_fixture()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Thirty runs that three people marked, one of them under a hostile name, and fifteen pairs."""
    project = make_desk(tmp_path)
    draw = random.Random(0)
    with Store(project.store_url) as store:
        runs = [make_run(answer=f"Done {n}. {EVIL}", sample=n, task=f"t{n // 2}") for n in range(30)]
        store.add(runs)
        for who, noise in (("ada", 0.1), ("bob", 0.4), (EVIL, 0.5)):
            values = [n % 5 + 1 if draw.random() > noise else draw.randint(1, 5) for n in range(30)]
            store.add_scores([
                Score(trajectory=run.id, criterion="tone@1", value=value, rater=who, rater_kind="human", note=EVIL)
                for run, value in zip(runs, values, strict=True)
            ])  # fmt: skip
        for who in ("ada", "bob"):
            for one, other in zip(runs[::2], runs[1::2], strict=True):
                items = [Item(one.id), Item(other.id)]
                draw.shuffle(items)
                store.add_preferences([Preference(taskset="desk", items=tuple(items), source="human", rater=who, left=one.id)])
    return project


@pytest.fixture
def url(project: Project) -> Iterator[str]:
    with serving(project, "lead") as url:
        yield url


def test_a_cell_is_opened_and_a_case_decided_by_keyboard(browser: Browser, project: Project, url: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "data:", "blob:")) else faults.append(request.url))
    page.goto(url + "/#/agreement?taskset=desk")
    page.wait_for_selector(".matrix a.cell")
    for cell in page.locator("a.cell").all():
        assert "n " in (cell.text_content() or ""), "no figure without its n"
    assert page.locator('[data-question="overall pair"] .alpha .cell b').text_content() == "too few"
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(".matrix a.cell").first).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Enter")
    expect(page.locator("a.open-case").first).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Enter")
    page.wait_for_selector("button.decide")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("Choose what holds", timeout=PATIENCE)
    page.keyboard.press("2")
    expect(page.locator("textarea.why")).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("Say why", timeout=PATIENCE)
    page.keyboard.type("short, 5 words, but kind")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.cases")
    expect(page.locator(".chip.mine")).to_have_text("decided: 2", timeout=PATIENCE)
    with Store(project.store_url) as store:
        (decision,) = [score for score in store.scores() if score.rater_kind == "adjudicator"]
        assert (decision.value, decision.rater, decision.note) == (2, "lead", "short, 5 words, but kind")
        assert len(store.scores()) == 91, "everyone's answers are still there"
    page.goto(url + "/#/agreement/cases?taskset=desk&criterion=overall&kind=pair")
    expect(page.locator(".filters b")).to_contain_text("which run is better", timeout=PATIENCE)
    expect(page.locator("a.open-case").first).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Enter")
    page.wait_for_selector(".pair .side")
    page.keyboard.press("1")
    page.keyboard.type("A answers")
    page.keyboard.press("Enter")
    page.wait_for_selector("table.cases")
    with Store(project.store_url) as store:
        assert [p.strength for p in store.preferences("desk", source="adjudicator")] == [3]
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa :is(script, iframe, img, form)").count() == 0
    assert faults == []
    context.close()


def test_figures_read_well_in_both_colour_schemes(browser: Browser, url: str) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url + "/#/agreement?taskset=desk")
        page.wait_for_selector(".matrix a.cell")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at 1280 pixels"
        for cell in page.locator("a.cell small").all():
            ratio = cell.evaluate(CONTRAST)
            assert ratio >= 4.5, f"{cell.text_content()} has contrast {ratio:.1f} in {scheme}"
        context.close()


# WCAG 2.2, relative luminance and contrast ratio, against the nearest background that is not transparent.
CONTRAST = """(element) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(parse).map(light).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


def test_who_was_right_on_known_answers_stands_below_the_people(browser: Browser, project: Project, url: str) -> None:
    with Store(project.store_url) as store:
        run = make_run(answer="Known.", task="known")
        store.add([run])
        store.queue_items.add([run.id], gold={"tone@1": 5.0}, gold_by=EVIL)
        queue = store.queue(Rules(gold_rate=1.0))
        hand = queue.take("ada")
        assert hand is not None
        store.add_scores([Score(trajectory=run.id, criterion="tone@1", value=4, rater="ada", rater_kind="human")])
        queue.finish(hand.id, "ada")
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    page = context.new_page()
    page.goto(url + "/#/agreement?taskset=desk")
    row = page.locator("table.gold tbody tr")
    expect(row).to_have_count(1, timeout=PATIENCE)
    assert row.locator("th, td").all_text_contents() == ["ada", "tone@1", "runs", "1", "0", "1.00", EVIL]
    assert page.evaluate("window.pwned") is None
    context.close()
