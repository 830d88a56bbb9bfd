"""The pages in a real browser: rating by keyboard, hostile text that stays text, comparing, and marks that survive a dead server."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect
from small_browser import browser_fixture
from small_desk import HOSTILE, make_desk, make_run

from agentalign.config.project import Project
from agentalign.records.trajectory import Message, ToolCall, Trajectory
from agentalign.store.store import Store
from agentalign.ui.app import create_app

pytestmark = [pytest.mark.hard, pytest.mark.browser]

PATIENCE = 60_000


class Server:
    """The app of a project in a thread, on one port through stops and starts."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.port = 0
        self.start()

    def app(self) -> uvicorn.Config:
        return uvicorn.Config(create_app(self.project, rater="rater"), port=self.port, log_level="error", timeout_graceful_shutdown=1)

    def start(self) -> None:
        self.server = uvicorn.Server(self.app())
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            time.sleep(0.05)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True  # not force_exit: the app would keep what it holds, a chat's worker processes among it
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


browser = browser_fixture()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(make_desk(tmp_path).store_url) as store:
        yield store


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[Server]:
    server = Server(Project(tmp_path))
    yield server
    server.stop()


class Watched:
    """A page whose requests, dialogs and script errors are kept."""

    def __init__(self, context: BrowserContext, home: str) -> None:
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self._seen(request, home))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _seen(self, request: Request, home: str) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != home:
            self.requests.append(request.url)


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    watched = Watched(context, server.url)
    yield watched
    context.close()
    assert watched.requests == [], "the page asked another server for something"
    assert watched.faults == []


def saved(page: Page) -> None:
    """Wait until nothing is waiting to be saved."""
    page.wait_for_function("Object.keys(localStorage).every((name) => !name.startsWith('agentalign.unsaved'))")


def test_a_run_is_rated_by_keyboard_alone(watched: Watched, server: Server, store: Store) -> None:
    first, second = make_run(), make_run(answer="No.", sample=1)
    store.add([first, second])
    page = watched.page
    page.goto(server.url)
    page.wait_for_selector("table.runs tbody tr")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator(".card.active")).to_have_attribute("data-criterion", "tone@1", timeout=PATIENCE)
    page.keyboard.press("4")
    expect(page.locator('.card[data-criterion="tone@1"] .mark.chosen.saved')).to_have_text("4", timeout=PATIENCE)
    page.keyboard.press("m")
    page.keyboard.type("to the point, =1")
    page.keyboard.press("Enter")
    page.keyboard.press("j")
    expect(page.locator(".entry.at")).to_have_attribute("data-step", "0", timeout=PATIENCE)
    page.keyboard.press("1")  # marks step 0 and goes on to step 1
    expect(page.locator(".entry.at")).to_have_attribute("data-step", "1", timeout=PATIENCE)
    page.keyboard.press("x")
    saved(page)
    page.keyboard.press("n")
    expect(page.locator(".timeline")).to_contain_text(first.answer, timeout=PATIENCE)
    expect(page.locator(".mark.chosen")).to_have_count(0)
    page.keyboard.press("2")
    expect(page.locator(".mark.chosen.saved")).to_have_text("2", timeout=PATIENCE)
    marks = [(s.trajectory, s.criterion, s.step, s.value, s.note) for s in store.scores()]
    assert marks == [
        (second.id, "tone@1", None, 4, ""),
        (second.id, "tone@1", None, 4, "to the point, =1"),
        (second.id, "good_step@1", 0, 1, ""),
        (second.id, "good_step@1", 1, None, ""),
        (first.id, "tone@1", None, 2, ""),
    ]
    assert {s.rater for s in store.scores()} == {"rater"}
    page.keyboard.press("p")
    expect(page.locator('.card[data-criterion="tone@1"] .mark.chosen')).to_have_text("4", timeout=PATIENCE)


def test_hostile_text_is_shown_and_does_nothing(watched: Watched, server: Server, store: Store) -> None:
    page = watched.page
    for number, text in enumerate(HOSTILE):
        run = make_run(
            text, answer=text, result=text, policy=text if "\x00" not in text and "\ud800" not in text else "p", task=None, sample=number
        )
        store.add([run])
        page.goto(f"{server.url}/#/run/{run.id}")
        page.reload()
        page.wait_for_selector(".entry.step")
        shown = page.locator(".entry.user pre").evaluate("element => element.textContent")
        plain = text.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e").replace("\x00", "\\u0000")
        assert shown == plain.encode("utf-8", "backslashreplace").decode()
    page.goto(f"{server.url}/#/runs")
    page.reload()
    page.wait_for_selector("table.runs tbody tr")
    assert page.locator("table.runs tbody tr").count() == len(HOSTILE)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa :is(script, iframe, img, form)").count() == 0


