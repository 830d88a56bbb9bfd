"""Pictures of the pages for README, from runs of the packaged order desk: `make screenshots`.

A scripted expert makes good runs, and the same expert with slips makes others, so that every screen has something to judge; three people
have rated some of them, and a base of toy size has been trained on the toy desk of the tests. README's pictures are kept in git, the
others are only made.
"""

import random
import re
import sys
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
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.recipes import sft
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, ToolCall
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy, PolicyTurn, TurnRequest
from agentalign.scoring.stored import score_stored
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui.app import create_app

HERE = Path(__file__).parent
FIXTURES = HERE.parents[1] / "tests" / "fixtures"
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


def fill(project: Project) -> None:
    """Runs by both, scored by the taskset's checks, some rated and some waiting to be; and a training."""
    taskset = load_taskset("order_desk", project.tasks)
    with Store(project.store_url) as store, WorkerPool(taskset, size=2) as pool:
        jobs = choose_jobs(taskset, "train", limit=40)
        expert = ExpertPolicy(pool)
        collect(store, taskset, expert, jobs, pool=pool)
        collect(store, taskset, HastyPolicy(expert), jobs, pool=pool)
        score_stored(store, taskset, pool=pool)
        _rate(store, taskset)
    (project.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    toy = load_taskset("toy_desk", project.tasks)
    with Store(project.store_url) as store, WorkerPool(toy) as pool:
        collect(store, toy, ExpertPolicy(pool), choose_jobs(toy, "train", limit=60), pool=pool)
        score_stored(store, toy, pool=pool)
    tiny = {"base": str(FIXTURES / "tiny"), "quantization": "none", "lora_r": 4, "lora_alpha": 8.0}
    sft.run(SFTConfig(taskset="toy_desk", **tiny, max_steps=30, eval_every_steps=10, eval_tasks=12), project)


def _rate(store: Store, taskset: Taskset) -> None:
    """Three people mark the tone of runs: ada is sure, bob often differs, the one at the page marked a few. Two compare runs."""
    chance = random.Random(0)
    tone = taskset.criterion("tone").key
    rows = store.runs(RunFilter(taskset="order_desk"), limit=80).rows
    marks, pairs = [], []
    for number, row in enumerate(rows[:48]):
        right = 2 + number % 4
        people = [("ada", 0.1), ("bob", 0.5), *([("rater", 0.2)] if number % 5 == 0 else [])]
        for person, noise in people:
            value = right if chance.random() > noise else chance.randint(1, 5)
            marks.append(Score(trajectory=row.id, criterion=tone, value=value, rater=person, rater_kind="human"))
    by_task: dict[str, dict[str, str]] = {}
    for row in rows:
        by_task.setdefault(row.task_id or "", {})[row.policy] = row.id
    for made in list(by_task.values())[:24]:
        for person in ("ada", "bob"):
            better, other = sorted(made.values(), key=lambda id: (id != made["expert"]) != (chance.random() < 0.25))
            items = (Item(better), Item(other))
            left = chance.choice(items).trajectory
            pairs.append(Preference(taskset="order_desk", items=items, left=left, source="human", rater=person))
    store.add_scores(marks)
    store.add_preferences(pairs)
    store.queue_items.add([row.id for row in rows[50:62]], overlap=2)


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
    _show(page, "runs?policy=hasty&family=latest_tracking", "table.runs tbody tr")
    page.click("table.runs tbody tr:first-child .request a")
    page.wait_for_selector(".card.active")
    page.keyboard.press("3")
    page.keyboard.press("2")
    page.wait_for_selector('.save-state[data-kind="saved"]')
    page.keyboard.press("e")
    _save(page, f"run{suffix}")
    # Every other screen that the bar leads to, so that a new one is never forgotten.
    for screen in page.eval_on_selector_all(".bar nav a", "(links) => links.map((link) => link.dataset.screen)"):
        if screen == "play":
            _play(page, suffix)
        elif screen != "runs":
            _show(page, f"{screen}?taskset=order_desk", FILLED.get(screen, ".view"))
            _save(page, f"{screen}{suffix}")
            if screen in INSIDE:
                link, filled = INSIDE[screen]
                page.click(link)
                page.wait_for_selector(filled)
                _save(page, f"{screen}-one{suffix}")
    _show(page, "training/new", "#aa-taskset")
    _save(page, f"training-new{suffix}")
    page.goto(url + "/login")
    page.wait_for_selector("input[type=password]")
    _save(page, f"login{suffix}")
    context.close()


def _play(page: Page, suffix: str) -> None:
    """The playground's front, a call that is being changed, and two sides before the vote. What one scheme began serves the other."""
    _show(page, "play", ".play-model")
    if not page.locator(".play-model .chip.good").count():
        page.click(".play-model button.main")
    page.wait_for_selector(".new-chat", timeout=600_000)
    _save(page, f"play{suffix}")
    # One that says all there is to say, for the agent to call its tool at once.
    task = next(task.id for task in load_taskset(FIXTURES / "toy_desk").tasks("train") if task.family != "unclear")
    known = page.eval_on_selector_all(".chats a", "(links) => links.map((link) => link.hash.slice(2)).reverse()")
    for number, (name, there) in enumerate((("one", ".call-wait.asked"), ("two", ".choices button"))):
        if known:
            _show(page, known[number], there)
        else:
            _show(page, "play", ".new-chat")
            page.set_checked('input[name="two"]', name == "two")
            page.set_checked('input[name="ask"]', name == "one")
            page.fill('input[name="task"]', task)
            page.click(".new-chat button.main")
        page.wait_for_selector(there, timeout=600_000)
        page.wait_for_selector(".speak button:text('Stop')", state="hidden", timeout=600_000)
        if name == "one":
            page.keyboard.press("e")
            page.wait_for_selector("form.call-form")
        _save(page, f"play-{name}{suffix}")


FILLED = {"queue": ".timeline .entry", "compare": ".pair .side", "training": "table.trainings tbody tr", "agreement": ".matrix a.cell"}
"""What stands on a screen when it has read what it shows."""
INSIDE = {"training": ("table.trainings tbody tr a", ".charts svg"), "agreement": (".matrix a.cell", ".view-agreement-cases")}
"""Screens that lead to one more: the first link, and what stands there."""


def _show(page: Page, address: str, filled: str) -> None:
    if page.evaluate("location.hash") != f"#/{address}":  # else nothing is shown anew
        before = page.evaluate("window.agentalignShown")
        page.evaluate("(to) => { location.hash = to; }", f"#/{address}")
        page.wait_for_function("(before) => window.agentalignShown > before", arg=before)
    page.wait_for_selector(filled)


def _save(page: Page, name: str) -> None:
    path = HERE / f"{name}.png"
    page.wait_for_timeout(300)  # what a screen reads after it is shown
    page.screenshot(path=path)
    # A palette makes a third of the bytes; the octree is the way to one that takes no minutes.
    Image.open(path).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stderr.write(f"{path.name}: {path.stat().st_size // 1024} KiB\n")


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
