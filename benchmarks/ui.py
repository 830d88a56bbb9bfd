"""How quick the pages are: the list, the search and saves over a million runs, and the page of a run in a browser.

    python benchmarks/ui.py                          100,000 runs, minutes
    python benchmarks/ui.py --full                   1,000,000 runs
    python benchmarks/ui.py --store /data/many.db    keep the store, and use it again: runs that are there are not made anew
    python benchmarks/ui.py --browser                also the page of runs of 100 and 500 steps, in Chromium
    python benchmarks/ui.py --phases                 only where that page's time goes: requests, statements, nodes, script, style, layout

Times mean something only on a machine that does nothing else: beside a load above 1 per core they are upper bounds, and each line says so.
Every query goes through the routes' own functions; marks go over HTTP to the real server.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agentalign.config.project import Project
from agentalign.records.criterion import Score
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui.auth import Person
from agentalign.ui.listing import ListQuery, list_page

sys.path.insert(0, str(Path(__file__).parent / "pages"))
from many_runs import TONE, fill
from serving import long_run, make_desk, make_people, rated, serving

BUDGETS = {
    "list": 150.0,
    "mark": 50.0,
    "mark of one of 16": 100.0,
    "run of 100 steps": 100.0,
    "run of 500 steps": 250.0,
    "cold load": 2000.0,
}
"""Milliseconds at the 95th percentile; "cold load" from an empty browser."""


PACE = 300
"""Milliseconds between two keys of a person who does not read; without a pause each key would wait for the drawing of the one before."""

QUERIES = {
    "newest": {},
    "taskset": {"taskset": "desk_1"},
    "taskset and family": {"taskset": "desk_1", "family": "family_7"},
    "rare stop reason": {"stop_reason": "error"},
    "policy and split": {"policy": "desk@7", "split": "dev"},
    "tool": {"tool": "tool_3"},
    "tool and family": {"tool": "tool_3", "family": "family_7"},
    "errors": {"errors": True},
    "unrated by me": {"unrated": True},
    "score at most 2": {"criterion": TONE.key, "score_at_most": 2.0},
    "disagreement": {"disagreement": 0.0},
    "common word": {"text": "refund"},
    "two words that stand together": {"text": "gift card"},
    "one order": {"text": "w12345"},
    "common word in a family": {"text": "refund", "family": "family_7"},
    "no such text": {"text": "zebra crossing"},
}


def timed(times: int, act: Callable[[int], object]) -> list[float]:
    """Milliseconds of each of so many calls; the first, which warms caches, is left out."""
    found = []
    for number in range(times + 1):
        start = time.perf_counter()
        act(number)
        found.append((time.perf_counter() - start) * 1000)
    return found[1:]


def say(name: str, found: list[float], budget: str) -> None:
    """One line: median and 95th percentile, and whether the budget holds."""
    p95 = statistics.quantiles(found, n=20)[-1] if len(found) > 1 else found[0]
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"   an upper bound: load {load:.1f} on {cores} cores" if load > cores else ""
    held = "ok  " if p95 <= BUDGETS[budget] else "OVER"
    print(f"{name:<38}{statistics.median(found):>9.1f} ms median{p95:>9.1f} ms p95   {held} {BUDGETS[budget]:.0f}{busy}", flush=True)


def store_times(url: str, times: int) -> None:
    """List, search, choices and save, as a rater and as a lead ask."""
    with Store(url) as store:
        people = {"rater": Person("rater-0", "rater"), "lead": Person("lead", "lead")}
        for role, person in people.items():
            for name, fields in QUERIES.items():
                query = ListQuery.model_validate(fields)

                def ask(_: int, query: ListQuery = query, person: Person = person) -> object:
                    return list_page(store, lambda _taskset: [TONE], query, person)

                say(f"{role}: {name}", timed(times, ask), "list")
        say("choices of a taskset", timed(times, lambda _: store.choices("desk_1")), "list")
        queue, people_at_work = store.queue(), iter(range(10**9))
        say("a rater takes the next run", timed(times, lambda _: queue.take(f"at-work-{next(people_at_work)}")), "list")
        say("a rater's progress", timed(times, lambda _: store.queue_items.progress("rater-0")), "list")
        ids = [row.id for row in store.runs(RunFilter(), limit=times + 1).rows]

        def save(number: int) -> None:
            store.add_scores([Score(trajectory=ids[number], criterion=TONE.key, value=3, rater="rater", rater_kind="human")])

        say("save of a mark, in this process", timed(times, save), "mark")


def mark_times(project: Project, url: str, times: int) -> None:
    """Marks over HTTP, of one person and of sixteen at once, each one a second."""
    people = make_people(url, 16)
    with Store(url) as store:
        store.add(runs := [long_run(10, sample) for sample in range(400)])
    ids = [run.id for run in runs]
    with serving(project, url, "--team") as port:
        say("mark to acknowledgement, alone", rated(port, people[:1], ids, times), "mark")
        say("mark to acknowledgement, 16 raters", rated(port, people, ids, times), "mark of one of 16")


def browser_times(project: Project, url: str, times: int) -> None:
    """Key `n` to the next run on the screen, a key to "saved", and the page from nothing."""
    from playwright.sync_api import sync_playwright

    with Store(url) as store:
        for n_steps in (100, 500):
            store.add([long_run(n_steps, sample) for sample in range(times + 2)])
        newest = [row.id for row in store.runs(limit=2 * times + 4).rows]
    with serving(project, url) as port, sync_playwright() as playwright:
        page_of = f"http://127.0.0.1:{port}"
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])

        def at_a_pace(script: str, key: str | None = None) -> float:
            page.wait_for_timeout(PACE)
            return float(page.evaluate(script, key))

        for n_steps, first in ((500, newest[0]), (100, newest[times + 2])):
            page = chromium.new_page()
            page.goto(f"{page_of}/#/runs")
            page.wait_for_selector("table.runs tbody tr")
            page.evaluate("(id) => { location.hash = '#/run/' + id; }", first)
            page.wait_for_selector(".timeline .entry")
            say(f"next run of {n_steps} steps, while the page still loads", [float(page.evaluate(NEXT_RUN))], f"run of {n_steps} steps")
            page.wait_for_load_state("networkidle")
            say(f"next run of {n_steps} steps", [at_a_pace(NEXT_RUN) for _ in range(times - 1)], f"run of {n_steps} steps")
            say(f"key to saved, run of {n_steps} steps", [at_a_pace(MARK, str(1 + n % 5)) for n in range(times)], "mark")
            page.close()

        def cold(_number: int) -> None:
            context = chromium.new_context()
            page = context.new_page()
            page.goto(f"{page_of}/run/{newest[-1]}")
            page.wait_for_selector(".timeline .entry")
            context.close()

        say("cold load of a run of 100 steps", timed(times, cold), "cold load")
        chromium.close()


# From the key to the frame in which the next run stands.
NEXT_RUN = """async () => {
  const before = window.agentalignShown;
  const start = performance.now();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
  while (window.agentalignShown === before) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""

# From the key to the server's acknowledgement, as the bar on top tells it.
MARK = """async (key) => {
  const bar = document.querySelector(".save-state");
  const start = performance.now();
  let saving = false;
  document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (;;) {
    if (bar.dataset.kind === "saving") saving = true;
    if (saving && bar.dataset.kind === "saved") return performance.now() - start;
    if (performance.now() - start > 60000) throw new Error("the mark was not saved: " + bar.textContent);
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
}"""


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million runs instead of 100,000")
    parser.add_argument("--runs", type=int, help="so many runs")
    parser.add_argument("--store", type=Path, help="file of the store; it is kept")
    parser.add_argument("--times", type=int, default=40, help="calls of each query; default: %(default)s")
    parser.add_argument("--browser", action="store_true", help="the page of a run too")
    parser.add_argument("--phases", action="store_true", help="only where the page's time goes")
    arguments = parser.parse_args()
    count = arguments.runs or (1_000_000 if arguments.full else 100_000)
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder))
        make_desk(project)
        if arguments.phases:
            from phases import print_phases  # needs a browser's driver

            print_phases(project, MARK, NEXT_RUN)
            return
        file = (arguments.store or Path(folder) / "store.db").absolute()
        url = os.environ.get("AGENTALIGN_BENCH_DATABASE_URL") or f"sqlite:///{file}"
        start = time.perf_counter()
        fill(url, count)
        size = f", {file.stat().st_size / 2**20:,.0f} MiB" if url.startswith("sqlite") else ""
        print(f"{count:,} runs{size}, filled in {time.perf_counter() - start:.0f} s", flush=True)
        store_times(url, arguments.times)
        mark_times(project, url, min(arguments.times, 20))
        if arguments.browser:
            browser_times(project, url, min(arguments.times, 20))


if __name__ == "__main__":
    main()
