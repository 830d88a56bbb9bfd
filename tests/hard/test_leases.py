"""Fifty raters drain a queue of a thousand runs: never more hands on a run than are wanted, nobody twice, and what is dropped comes back.

The database itself keeps a diary of every change of an assignment, by a trigger that only these tests make; it is read from the beginning
afterwards, so that "never" means at no change, not at the moments when somebody looked. All times are the database's.
"""

import json
import random
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from sqlalchemy import text

from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.database import open_database
from agentalign.store.queue import Rules, clock
from agentalign.store.store import Store

pytestmark = pytest.mark.hard

RUNS, RATERS, OVERLAP, PROCESSES = 1000, 50, 3, 3
PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)
COMES_BACK_SECONDS = 10.0
"""After the end of its lease a dropped run is in other hands within this time."""

RATING = """
import json, random, sys, threading, time
from agentalign.records.criterion import Score
from agentalign.store.queue import Rules
from agentalign.store.store import Store

url, seed = sys.argv[1:3]
plain = Rules(gold_rate=0.0, repeat_rate=0.0, lease_seconds=600.0)
store = Store(url)
patient, hasty = store.queue(plain), store.queue(plain._replace(lease_seconds=0.3))

lines = threading.Lock()

def say(**told):
    with lines:
        print(json.dumps(told), flush=True)

def rate(person):
    chance = random.Random(f"{seed} {person}")
    while True:
        drawn = chance.random()
        found = (hasty if drawn < 0.3 else patient).take(person)
        if found is None:
            if not store.queue_items.items(None, "open", 1):
                return
            time.sleep(0.2)
            continue
        if drawn < 0.3:
            time.sleep(0.32)
        if drawn < 0.2:
            continue
        if drawn < 0.3:
            mark = Score(trajectory=found.trajectory, criterion="tone@1", value=3, rater=person, rater_kind="human", id=found.id)
            store.add_scores([mark])
        ended = patient.finish(found.id, person)
        say(id=found.id, person=person, late=ended.late)
        if drawn > 0.95:
            assert patient.finish(found.id, person) == (True, ended.late)

threads = [threading.Thread(target=rate, args=(person,)) for person in sys.argv[3:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
store.close()
"""


class Change(NamedTuple):
    """A line of the diary: an assignment as it stood after a change."""

    trajectory: str
    person: str
    state: str
    taken: float
    expires: float
    at: float
    is_new: bool


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def test_fifty_raters_never_hold_more_than_three_places_of_a_run_and_nobody_has_one_twice(store: Store, store_url: str) -> None:
    ids = queue_runs(store, RUNS, OVERLAP)
    keep_diary(store_url)
    told = drain(store_url, [f"rater-{number}" for number in range(RATERS)])
    given = store.queue_items.assignments(ids)
    assert len({(made.trajectory, made.person) for made in given}) == len(given), "somebody had a run twice"
    states = {made.id: (made.person, made.state) for made in given}
    assert [one for one in told if states[one["id"]] != (one["person"], "late" if one["late"] else "done")] == []
    assert len({one["id"] for one in told}) == len(told) == sum(made.state in ("done", "late") for made in given)
    late = [made for made in given if made.state == "late"]
    assert {made.id for made in late} <= {score.id for score in store.scores()}, "a late answer was thrown away"
    items = store.queue_items.items(limit=RUNS)
    assert {(item.status, item.done, item.live) for item in items} == {("full", OVERLAP, 0)}
    diary = read_diary(store_url)
    dropped = len({(change.trajectory, change.person) for change in diary if change.state == "open"}) - len(told)
    assert most_hands(diary) == OVERLAP
    assert min(len(late), dropped) > 0, "nobody was late, or nobody dropped anything: this tested nothing"
    print(f"{len(told)} finished, {len(late)} of them late, {dropped} dropped for good, {len(diary)} changes")


def test_a_dropped_run_is_in_other_hands_after_its_lease_and_not_before(store: Store, store_url: str) -> None:
    ids = queue_runs(store, RATERS, 1)
    # Long enough for all to be handed out before the first of them ends, on a busy machine too.
    hasty, queue = store.queue(PLAIN._replace(lease_seconds=10.0)), store.queue(PLAIN)
    dropped = {}
    for number in range(RATERS):
        found = hasty.take(f"rater-{number}")
        assert found is not None
        dropped[found.trajectory] = found.taken + hasty.rules.lease_seconds
    assert dropped.keys() == set(ids)
    database = open_database(store_url)
    came_back: dict[str, float] = {}
    while len(came_back) < RATERS:
        found = queue.take("somebody new")
        with database.read() as connection:
            now = clock(connection)
        if found is None:
            assert now < max(dropped.values()) + COMES_BACK_SECONDS, f"{RATERS - len(came_back)} runs have not come back"
            continue
        came_back[found.trajectory] = found.taken
        queue.finish(found.id, "somebody new")
    database.close()
    waited = [came_back[id] - dropped[id] for id in ids]
    assert min(waited) >= 0, "a run was given away while its lease lived"
    assert max(waited) <= COMES_BACK_SECONDS


