"""Where the time of a run's page goes: counts, which hold on any machine, and Chromium's own split of its milliseconds.

Server and browser share this process's machine, so milliseconds are upper bounds; the ratio of two columns of one line is not.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import uvicorn
from playwright.sync_api import CDPSession, Page, sync_playwright
from serving import long_run
from sqlalchemy import event
from sqlalchemy.engine import Engine

from agentalign.config.project import Project
from agentalign.store.store import Store
from agentalign.ui.app import create_app

RUNS = 6
DONE = """async () => {
  const before = document.querySelector(".timeline");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  while (document.querySelector(".timeline") === before || !document.querySelector(".timeline")) await new Promise(requestAnimationFrame);
}"""
COLUMNS = ["phase", "requests", "kilobytes", "statements", "layouts", "script/ms", "style/ms", "layout/ms", "server/ms"]


class Watch(NamedTuple):
    """What is counted while something is done."""

    page: Page
    devtools: CDPSession
    statements: list[str]
    answers: list[int]

    def line(self, name: str, act: Callable[[], object]) -> None:
        """Do it, wait until nothing more comes of it, and print what it took."""
        self.statements.clear()
        self.answers.clear()
        before, cpu = self._figures(), time.process_time()
        act()
        self.page.wait_for_timeout(1500)
        after, cpu = self._figures(), time.process_time() - cpu
        took = {key: value - before[key] if after["Documents"] == before["Documents"] else value for key, value in after.items()}
        times = [1000 * took[key] for key in ("ScriptDuration", "RecalcStyleDuration", "LayoutDuration")]
        counts = [len(self.answers), sum(self.answers) / 1024, len(self.statements), took["LayoutCount"]]
        print(f"{name:<34}" + "".join(f"{value:>11.0f}" for value in [*counts, *times, 1000 * cpu]), flush=True)

    def _figures(self) -> dict[str, float]:
        return {one["name"]: one["value"] for one in self.devtools.send("Performance.getMetrics")["metrics"]}


def print_phases(project: Project, mark: str, next_run: str) -> None:
    """A line per phase: the page from nothing and again, the next run of the list and of the queue, and a mark."""
    with Store(project.store_url) as store:
        for n_steps in (100, 500):
            store.add([long_run(n_steps, sample) for sample in range(RUNS)])
        newest = [row.id for row in store.runs(limit=2 * RUNS).rows]
        store.queue_items.add(newest, overlap=1)
    with _served(project) as home, _watched() as watch:
        page = watch.page
        print(f"{COLUMNS[0]:<34}" + "".join(f"{name:>11}" for name in COLUMNS[1:]), flush=True)

        def load() -> None:
            page.goto(f"{home}/run/{newest[-1]}")
            page.wait_for_selector(".timeline .entry")

        watch.line("the page of 100 steps, from nothing", load)
        page.goto("about:blank")
        watch.line("the same again", load)
        page.goto(f"{home}/#/runs")
        page.wait_for_selector("table.runs tbody tr")
        for n_steps, first in ((100, newest[RUNS]), (500, newest[0])):
            page.evaluate("(id) => { location.hash = '#/run/' + id; }", first)
            page.wait_for_selector(".timeline .entry")
            page.wait_for_timeout(1500)
            watch.line(f"next run of {n_steps} steps, in a list", lambda: page.evaluate(next_run))
            watch.line(f"key to saved, {n_steps} steps", lambda: page.evaluate(mark, "4"))
        page.goto(f"{home}/#/queue")
        page.wait_for_selector(".view-queue .timeline .entry")
        page.evaluate(mark, "5")  # the run may be one that was marked above, and the same mark again saves nothing
        page.wait_for_timeout(1500)
        watch.line("done and the next, in the queue", lambda: page.evaluate(DONE))


@contextmanager
def _served(project: Project) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(project), port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def _watched() -> Iterator[Watch]:
    statements: list[str] = []
    answers: list[int] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        devtools.send("Network.enable")
        devtools.on(
            "Network.loadingFinished", lambda told: answers.append(told["encodedDataLength"]) if told["encodedDataLength"] else None
        )
        yield Watch(page, devtools, statements, answers)
        chromium.close()
    event.remove(Engine, "before_cursor_execute", note)
