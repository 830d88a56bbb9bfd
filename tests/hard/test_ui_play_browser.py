"""The playground in a real browser, without a mouse: load, talk, change a call, stop, vote blind; hostile words stay text."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from agentalign.config.project import Project
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui.screenshots.make import CHROMIUM_FLAGS, serving
from tests.small_server import TINY, add_soft_adapter

pytestmark = [pytest.mark.hard, pytest.mark.browser]
PATIENCE = 180_000
HOSTILE = "<img src=x onerror=window.pwned=1> ${window.pwned=1} \u202egnp.exe"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project.create(tmp_path_factory.mktemp("project"))
    (found.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    for seed in (1, 2):
        add_soft_adapter(found, TINY, name="toy_desk", std=0.001, seed=seed)
    return found


@pytest.fixture(scope="module")
def page(chromium: str, project: Project) -> Iterator[Page]:
    with sync_playwright() as playwright, serving(project, "rater") as url:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 720}, base_url=url).new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if not request.url.startswith((url, "data:", "blob:")) else None)
        page.set_default_timeout(PATIENCE)
        page.goto("/#/play")
        page.locator("select.load").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator(".play-model .chip.good")).to_be_visible(timeout=PATIENCE)
        yield page
        browser.close()
        assert faults == [], "a script error, or a request to another server"


def state(page: Page, text: str) -> None:
    expect(page.locator(".chat-state")).to_contain_text(text, timeout=PATIENCE)


def rests(page: Page) -> None:
    """No side is at work."""
    expect(page.locator(".speak button", has_text="Stop")).to_be_hidden(timeout=PATIENCE)


def test_a_call_is_changed_and_the_chat_kept_by_keyboard(page: Page, project: Project) -> None:
    page.goto("/#/play")
    page.locator(".new-chat button.main").focus()
    page.keyboard.press("Enter")
    state(page, "waits for you")
    page.keyboard.press("e")
    expect(page.locator("form.call-form textarea")).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Control+a")
    page.keyboard.type('{"item": "kite", "colour": "<img src=x onerror=window.pwned=1>"}')
    page.keyboard.press("Control+Enter")
    expect(page.locator(".changes")).to_contain_text("order edited", timeout=PATIENCE)
    expect(page.locator(".call-wait.running, .entry.live")).to_have_count(0, timeout=PATIENCE)
    rests(page)
    while page.locator(".call-wait.asked").count():
        page.keyboard.press("d")
        page.keyboard.type("Stop.")
        page.keyboard.press("Control+Enter")
        expect(page.locator("form.call-form")).to_have_count(0, timeout=PATIENCE)
        rests(page)
    expect(page.locator(".lane .args").first).to_contain_text("<img", timeout=PATIENCE)
    page.keyboard.press("g")
    page.keyboard.press("q")
    page.keyboard.press("k")
    expect(page.locator('.run-head a[href^="#/run/"]')).to_be_visible(timeout=PATIENCE)
    with Store(project.store_url) as store:
        (run,) = store.trajectories(RunFilter(origin_kind="chat"))
        assert [item.trajectory for item in store.queue_items.items(None, None)] == [run.id]
        assert [(score.criterion, score.value) for score in store.scores([run.id])] == [("tone@1", 5)]
    assert page.evaluate("window.pwned") is None


def test_two_sides_answer_hostile_words_and_are_named_after_the_vote(page: Page, project: Project) -> None:
    page.goto("/#/play")
    page.locator('input[name="two"]').focus()
    page.keyboard.press("Space")
    page.locator('input[name="tools"][value="hand"]').check()
    page.locator('textarea[name="words"]').fill(HOSTILE)
    page.locator('input[name="ask"]').uncheck()
    page.locator(".new-chat button.main").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".lane")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator(".entry.user pre").first).to_contain_text("<img src=x", timeout=PATIENCE)
    expect(page.locator(".entry.user .esc").first).to_have_text("\\u202e", timeout=PATIENCE)
    expect(page.locator(".entry.step").nth(1)).to_be_visible(timeout=PATIENCE)
    assert "toy_desk@" not in page.locator(".aa").inner_text()
    rests(page)
    for _ in range(8):  # what the model calls is answered until it has said its word
        if not page.locator(".call-wait.wanting").count():
            break
        page.keyboard.press("w")
        page.keyboard.type("none left")
        page.keyboard.press("Control+Enter")
        expect(page.locator("form.call-form")).to_have_count(0, timeout=PATIENCE)
        rests(page)
    page.keyboard.press("4")
    expect(page.locator(".lane h2 .chip")).to_have_count(2, timeout=PATIENCE)
    with Store(project.store_url) as store:
        (vote,) = store.preferences("toy_desk", source="human")
    assert vote.strength == 1.0 and not vote.tie
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa img").count() == 0


def test_the_page_fits_a_tablet_in_both_colour_schemes(page: Page) -> None:
    browser = page.context.browser
    assert browser is not None
    for scheme in ("light", "dark"):
        for width, height in ((1280, 720), (820, 1180)):
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, base_url=page.url.split("/#")[0]
            )  # type: ignore[arg-type]
            other = context.new_page()
            other.set_default_timeout(PATIENCE)
            other.goto("/#/play")
            other.wait_for_selector(".new-chat")
            assert other.evaluate("document.documentElement.scrollWidth <= innerWidth"), (scheme, width)
            last = other.locator(".bar > *").last.bounding_box()
            assert last is not None and last["x"] + last["width"] <= width, (scheme, width)
            context.close()
