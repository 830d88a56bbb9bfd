"""The training screen in a real browser: a training is seen, started, watched and stopped there; hostile names stay text."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from agentalign.config.project import Project
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.scoring.stored import score_stored
from agentalign.store.store import Store
from agentalign.training.metrics import write_row
from agentalign.ui.screenshots.make import CHROMIUM_FLAGS, serving
from tests.small_project import FIXTURES, TINY

pytestmark = [pytest.mark.hard, pytest.mark.browser]
PATIENCE = 180_000
HOSTILE = "eval/family/<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project.create(tmp_path_factory.mktemp("project"))
    (found.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    taskset = load_taskset("toy_desk", found.tasks)
    with Store(found.store_url) as store, WorkerPool(taskset) as pool:
        collect(store, taskset, ExpertPolicy(pool), choose_jobs(taskset, "train", limit=30), pool=pool)
        score_stored(store, taskset, pool=pool)
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
        yield page
        browser.close()
        assert faults == [], "a script error, or a request to another server"


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
    page.click('[data-act="Stop"]')
    expect(page.locator('.run-head [data-state="stopped"]')).to_be_visible(timeout=PATIENCE)
    (training,) = Store(project.store_url).trainings()
    assert training.status == "stopped"
    assert training.seed == 3
    page.click('[data-act="Resume"]')
    expect(page.locator('.run-head [data-state="running"]')).to_be_visible(timeout=PATIENCE)
    page.click('[data-act="Stop"]')
    expect(page.locator('.run-head [data-state="stopped"]')).to_be_visible(timeout=PATIENCE)


def test_a_metric_with_a_hostile_name_is_text(page: Page, project: Project) -> None:
    (training,) = Store(project.store_url).trainings()
    write_row(project.trainings / training.id / "metrics.jsonl", 500, {HOSTILE: 0.5})
    page.goto(f"/#/training/{training.id}")
    page.reload()
    page.locator(".figure-names button", has_text="<img").click()
    expect(page.locator(".chart figcaption b", has_text="<img")).to_be_visible(timeout=PATIENCE)
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa img").count() == 0
