"""How quick the pages are: the list, the search and a save over a million runs, and the page of a run in a browser.

    python benchmarks/ui.py               100,000 runs, minutes
    python benchmarks/ui.py --full        1,000,000 runs
    python benchmarks/ui.py --browser     also the page of runs of 100 and 500 steps, in Chromium

Times mean something only on a machine that does nothing else: beside a load above 1 per core they are printed as "not measured".
The runs are small (six messages, about a thousand characters) and their rows are written straight into the tables: `Store.add` hashes and
checks every run, which is not what is measured here. Every query goes through the routes' own functions.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import insert

from agentalign.config.project import Project
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory
from agentalign.store import rows, tables
from agentalign.store.database import open_database
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui.listing import ListQuery, list_page

WORDS = [
    "order",
    "parcel",
    "refund",
    "cancel",
    "address",
    "invoice",
    "delivery",
    "gift",
    "card",
    "status",
    "account",
    "email",
    "please",
    "late",
]
TONE = Criterion(name="tone", description="Is the agent friendly?", scale=(1, 5))
CHUNK = 5000
BUDGETS = {"list": 150.0, "save": 50.0, "run of 100 steps": 100.0, "run of 500 steps": 250.0, "cold load": 2000.0}
"""Milliseconds at the 95th percentile."""


def small_run(number: int, chance: random.Random) -> Trajectory:
    """The run of this number, always the same."""
    said = " ".join(chance.choices(WORDS, k=30)) + f" W{number}"
    call = ToolCall(id="c", name=f"tool_{chance.randrange(9)}", arguments=f'{{"order": "W{number}"}}')
    messages = (
        Message(role="system", content="You are the support agent of a shop."),
        Message(role="user", content=said),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content=" ".join(chance.choices(WORDS, k=40)), tool_call_id="c", error=number % 50 == 0),
        Message(role="assistant", content=" ".join(chance.choices(WORDS, k=30))),
    )
    return Trajectory(
        taskset=f"desk_{number % 3}",
        messages=messages,
        origin=Origin(kind="rollout", reference=f"desk@{number % 40}", task=f"t{number // 4}", sample=number % 4),
        task_id=f"t{number // 4}",
        family=f"family_{number % 25}",
        split="train" if number % 10 else "dev",
        stop_reason=StopReason.ANSWERED if number % 1000 else StopReason.ERROR,
    )


def fill(url: str, count: int) -> None:
    """Rows of `count` runs; every twentieth is rated, a few of those by two who disagree."""
    Store(url).close()
    database = open_database(url)
    chance = random.Random(0)
    for start in range(0, count, CHUNK):
        runs = [small_run(number, chance) for number in range(start, min(count, start + CHUNK))]
        with database.write() as connection:
            seqs = range(start + 1, start + 1 + len(runs))
            connection.execute(insert(tables.trajectories), [{"seq": s, **rows.trajectory_row(r)} for s, r in zip(seqs, runs, strict=True)])
            connection.execute(insert(tables.bodies), [{"trajectory": s, **rows.body_row(r)} for s, r in zip(seqs, runs, strict=True)])
            called = [{"tool": r.messages[2].tool_calls[0].name, "trajectory": s} for s, r in zip(seqs, runs, strict=True)]
            connection.execute(insert(tables.calls), called)
            verdicts = [
                {"criterion": TONE.key, "trajectory": s, "value": 1.0 + s % 5, "spread": float(s % 400 == 0)} for s in seqs if not s % 20
            ]
            connection.execute(insert(tables.verdicts), verdicts)
        print(f"\rfilled {start + len(runs):,}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    database.close()


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
    p95 = statistics.quantiles(found, n=20)[-1]
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"   not measured: load {load:.1f} on {cores} cores" if load > cores else ""
    print(f"{name:<34}{statistics.median(found):>9.1f} ms median{p95:>9.1f} ms p95   budget {BUDGETS[budget]:.0f}{busy}")


def store_times(url: str, times: int) -> None:
    """List, search, choices and save."""
    with Store(url) as store:
        for name, fields in QUERIES.items():
            query = ListQuery.model_validate(fields)
            say(name, timed(times, lambda _, query=query: list_page(store, lambda _taskset: [TONE], query, "rater")), "list")
        say("choices of a taskset", timed(times, lambda _: store.choices("desk_1")), "list")
        ids = [row.id for row in store.runs(RunFilter(), limit=times + 1).rows]

        def save(number: int) -> None:
            store.add_scores([Score(trajectory=ids[number], criterion=TONE.key, value=3, rater="rater", rater_kind="human")])

        say("save of a mark", timed(times, save), "save")


def long_run(n_steps: int, sample: int) -> Trajectory:
    """A run of so many calls, about 650 characters each."""
    messages = [Message(role="user", content="Go on.")]
    for step in range(n_steps):
        call = ToolCall(id=f"c{step}", name="lookup", arguments=f'{{"order": "W{step}", "note": "{"x" * 100}"}}')
        messages += [Message(role="assistant", content=f"Step {step}.", tool_calls=(call,))]
        messages += [Message(role="tool", content="line of a result\n" * 30, tool_call_id=f"c{step}", name="lookup")]
    return Trajectory(taskset="desk", messages=tuple(messages), origin=Origin(kind="rollout", reference="base", sample=sample))


def browser_times(times: int) -> None:
    """Key `n` to the next run on the screen, and the page from nothing."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from agentalign.ui.app import create_app

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        project = Project.create(Path(folder))
        with Store(project.store_url) as store:
            for n_steps in (100, 500):
                store.add([long_run(n_steps, sample) for sample in range(times + 2)])
        server = uvicorn.Server(uvicorn.Config(create_app(project, rater="rater"), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        with Store(project.store_url) as store:
            newest = store.runs(limit=2 * times + 4).rows
        for n_steps, first in ((500, newest[0]), (100, newest[times + 2])):
            page = chromium.new_page()
            page.goto(f"{url}/#/runs")
            page.wait_for_selector("table.runs tbody tr")
            page.evaluate("(id) => { location.hash = '#/run/' + id; }", first.id)
            page.wait_for_selector(".timeline .entry")
            found = [float(page.evaluate(NEXT_RUN)) for _ in range(times)]
            say(f"next run of {n_steps} steps", found, f"run of {n_steps} steps")
            page.close()

        def cold(_number: int) -> None:
            context = chromium.new_context()
            page = context.new_page()
            page.goto(f"{url}/run/{newest[-1].id}")
            page.wait_for_selector(".timeline .entry")
            context.close()

        say("cold load of a run of 100 steps", timed(times, cold), "cold load")
        chromium.close()
        server.should_exit = True
        thread.join()


# From the key to the frame in which the next run stands.
NEXT_RUN = """async () => {
  const before = window.agentalignShown;
  const start = performance.now();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
  while (window.agentalignShown === before) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a million runs instead of 100,000")
    parser.add_argument("--runs", type=int, help="so many runs")
    parser.add_argument("--times", type=int, default=40, help="calls of each query; default: %(default)s")
    parser.add_argument("--browser", action="store_true", help="the page of a run too")
    arguments = parser.parse_args()
    count = arguments.runs or (1_000_000 if arguments.full else 100_000)
    with tempfile.TemporaryDirectory() as folder:
        url = os.environ.get("AGENTALIGN_BENCH_DATABASE_URL") or f"sqlite:///{folder}/store.db"
        start = time.perf_counter()
        fill(url, count)
        size = (Path(folder) / "store.db").stat().st_size / 2**20 if url.startswith("sqlite") else float("nan")
        print(f"{count:,} runs, {size:,.0f} MiB, filled in {time.perf_counter() - start:.0f} s")
        store_times(url, arguments.times)
    if arguments.browser:
        browser_times(min(arguments.times, 20))


if __name__ == "__main__":
    main()
