"""What a rater gave is kept as theirs: across logins, tabs, refusals, and answers that come while they type."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, Route, expect
from small_browser import browser_fixture
from small_desk import make_desk, make_run
from test_ui_browser import PATIENCE, Server, saved

from agentalign.config.project import Project
from agentalign.store.store import Store
from agentalign.ui.app import create_app

pytestmark = [pytest.mark.hard, pytest.mark.browser]
PASSWORD = "a password of no worth"
PENDING = '.card[data-criterion="tone@1"] .mark.chosen.pending'
KEPT = '.card[data-criterion="tone@1"] .mark.chosen.saved'

browser = browser_fixture()


class TeamServer(Server):
    """The same, for people who log in."""

    def app(self) -> uvicorn.Config:
        return uvicorn.Config(create_app(self.project, rater="nobody", team=True), port=self.port, log_level="error")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(make_desk(tmp_path).store_url) as store:
        for name in ("ada", "bob"):
            store.accounts.set(name, "lead", PASSWORD)
        yield store


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[Server]:
    server = TeamServer(Project(tmp_path))
    yield server
    server.stop()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, base_url=server.url)
    faults: list[str] = []
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())  # leaving a page with unsaved marks asks
    yield page
    context.close()
    assert faults == []


def log_in(page: Page, name: str) -> None:
    answer = page.request.post("/api/login", data={"name": name, "password": PASSWORD})
    assert answer.status == 200


def show(page: Page, run: str) -> None:
    page.goto("about:blank")  # a page of its own, not another address of the same
    page.goto(f"/#/run/{run}")
    page.wait_for_selector(".card.active")


def rate(page: Page, store: Store) -> None:
    """A run of its own, rated 4 by ada, and saved."""
    run = make_run()
    store.add([run])
    log_in(page, "ada")
    show(page, run.id)
    page.keyboard.press("4")
    expect(page.locator(KEPT)).to_have_text("4", timeout=PATIENCE)


def test_what_waits_is_saved_under_the_name_of_who_gave_it(page: Page, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    log_in(page, "ada")
    page.context.route("**/api/scores", lambda route: route.abort())
    show(page, run.id)
    page.keyboard.press("4")
    expect(page.locator(PENDING)).to_have_text("4", timeout=PATIENCE)
    log_in(page, "bob")
    other = page.context.new_page()
    page.context.unroute("**/api/scores")
    show(other, run.id)
    expect(other.locator(".who")).to_have_text("bob", timeout=PATIENCE)
    expect(other.locator(".card.active .mark.chosen")).to_have_count(0)
    # Ada's own page goes on asking, and is told who is logged in now.
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.locator(".save-state")).to_contain_text("logged in as bob", timeout=PATIENCE)
    assert store.scores() == []
    log_in(page, "ada")
    show(page, run.id)
    expect(page.locator(KEPT)).to_have_text("4", timeout=PATIENCE)
    assert [(score.rater, score.value) for score in store.scores()] == [("ada", 4)]


def test_what_another_tab_sends_is_acknowledged_in_the_tab_that_waits(page: Page, server: Server, store: Store) -> None:
    runs = [make_run(), make_run(sample=1)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs])
    log_in(page, "ada")
    page.route(re.compile(r"/api/(scores|queue/[^/]+/done)"), lambda route: route.abort())
    page.goto("/#/queue")
    page.wait_for_selector(".card.active")
    first = page.locator(".run-head h1").get_attribute("title")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    expect(page.locator(".save-state")).to_contain_text("not saved", timeout=PATIENCE)
    other = page.context.new_page()
    other.goto("/#/runs")
    other.wait_for_selector("table.runs")
    page.wait_for_function("(id) => document.querySelector('.run-head h1')?.title !== id", arg=first)
    expect(page.locator(".save-state")).to_have_attribute("data-kind", re.compile("saved|idle"), timeout=PATIENCE)
    assert [score.value for score in store.scores()] == [5]


def test_a_refused_mark_gives_the_place_back_to_the_one_before(page: Page, server: Server, store: Store) -> None:
    rate(page, store)
    page.route("**/api/scores", lambda route: route.fulfill(status=422, json={"detail": "criterion 'tone' has changed. Reload the page."}))
    for key in ("2", "u", "u"):  # another value, the first one again, and a mark taken back
        page.keyboard.press(key)
        expect(page.locator(".notice")).to_contain_text("tone", timeout=PATIENCE)
        expect(page.locator(KEPT)).to_have_text("4", timeout=PATIENCE)
    assert [score.value for score in store.scores()] == [4]


def test_an_answer_that_comes_while_somebody_types_takes_nothing_away(page: Page, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    log_in(page, "ada")
    held: list[Route] = []
    page.route("**/api/scores", lambda route: route.continue_() if held else held.append(route))
    show(page, run.id)
    page.keyboard.press("4")
    expect(page.locator(PENDING)).to_have_text("4", timeout=PATIENCE)
    page.keyboard.press("m")
    page.keyboard.type("fi")
    held[0].continue_()
    expect(page.locator(".save-state")).to_have_attribute("data-kind", "saved", timeout=PATIENCE)
    page.keyboard.type("ne, 5 u")
    page.keyboard.press("Enter")
    expect(page.locator(KEPT)).to_have_text("4", timeout=PATIENCE)
    saved(page)
    assert [(score.value, score.note) for score in store.scores()] == [(4, ""), (4, "fine, 5 u")]


def test_a_click_that_ends_a_note_still_hits(page: Page, server: Server, store: Store) -> None:
    rate(page, store)
    page.keyboard.press("m")
    page.keyboard.type("no")
    page.locator('.card[data-criterion="tone@1"] .mark', has_text="2").click(delay=100)
    expect(page.locator(KEPT)).to_have_text("2", timeout=PATIENCE)
    saved(page)
    assert [(score.value, score.note) for score in store.scores()][1:] == [(4, "no"), (2, "no")]


def test_a_press_that_begins_before_gradio_is_there_still_hits(page: Page, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    log_in(page, "ada")
    held: list[Route] = []
    page.context.route("**/assets/**/*.js", lambda route: held.append(route))
    page.goto(f"/#/run/{run.id}", wait_until="commit")
    page.wait_for_selector(".card.active")
    page.wait_for_timeout(300)
    box = page.locator('.card[data-criterion="tone@1"] .mark', has_text="2").bounding_box()
    assert held and box and not page.locator("#aa-shell").count()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.context.unroute("**/assets/**/*.js")  # which lets go of those that are held
    page.wait_for_selector("#aa-shell", state="attached", timeout=PATIENCE)
    page.wait_for_timeout(500)
    page.mouse.up()
    expect(page.locator(KEPT)).to_have_text("2", timeout=5000)
    page.wait_for_selector("#aa-shell .aa .card")


def test_what_a_role_refuses_for_good_holds_up_no_marks(page: Page, store: Store) -> None:
    """A lead's decision that was not sent, and its person is a rater by now."""
    run = make_run()
    store.add([run])
    log_in(page, "ada")
    show(page, run.id)
    sends = re.compile(r"/api/(scores|decisions)")  # both: who is still a lead would have the decision kept
    page.route(sends, lambda route: route.abort())
    page.keyboard.press("4")
    page.wait_for_selector(PENDING)
    page.evaluate(
        """(run) => {
          const name = Object.keys(localStorage).find((one) => one.startsWith("agentalign.unsaved"));
          const body = { key: "k".repeat(16), trajectory: run, criterion: "tone@1", step: null, value: 2, note: "so it holds" };
          localStorage.setItem(name, JSON.stringify({ url: "/api/decisions", body }));
        }""",
        run.id,
    )
    page.wait_for_load_state("networkidle")  # what still loads would be refused with the session
    store.accounts.set("ada", "rater", PASSWORD)
    page.unroute(sends)
    log_in(page, "ada")
    show(page, run.id)
    page.keyboard.press("5")
    expect(page.locator(KEPT)).to_have_text("5", timeout=PATIENCE)
    saved(page)
    assert [(score.rater_kind, score.value) for score in store.scores()] == [("human", 5)]