def test_two_runs_are_compared_blind_by_keyboard(watched: Watched, server: Server, store: Store) -> None:
    runs = {run.answer: run.id for run in (make_run(answer="Yes.", policy="desk@9"), make_run(answer="No.", policy="base"))}
    store.add([make_run(answer="Yes.", policy="desk@9"), make_run(answer="No.", policy="base")])
    page = watched.page
    page.goto(f"{server.url}/#/compare?taskset=desk")
    page.wait_for_selector(".pair .side")
    assert "desk@9" not in page.content()
    assert not any(id in page.content() for id in runs.values())
    left, right = (side.text_content() for side in page.locator(".pair .changed .words dd").all())
    expect(page.locator(".pair .shared")).to_have_attribute("open", "")
    page.keyboard.press("i")
    expect(page.locator(".pair .shared")).not_to_have_attribute("open", "")
    page.keyboard.press("ArrowDown")  # past the criterion, to the overall question
    page.keyboard.press("m")
    page.keyboard.type("clearer")
    page.keyboard.press("Escape")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_contain_text("No pair is left", timeout=PATIENCE)
    (preference,) = store.preferences("desk")
    assert [item.trajectory for item in preference.items] == [runs[right or ""], runs[left or ""]]
    assert (preference.left, preference.strength, preference.note) == (runs[left or ""], 3, "clearer")


def test_compared_runs_stand_step_beside_step_with_other_words_marked(watched: Watched, server: Server, store: Store) -> None:
    plain, other = make_run(result="W1 was cancelled"), make_run(result=f"W1 was {HOSTILE[1]} refused", sample=1)
    look = ToolCall(id="call-look", name="find_order", arguments='{"order_id": "W1"}')
    found = Message(role="tool", content="1 order", tool_call_id=look.id, name=look.name)
    messages = (*other.messages[:2], Message(role="assistant", tool_calls=(look,)), found, *other.messages[2:])
    longer = Trajectory.model_validate({**other.model_dump(exclude={"id"}), "messages": messages})
    store.add([plain, longer])
    page = watched.page
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(f"{server.url}/#/compare?taskset=desk")
        page.wait_for_selector(".pair .changed mark")
        expect(page.locator(".pair .nothing")).to_have_count(1)
        expect(page.locator(".pair > .changed")).to_have_count(2)
        expect(page.locator(".pair > .same")).to_have_count(2)
        marked = {"".join(side.locator("mark").all_text_contents()) for side in page.locator(".pair > .changed .words dd").all()}
        assert marked == {"cancelled", f"{HOSTILE[1]} refused"}
        assert page.evaluate("window.pwned") is None


def test_marks_given_while_the_server_is_gone_are_saved_once_it_is_back(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector("#aa-shell .card.active")
    page.wait_for_load_state("networkidle")  # Gradio's own scripts come after the page, and report a server that is gone before them
    server.stop()
    page.keyboard.press("5")
    expect(page.locator(".save-state")).to_have_attribute("data-kind", "waiting", timeout=PATIENCE)
    expect(page.locator(".mark.chosen.pending")).to_have_text("5", timeout=PATIENCE)
    assert store.scores() == []
    server.start()
    expect(page.locator(".mark.chosen.saved")).to_have_text("5", timeout=PATIENCE)
    assert [score.value for score in store.scores()] == [5]
    saved(page)


def test_a_lost_answer_makes_no_second_mark(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    lost: list[str] = []

    def lose_first(route: object) -> None:
        if lost:
            route.continue_()  # type: ignore[attr-defined]
        else:
            lost.append("answer")
            route.fetch()  # type: ignore[attr-defined]
            route.abort()  # type: ignore[attr-defined]

    page.route("**/api/scores", lose_first)
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".card.active")
    page.keyboard.press("3")
    expect(page.locator(".mark.chosen.saved")).to_have_text("3", timeout=PATIENCE)
    assert lost
    assert len(store.scores()) == 1


def test_long_results_are_capped_and_open_whole(watched: Watched, server: Server, store: Store) -> None:
    text = "".join(f"line {number}\n" for number in range(30_000))
    run = make_run(result=text)
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".more")
    result = page.locator(".call pre.result")
    assert len(result.text_content() or "") < 2000
    for _ in range(10):
        if page.locator(".call .more").count() == 0:
            break
        page.locator(".call .more").click()
    assert result.evaluate("element => element.textContent") == text


def test_the_sheet_of_keys_names_keys_that_work(watched: Watched, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    page = watched.page
    page.goto(f"{server.url}/#/run/{run.id}")
    page.wait_for_selector(".card.active")
    page.keyboard.press("?")
    assert page.locator(".sheet dt").count() > 10
    page.keyboard.press("4")
    page.keyboard.press("Escape")
    expect(page.locator(".sheet")).to_have_count(0)
    assert page.locator(".mark.chosen").count() == 0, "no key acts behind the sheet"
    page.keyboard.press("ArrowDown")
    expect(page.locator(".card.active")).not_to_have_attribute("data-criterion", "tone@1", timeout=PATIENCE)
    page.keyboard.press("l")
    page.wait_for_selector("table.runs")


def test_the_pages_read_well_in_both_colour_schemes(browser: Browser, server: Server, store: Store) -> None:
    run = make_run()
    store.add([run])
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/#/run/{run.id}")
        page.wait_for_selector(".card.active")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at 1280 pixels"
        for selector in (
            ".bar .who",
            ".bar nav a",
            ".entry pre.text",
            ".entry pre.result",
            ".entry .index",
            ".card .question",
            ".mark",
            ".tool-name",
        ):
            ratio = page.evaluate(CONTRAST, selector)
            assert ratio >= 4.5, f"{selector} has contrast {ratio:.1f} in {scheme}"
        context.close()


# WCAG 2.2, relative luminance and contrast ratio, against the nearest background that is not transparent.
CONTRAST = """(selector) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let behind = element;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const [a, b] = colours.map(parse).map(light).sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
