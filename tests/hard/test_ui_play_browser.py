"""The playground in a real browser, without a mouse: load, talk, change a call, stop, vote blind; hostile words stay text."""

import re

import pytest
from playwright.sync_api import Page, expect
from test_ui_browser import Server

from agentalign.config.project import Project
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from tests.small_browser import PATIENCE, page_fixture
from tests.small_play import clear_task, make_play

pytestmark = [pytest.mark.hard, pytest.mark.browser]
HOSTILE = "<img src=x onerror=window.pwned=1> ${window.pwned=1} \u202egnp.exe"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_play(tmp_path_factory.mktemp("project"))


opened = page_fixture()


@pytest.fixture(scope="module")
def page(opened: Page) -> Page:
    """With toy_desk@1 loaded."""
    opened.goto("/#/play")
    opened.locator("select.load").focus()
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.locator(".play-model .chip.good")).to_be_visible(timeout=PATIENCE)
    return opened


def state(page: Page, text: str) -> None:
    expect(page.locator(".chat-state")).to_contain_text(text, timeout=PATIENCE)


def rests(page: Page) -> None:
    """No side is at work."""
    expect(page.locator(".speak button", has_text="Stop")).to_be_hidden(timeout=PATIENCE)


def test_a_call_is_changed_and_the_chat_kept_by_keyboard(page: Page, project: Project) -> None:
    page.goto("/#/play")
    page.locator('input[name="task"]').fill(clear_task())
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
    expect(page.get_by_role("link", name="Open the run")).to_be_visible(timeout=PATIENCE)
    with Store(project.store_url) as store:
        (run,) = store.trajectories(RunFilter(origin_kind="chat"))
        assert [item.trajectory for item in store.queue_items.items(None, None)] == [run.id]
        assert [(score.criterion, score.value) for score in store.scores([run.id])] == [("tone@1", 5)]
        (correction,) = store.trajectories(RunFilter(origin_kind="correction"))
        assert "<img" in correction.messages[-1].tool_calls[0].arguments
    page.locator(".run-head a", has_text="Correction").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".corrected")).to_contain_text("<img src=x", timeout=PATIENCE)
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


def test_a_turn_is_written_again_and_another_chat_branches_off_by_keyboard(page: Page, project: Project) -> None:
    page.goto("/#/play")
    page.locator('input[name="two"]').uncheck()
    page.locator('input[name="tools"][value="live"]').check()
    page.locator('input[name="ask"]').uncheck()
    page.locator('textarea[name="words"]').fill("")
    page.locator(".new-chat button.main").focus()
    page.keyboard.press("Enter")
    state(page, "your turn")
    page.keyboard.press("x")
    expect(page.locator(".changes")).to_contain_text("turn rewritten", timeout=PATIENCE)
    rests(page)
    first = page.url
    page.keyboard.press("ArrowRight")
    expect(page.locator(".entry.step.at")).to_have_attribute("data-step", "0")
    page.keyboard.press("f")
    expect(page.locator(".run-head .relative")).to_contain_text("branched at step 0", timeout=PATIENCE)
    assert page.url != first
    words = page.get_by_label("Your words")
    assert words.input_value().startswith("I want a"), "what was said there is the person's to change"
    state(page, "your turn")
    words.fill("I want a blue ball.")
    page.keyboard.press("Enter")
    expect(page.locator(".entry.user pre")).to_have_text("I want a blue ball.", timeout=PATIENCE)
    expect(page.locator(".entry.step").first).to_be_visible(timeout=PATIENCE)
    rests(page)
    page.keyboard.press("Escape")  # out of the words
    page.keyboard.press("k")
    expect(page.locator(".notice")).to_contain_text("still open", timeout=PATIENCE)
    for address in (first, page.url):
        page.goto(address)
        page.reload()  # an address that differs behind # alone leaves the screen before it there for a while
        expect(page.locator(".chat-state")).to_contain_text(re.compile("your turn|no more"), timeout=PATIENCE)
        page.keyboard.press("k")
        expect(page.get_by_role("link", name="Open the run")).to_be_visible(timeout=PATIENCE)
    with Store(project.store_url) as store:
        (branch,) = (run for run in store.trajectories(RunFilter(origin_kind="chat")) if run.parent is not None)
        assert branch.parent is not None and store.trajectory(branch.parent[0]).origin.kind == "chat"


def test_a_page_whose_server_was_started_anew_says_so_and_keeps_what_was_typed(page: Page, project: Project) -> None:
    browser, server = page.context.browser, Server(project)
    assert browser is not None
    tab = browser.new_context(base_url=server.url).new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto("/#/play")
    tab.click(".play-model button.main")
    tab.wait_for_selector(".new-chat")
    tab.locator('input[name="ask"]').uncheck()
    tab.click(".new-chat button.main")
    state(tab, "your turn")
    words = tab.get_by_label("Your words")
    words.fill("Half a sen")
    server.stop()
    expect(tab.locator(".notice")).to_contain_text("does not answer", timeout=PATIENCE)
    server.start()
    state(tab, "the server was started anew, and this chat ended with it")
    expect(tab.locator(".notice")).to_be_hidden()
    expect(tab.locator(".speak button:visible").first).to_be_disabled()
    expect(tab.locator(".keep")).to_have_count(0)
    assert words.input_value() == "Half a sen"
    expect(tab.locator(".entry.step").first).to_be_visible()
    tab.close()
    server.stop()


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
