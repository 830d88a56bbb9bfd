"""Pictures of the pages for README, from runs of the packaged order desk: `make screenshots`.

A scripted expert makes good runs, and the same expert with slips makes others, so that every screen has something to judge.
"""

import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from agentalign.config.project import Project
from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, ToolCall
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy, PolicyTurn, TurnRequest
from agentalign.scoring.stored import score_stored
from agentalign.store.store import Store
from agentalign.ui.app import create_app

HERE = Path(__file__).parent
SIZE = (1280, 720)
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


class HastyPolicy:
    """The expert with slips: it promises instead of acting, gets a digit wrong, and writes calls that cannot be read."""

    name = "hasty"
    tokens_digest = ""

    def __init__(self, expert: ExpertPolicy) -> None:
        self.expert = expert
        self.finish, self.runs_at_once = expert.finish, expert.runs_at_once

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        """The expert's turns, some of them spoilt, the same ones every time."""
        turns = self.expert.act(requests)
        return [_spoilt(turn, random.Random(f"{r.task.id} {len(r.messages)}")) for r, turn in zip(requests, turns, strict=True)]


def _spoilt(turn: PolicyTurn, chance: random.Random) -> PolicyTurn:
    slip = chance.random()
    message = turn.message
    if message is None or not message.tool_calls or slip > 0.5:
        return turn
    return turn._replace(message=_slip(message, slip))


def _slip(message: Message, slip: float) -> Message:
    call = message.tool_calls[0]
    if slip < 0.25:
        return Message(role="assistant", content="All done! I have taken care of that for you. Is there anything else?")
    if slip < 0.33:
        return Message(
            role="assistant", content=f'<tool_call>\n{{"name": "{call.name}", "arguments": {{', malformed="the JSON of the call ends early"
        )
    wrong = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), call.arguments, count=1)
    return message.model_copy(update={"tool_calls": (ToolCall(id=call.id, name=call.name, arguments=wrong),)})


def fill(project: Project) -> Taskset:
    """Runs by both, scored by the taskset's checks, some rated."""
    taskset = load_taskset("order_desk", project.tasks)
    with Store(project.store_url) as store, WorkerPool(taskset, size=2) as pool:
        jobs = choose_jobs(taskset, "train", limit=40)
        expert = ExpertPolicy(pool)
        collect(store, taskset, expert, jobs, pool=pool)
        collect(store, taskset, HastyPolicy(expert), jobs, pool=pool)
        score_stored(store, taskset, pool=pool)
        key = taskset.criterion("tone").key
        rated = store.runs(limit=60).rows[3::7]
        store.add_scores([Score(trajectory=row.id, criterion=key, value=4, rater="rater", rater_kind="human") for row in rated])
    return taskset


@contextmanager
def serving(project: Project, rater: str) -> Iterator[str]:
    """The pages of a project on a free port, in a thread."""
    server = uvicorn.Server(uvicorn.Config(create_app(project, rater=rater), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def shoot(browser: Browser, url: str, scheme: str, suffix: str) -> None:
    """One picture of each screen."""
    context = browser.new_context(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="dark" if scheme == "dark" else "light")
    page = context.new_page()
    page.goto(url + "/#/runs?taskset=order_desk")
    page.wait_for_selector("table.runs tbody tr")
    page.keyboard.press("j")
    _save(page, f"list{suffix}")
    page.goto(url + "/#/runs?policy=hasty&family=latest_tracking")
    page.wait_for_selector(".filters select.set >> nth=1")
    page.click("table.runs tbody tr:first-child .request a")
    page.wait_for_selector(".card.active")
    page.keyboard.press("3")
    page.keyboard.press("2")
    page.wait_for_selector('.save-state[data-kind="saved"]')
    page.keyboard.press("e")
    _save(page, f"run{suffix}")
    # Every other screen that the bar leads to, so that a new one is never forgotten.
    for screen in page.eval_on_selector_all(".bar nav a", "(links) => links.map((link) => link.dataset.screen)"):
        if screen != "runs":
            page.goto(f"{url}/#/{screen}?taskset=order_desk")
            page.wait_for_selector(f'.aa[data-view="{screen}"]')
            page.wait_for_timeout(800)  # what a screen reads after it is shown
            _save(page, f"{screen}{suffix}")
    context.close()


def _save(page: Page, name: str) -> None:
    path = HERE / f"{name}.png"
    page.wait_for_timeout(200)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Pictures of every screen in both colour schemes, into the folder of this file."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        project = Project.create(Path(folder))
        fill(project)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_FLAGS)
        with serving(project, "rater") as url:
            shoot(browser, url, "light", "")
            shoot(browser, url, "dark", "-dark")
        browser.close()


if __name__ == "__main__":
    main()
