"""The training screen in a real browser: a training is seen, started, watched and stopped there; hostile names stay text."""

import pytest
from playwright.sync_api import Page, expect

from agentalign.config.project import Project
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.metrics import write_row
from tests.small_browser import PATIENCE, page_fixture
from tests.small_project import TINY, make_scored

pytestmark = [pytest.mark.hard, pytest.mark.browser]
HOSTILE = "eval/family/<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_scored(tmp_path_factory.mktemp("project"))


page = page_fixture()


def test_a_training_is_started_watched_stopped_and_taken_up_in_the_page(page: Page, project: Project) -> None:
    page.goto("/#/training")
    page.wait_for_selector(".view-training .empty")
    page.keyboard.press("n")
    page.wait_for_selector("#aa-taskset")
    page.select_option("#aa-taskset", "toy_desk")
    page.locator(".rest summary").click()
    settings = {"base": TINY, "quantization": "none", "lora_r": "4", "max_steps": "400", "save_every_steps": "1"}
    for name, value in settings.items():
        page.fill(f"#aa-dial-{name}", value)
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    start = page.locator("button.start")
    expect(start).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".outcome dl")).to_contain_text("400")
    page.fill("#aa-dial-seed", "3")
    expect(start).to_have_count(0)  # other settings, other figures: nothing starts on stale ones
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    start.click()
    expect(page.locator('.run-head [data-state="running"]')).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".chart .line").first).to_be_visible(timeout=PATIENCE)
    stop = page.locator('[data-act="Stop"]')
    stop.focus()
    for _ in range(2):
        with page.expect_response(lambda answer: "/curves" in answer.url):
            pass
    page.wait_for_timeout(100)
    expect(stop).to_be_focused()  # a look at the training takes neither the focus nor a button that is held down
    page.keyboard.press("Enter")
    expect(page.locator('.run-head [data-state="stopped"]')).to_be_visible(timeout=PATIENCE)
    (training,) = Store(project.store_url).trainings()
    assert training.status == "stopped"
    assert training.seed == 3
    page.click('[data-act="Resume"]')
    expect(page.locator('.run-head [data-state="running"]')).to_be_visible(timeout=PATIENCE)
    page.click('[data-act="Stop"]')
    expect(page.locator('.run-head [data-state="stopped"]')).to_be_visible(timeout=PATIENCE)


def fill_settings(page: Page, seed: str) -> None:
    """The form of a new training, filled in; nobody is in a field."""
    page.goto("/#/training/new")
    page.reload()
    page.wait_for_selector("#aa-taskset")
    page.select_option("#aa-taskset", "toy_desk")
    page.locator(".rest summary").click()
    for name, value in {"base": TINY, "quantization": "none", "lora_r": "4", "max_steps": "4", "seed": seed}.items():
        page.fill(f"#aa-dial-{name}", value)
    page.keyboard.press("Escape")


def test_settings_that_change_while_it_looks_get_no_figures_of_before(page: Page) -> None:
    fill_settings(page, "5")
    page.keyboard.press("Enter")
    page.wait_for_selector("button.main:disabled")
    page.fill("#aa-dial-seed", "7")
    expect(page.locator("button.main:enabled")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("button.start")).to_have_count(0)
    expect(page.locator(".outcome")).to_contain_text("The settings were changed")
    expect(page.locator("#aa-dial-seed")).to_be_focused()


def test_why_a_training_did_not_begin_stands_on_its_page(page: Page, project: Project) -> None:
    fill_settings(page, "8")
    page.keyboard.press("Enter")
    start = page.locator("button.start")
    expect(start).to_be_visible(timeout=PATIENCE)
    with Store(project.store_url) as store:
        run = next(store.trajectories(RunFilter(origin_kind="expert", split="train")))
        store.forget([run.id], reason="a test")
    start.click()
    expect(page.locator('.run-head [data-state="stopped"]')).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".note-line")).to_have_text("ended before it began; its words say why")
    expect(page.locator(".about .log")).to_contain_text("was asked for, but these settings")


def test_a_metric_with_a_hostile_name_is_text(page: Page, project: Project) -> None:
    training = Store(project.store_url).trainings()[0]
    write_row(project.trainings / training.id / "metrics.jsonl", 500, {HOSTILE: 0.5})
    page.goto(f"/#/training/{training.id}")
    page.reload()
    page.locator(".figure-names button", has_text="<img").click()
    expect(page.locator(".chart figcaption b", has_text="<img")).to_be_visible(timeout=PATIENCE)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa img").count() == 0