def queue_runs(store: Store, number: int, overlap: int) -> list[str]:
    """So many runs in the queue."""
    said = [(Message(role="user", content=str(n)),) for n in range(number)]
    made = [Trajectory(taskset="desk", messages=one, origin=Origin(kind="import", reference="f", task=one[0].content)) for one in said]
    store.add(made)
    ids = [run.id for run in made]
    store.queue_items.add(ids, overlap=overlap)
    return ids


def drain(store_url: str, people: list[str]) -> list[dict[str, object]]:
    """Let them all rate until no run wants an answer; returns what they were told is finished."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    shares = [people[number::PROCESSES] for number in range(PROCESSES)]
    command = [sys.executable, "-c", RATING, store_url, str(seed)]
    raters = [subprocess.Popen([*command, *share], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for share in shares]
    said: list[tuple[str, str]] = [("", "")] * len(raters)

    def listen(number: int) -> None:
        said[number] = raters[number].communicate()

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(raters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [failed for _, failed in said if failed] == []
    assert [rater.returncode for rater in raters] == [0] * len(raters)
    return [json.loads(line) for output, _ in said for line in output.splitlines()]


def keep_diary(store_url: str) -> None:
    """From now on every change of an assignment is written down, in the transaction that makes it."""
    columns = "trajectory, person, state, taken, expires"
    new = "new.trajectory, new.person, new.state, new.taken, new.expires"
    database = open_database(store_url)
    with database.write() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        number = "INTEGER PRIMARY KEY" if is_sqlite else "BIGSERIAL PRIMARY KEY"
        real = "REAL" if is_sqlite else "DOUBLE PRECISION"
        connection.execute(
            text(
                f"CREATE TABLE diary (number {number}, trajectory TEXT, person TEXT, state TEXT, taken {real}, expires {real}, at {real}, "
                "is_new INTEGER)"
            )
        )
        if is_sqlite:
            at = "(julianday('now') - 2440587.5) * 86400.0"
            for event, is_new in (("INSERT", 1), ("UPDATE", 0)):
                write = f"INSERT INTO diary ({columns}, at, is_new) VALUES ({new}, {at}, {is_new});"
                connection.execute(text(f"CREATE TRIGGER diary_{event} AFTER {event} ON assignments BEGIN {write} END"))
        else:
            at = "extract(epoch FROM clock_timestamp())"
            write = f"INSERT INTO diary ({columns}, at, is_new) VALUES ({new}, {at}, CAST(TG_OP = 'INSERT' AS INTEGER));"
            connection.execute(text(f"CREATE FUNCTION diary() RETURNS trigger AS $$ BEGIN {write} RETURN new; END $$ LANGUAGE plpgsql"))
            connection.execute(text("CREATE TRIGGER diary AFTER INSERT OR UPDATE ON assignments FOR EACH ROW EXECUTE FUNCTION diary()"))
    database.close()


def read_diary(store_url: str) -> list[Change]:
    """Every change in the order in which they were made: there is one write transaction at a time."""
    database = open_database(store_url)
    with database.read() as connection:
        rows = connection.execute(text("SELECT trajectory, person, state, taken, expires, at, is_new FROM diary ORDER BY number")).all()
    database.close()
    return [Change(*row[:-1], is_new=bool(row.is_new)) for row in rows]


def most_hands(diary: list[Change]) -> int:
    """The most places of a run that were taken at once, by answers that count and by leases that lived; looked at after each change."""
    most = 0
    now_at: dict[str, dict[str, Change]] = defaultdict(dict)
    for change in diary:
        held = now_at[change.trajectory]
        held[change.person] = change
        # A new lease was given by what held at its own moment; other changes say only when they were written.
        moment = change.taken if change.is_new else change.at
        taken = [one for one in held.values() if one.state == "done" or (one.state == "open" and one.expires > moment)]
        most = max(most, len(taken))
    return most
