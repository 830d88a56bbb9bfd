"""A store with any number of runs, made in minutes: a thousand texts, each with numbers of its own.

`Store.add` hashes and checks every run, and SQLite's text index is faster made at once than row by row; neither is what is measured
here. So rows are written straight into the tables, and the index is built at the end. Ids are made up: `agentalign check` would say so.
"""

import hashlib
import random
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select

from agentalign.records.base import now
from agentalign.records.criterion import Criterion
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory
from agentalign.store import rows, tables
from agentalign.store.database import open_database
from agentalign.store.rows import Row
from agentalign.store.store import Store

WORDS = ["order", "parcel", "refund", "cancel", "address", "invoice", "delivery", "gift", "card", "status", "account", "email", "late"]
TONE = Criterion(name="tone", description="Is the agent friendly?", scale=(1, 5))
CHUNK = 10_000
TEXTS = 1000
ORDER = "W0000000"
"""Stands for the run's own order in a text that many runs share; seven digits, as the orders have."""
QUEUED = 10_000
"""Runs that wait in the queue."""


class Shape(NamedTuple):
    """What runs of one text have in common."""

    short: Row
    record: str
    search: str
    tool: str


def shape(number: int, chance: random.Random) -> Shape:
    """A run of five messages, about nine hundred characters."""
    call = ToolCall(id="c", name=f"tool_{chance.randrange(9)}", arguments=f'{{"order": "{ORDER}"}}')
    messages = (
        Message(role="system", content="You are the support agent of a shop."),
        Message(role="user", content=" ".join(chance.choices(WORDS, k=30)) + f" {ORDER}"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content=" ".join(chance.choices(WORDS, k=40)), tool_call_id="c", error=number % 50 == 0),
        Message(role="assistant", content=" ".join(chance.choices(WORDS, k=30))),
    )
    run = Trajectory(taskset="desk", messages=messages, origin=Origin(kind="rollout", reference="desk", task="t"), created=now())
    body = rows.body_row(run)
    return Shape(rows.trajectory_row(run), body["record"], body["search"], call.name)


def fill(url: str, count: int) -> None:
    """Add runs until there are `count`; every twentieth is judged, a few of those by two who disagree."""
    Store(url).close()
    database = open_database(url)
    chance = random.Random(0)
    shapes = [shape(number, chance) for number in range(TEXTS)]
    with database.read() as connection:
        there = connection.execute(select(func.max(tables.trajectories.c.seq))).scalar() or 0
    began = time.perf_counter()
    for start in range(there, count, CHUNK):
        end = min(count, start + CHUNK)
        with database.write() as connection:
            _add(connection, shapes, start, end)
        sys.stderr.write(f"\r{end:,} runs, {(end - there) / (time.perf_counter() - began):,.0f} a second")
    if there < count:
        with database.write() as connection:
            _index(connection)
        sys.stderr.write("\n")
    with database.read() as connection:
        newest = select(tables.trajectories.c.id).order_by(tables.trajectories.c.seq.desc()).limit(QUEUED)
        waiting = list(connection.execute(newest).scalars())
    database.close()
    with Store(url) as store:
        if not store.queue_items.items(limit=1):
            store.queue_items.add(waiting, overlap=3)


def _add(connection: Connection, shapes: list[Shape], start: int, end: int) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DROP TRIGGER IF EXISTS run_text_added")
    made = [(number + 1, shapes[number % TEXTS], f"W{number:07d}") for number in range(start, end)]
    connection.execute(insert(tables.trajectories), [{**one.short, **_place(seq - 1), "seq": seq} for seq, one, _ in made])
    connection.execute(insert(tables.bodies), list(_bodies(made)))
    connection.execute(insert(tables.calls), [{"tool": one.tool, "trajectory": seq} for seq, one, _ in made])
    judged = [seq for seq, _, _ in made if not seq % 20]
    if judged:
        verdicts = [{"criterion": TONE.key, "trajectory": s, "value": 1.0 + s // 20 % 5, "spread": float(not s % 400)} for s in judged]
        connection.execute(insert(tables.verdicts), verdicts)


def _place(number: int) -> Row:
    """Where a run stands in the list, and what filters find it."""
    return {
        "id": hashlib.sha256(f"run {number}".encode()).hexdigest()[:32],
        "content_digest": hashlib.sha256(f"text {number}".encode()).hexdigest()[:32],
        "taskset": f"desk_{number % 3}",
        "task_id": f"t{number // 4}",
        "family": f"family_{number % 25}",
        "split": "train" if number % 10 else "dev",
        "policy": f"desk@{number % 40}",
        "stop_reason": (StopReason.ANSWERED if number % 1000 else StopReason.ERROR).value,
    }


def _bodies(made: list[tuple[int, Shape, str]]) -> Iterator[Row]:
    for seq, one, order in made:
        record = one.record.replace(ORDER, order)
        digest = hashlib.sha256(record.encode()).hexdigest()[:32]
        yield {"trajectory": seq, "record": record, "digest": digest, "search": one.search.replace(ORDER.lower(), order.lower())}


def _index(connection: Connection) -> None:
    """SQLite's text index of all runs, and the trigger that keeps it; PostgreSQL keeps its own."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("INSERT INTO run_text(run_text) VALUES ('rebuild')")
        added = "INSERT INTO run_text(rowid, search) VALUES (new.trajectory, new.search);"
        connection.exec_driver_sql(f"CREATE TRIGGER IF NOT EXISTS run_text_added AFTER INSERT ON bodies BEGIN {added} END")
