"""The queue, as a lead meets it: what is in it, how far it is, and what gold runs say about raters."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, exists, func, select

from agentalign.errors import DataError
from agentalign.records.base import canonical_json
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.store.appending import read_records
from agentalign.store.blind import is_open_for
from agentalign.store.database import Database, is_one_of
from agentalign.store.filters import bindable
from agentalign.store.queue import FINISHED, Assignment, assignment_of, busy, clock, comes_back, is_unmet_gold
from agentalign.store.rows import name
from agentalign.store.sides import said_about
from agentalign.store.tables import assignments, queue_items, scores, trajectories

MAX_OVERLAP = 100
RECENT = 200
"""So many finished assignments tell how long one takes."""
ACTIVE_SECONDS = 900.0
"""Who finished something within this time is at work."""
STEP = 10
"""Raters are told how much is left in steps of so many."""


class QueueItem(NamedTuple):
    """A run in the queue, or a pair to compare."""

    trajectory: str
    taskset: str
    overlap: int
    """How many different people are to answer."""
    is_gold: bool
    """The answer is known; every rater meets it, and nobody is told."""
    priority: float
    status: str
    """open, full (all answers are there), held (skipped, waits for a lead), closed."""
    done: int
    live: int
    """Leases that live now."""
    late: int
    skips: tuple[str, ...]
    """The reasons that people gave."""
    other: str | None = None
    """Of a pair: its second run."""
    gold_by: str | None = None
    """Who set the known answer, and is not tested by it; None where there is none, or nobody said who."""


class Progress(NamedTuple):
    """How far a person and the team are."""

    mine: int
    """Runs that this person finished, of every kind."""
    late: int
    skipped: int
    waiting: int
    """Runs that the queue can still give to this person now."""
    team_done: int
    team_wanted: int
    """Answers wanted in all: the overlap of every run that is not closed."""
    at_work: int
    """People who finished something lately."""
    seconds: float | None
    """What one run takes: the median of the person's last ones, else of the team's; None before the first."""
    seconds_left: float | None
    """Until this person has nothing left, at that pace."""
    team_seconds_left: float | None

    def in_steps(self) -> "Progress":
        """What its rater may be told: by exact numbers, which fall with a normal run alone, gold runs and repeats would be told apart."""
        waiting = -(-self.waiting // STEP) * STEP
        done = self.team_done if self.team_done >= self.team_wanted else self.team_done // STEP * STEP
        left = None if self.seconds is None else self.seconds * waiting
        team = None if self.seconds is None else self.seconds * max(0, self.team_wanted - done) / max(1, self.at_work)
        return self._replace(waiting=waiting, team_done=done, seconds_left=left, team_seconds_left=team)


class GoldMark(NamedTuple):
    """A person's answer where the answer is known."""

    person: str
    trajectory: str
    criterion: str
    expected: float
    """On the criterion's scale; about a pair a place in `preference.PAIR_ANSWERS`."""
    given: float | None
    """None: answered with "does not apply", or cannot judge."""
    other: str | None = None
    """Of a pair: its second run."""
    set_by: str | None = None
    """Who set the expected answer; None where nobody said who."""


class QueueItems:
    """The lead's side of a store's queue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        ids: Sequence[str],
        *,
        overlap: int = 1,
        priority: Mapping[str, float] | None = None,
        gold: Mapping[str, float] | None = None,
        gold_by: str | None = None,
    ) -> tuple[int, int]:
        """Put stored runs into the queue; returns (how many are new, how many were there and are changed).

        A run that is there gets the new overlap and priority, and is open again where answers are wanted; nothing that was answered is
        lost. `gold` maps "name@version" to the right value: such runs stand outside the overlap, and stay gold when they are added again.
        `gold_by` says who set it: they are not tested by it. Who sets it anew takes it over.
        """
        check_overlap(overlap)
        known = as_known(canonical_json(dict(gold)) if gold else "", gold_by)
        unique = list(dict.fromkeys(bindable(id, "run id") for id in ids))
        with self._database.write() as connection:
            now = clock(connection)
            tasksets = tasksets_of(connection, unique)
            rows = [{"item": id, "trajectory": id, "taskset": tasksets[id], "overlap": overlap} | known for id in unique]
            return put(connection, rows, priority or {}, now)

    def set_status(self, ids: Sequence[str], status: str) -> int:
        """Open or close runs, or pairs ("ID+ID"); returns how many were changed. What people have in hand they may finish."""
        if status not in ("open", "closed"):
            raise DataError(f"a run in the queue can be made open or closed, not {status!r}.")
        with self._database.write() as connection:
            wanted = is_one_of(connection, queue_items.c.item, [bindable(id, "run id") for id in ids])
            changed = connection.execute(queue_items.update().where(wanted, queue_items.c.status != status).values(status=status)).rowcount
            _fill(connection)
            return changed

    def rank(self, priority: Mapping[str, float]) -> None:
        """Give runs in the queue new priorities."""
        with self._database.write() as connection:
            for id, value in priority.items():
                connection.execute(queue_items.update().where(queue_items.c.item == bindable(id, "run id")).values(priority=value))

    def items(self, taskset: str | None = None, status: str | None = None, limit: int = 1000) -> list[QueueItem]:
        """Runs in the queue, the most urgent first."""
        with self._database.read() as connection:
            now = clock(connection)
            query = select(queue_items, busy(now).label("busy"))
            if taskset is not None:
                query = query.where(queue_items.c.taskset == bindable(taskset, "taskset"))
            if status is not None:
                query = query.where(queue_items.c.status == bindable(status, "status"))
            found = connection.execute(query.order_by(queue_items.c.priority.desc(), queue_items.c.seq).limit(limit)).all()
            ids = [row.item for row in found]
            mine = select(assignments).where(is_one_of(connection, assignments.c.item, ids)).order_by(assignments.c.seq)
            by_item: dict[str, list[tuple[str, str, str]]] = {}
            for row in connection.execute(mine):
                by_item.setdefault(row.item, []).append((row.kind, row.state, row.reason))
        return [_item(row, by_item.get(row.item, [])) for row in found]

    def assignments(self, ids: Sequence[str]) -> list[Assignment]:
        """Every assignment of the runs, or pairs ("ID+ID"), as they were taken: whose answer was late, a repeat, or gold."""
        with self._database.read() as connection:
            now = clock(connection)
            wanted = is_one_of(connection, assignments.c.item, [bindable(id, "run id") for id in ids])
            rows = connection.execute(select(assignments).where(wanted).order_by(assignments.c.seq)).all()
        return [assignment_of(row, now) for row in rows]

    def progress(self, person: str, taskset: str | None = None) -> Progress:
        """How far this person and the team are, and how long it will take."""
        bindable(person, "name of a rater")
        with self._database.read() as connection:
            now = clock(connection)
            of = [] if taskset is None else [queue_items.c.taskset == bindable(taskset, "taskset")]
            counted = select(assignments.c.kind, assignments.c.state, func.count()).join(
                queue_items, queue_items.c.item == assignments.c.item
            )
            counted = counted.where(*of).group_by(assignments.c.kind, assignments.c.state)
            own = _by_state(connection.execute(counted.where(assignments.c.person == person)).all())
            done = {(kind, state): number for kind, state, number in connection.execute(counted)}.get(("normal", "done"), 0)
            waiting = _waiting(connection, person, of, now)
            wanted = select(func.sum(queue_items.c.overlap)).where(queue_items.c.status != "closed", queue_items.c.gold == "", *of)
            total = connection.execute(wanted).scalar() or 0
            lately = assignments.c.finished > now - ACTIVE_SECONDS
            at_work = connection.execute(select(func.count(assignments.c.person.distinct())).where(lately)).scalar_one()
            seconds = _median(connection, person) or _median(connection, None)
        return Progress(
            mine=own.get("done", 0) + own.get("late", 0),
            late=own.get("late", 0),
            skipped=own.get("skipped", 0),
            waiting=waiting,
            team_done=done,
            team_wanted=int(total),
            at_work=at_work,
            seconds=seconds,
            seconds_left=None if seconds is None else seconds * waiting,
            team_seconds_left=None if seconds is None else seconds * max(0, total - done) / max(1, at_work),
        )

    def gold_marks(self, taskset: str | None = None) -> list[GoldMark]:
        """What people answered where the answer is known: their newest mark while they had the run.

        Answers of whoever set it are left out: they would be right by themselves.
        """
        with self._database.read() as connection:
            met = (assignments.c[name] for name in ("person", "trajectory", "other", "after", "until"))
            query = select(queue_items.c.gold, queue_items.c.gold_by, *met)
            query = query.join(assignments, assignments.c.item == queue_items.c.item)
            query = query.where(assignments.c.kind == "gold", assignments.c.state.in_(FINISHED), queue_items.c.gold != "")
            query = query.where(queue_items.c.gold_by.is_distinct_from(assignments.c.person))
            if taskset is not None:
                query = query.where(queue_items.c.taskset == bindable(taskset, "taskset"))
            found: list[GoldMark] = []
            for row in connection.execute(query.order_by(assignments.c.seq)).all():
                given = _marks(connection, *row[2:])
                for criterion, expected in json.loads(row.gold).items():
                    if criterion in given:
                        said = (criterion, expected, given[criterion])
                        found.append(GoldMark(row.person, row.trajectory, *said, row.other, row.gold_by))
        return found


def check_overlap(overlap: int) -> None:
    """DataError where so many people cannot be asked."""
    if not 1 <= overlap <= MAX_OVERLAP:
        raise DataError(f"overlap {overlap} is not between 1 and {MAX_OVERLAP}. Say how many different people are to rate each run.")


def as_known(gold: str, by: str | None) -> dict[str, str | None]:
    """The columns of a known answer, "" where there is none, and of who set it."""
    return {"gold": gold, "gold_by": None if by is None or not gold else name(by, "name of who knows the answer")}


def put(connection: Connection, rows: Sequence[dict[str, Any]], priority: Mapping[str, float], now: float) -> tuple[int, int]:
    """Put items into the queue, or give those that are there the new overlap; returns (how many are new, how many were there)."""
    items = [row["item"] for row in rows]
    held = set(connection.execute(select(queue_items.c.item).where(is_one_of(connection, queue_items.c.item, items))).scalars())
    for row in rows:
        urgency = {"priority": priority[row["item"]]} if row["item"] in priority else {}
        if row["item"] in held:
            known = {"gold": row["gold"], "gold_by": row["gold_by"]} if row["gold"] else {}
            values = {"status": "open", "overlap": row["overlap"], **known, **urgency}
            connection.execute(queue_items.update().where(queue_items.c.item == row["item"]).values(values))
        else:
            connection.execute(queue_items.insert().values({"priority": 0.0, "status": "open", "added": now, **row, **urgency}))
    _fill(connection)
    return len(items) - len(held), len(held)


def _waiting(connection: Connection, person: str, of: Sequence[ColumnElement[bool]], now: float) -> int:
    """How many items the queue can give to this person: those with a free place, gold that they never met, and what they have in hand."""
    theirs = (assignments.c.item == queue_items.c.item) & (assignments.c.person == person)
    had = exists().where(theirs, assignments.c.kind == "normal")
    items = select(func.count()).select_from(queue_items).where(*of)
    in_hand = select(func.count()).select_from(assignments).join(queue_items, queue_items.c.item == assignments.c.item)
    counts = (
        items.where(queue_items.c.status == "open", queue_items.c.gold == "", ~had, busy(now) < queue_items.c.overlap),
        items.where(is_unmet_gold(person)),
        in_hand.where(is_open_for(person), comes_back(now), *of),
    )
    return sum(connection.execute(count).scalar_one() for count in counts)


def _by_state(counts: Iterable[Row[str, str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, state, number in counts:
        found[state] = found.get(state, 0) + number
    return found


def _marks(connection: Connection, person: str, trajectory: str, other: str | None, after: int, until: int) -> dict[str, float | None]:
    """A person's newest values for a whole run or a pair, said after the number `after` up to `until`; what was taken back is left out."""
    if other is not None:
        newest = {said.criterion: said for said in said_about(connection, person, trajectory, other, after, until)}
        return {key: said.pair_answer if said.is_answer else None for key, said in newest.items() if not said.withdrawn}
    query = select(scores.c.id, scores.c.record, scores.c.digest).where(scores.c.trajectory == trajectory, scores.c.person == person)
    query = query.where(scores.c.seq > after, scores.c.seq <= until).order_by(scores.c.seq)
    marks = {score.criterion: score for score in read_records(connection, query, Score) if score.step is None}
    return {key: score.value for key, score in marks.items() if score.status != ScoreStatus.WITHDRAWN}


def tasksets_of(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The tasksets of stored runs; DataError where one is not stored."""
    query = select(trajectories.c.id, trajectories.c.taskset).where(is_one_of(connection, trajectories.c.id, ids))
    found = {row.id: row.taskset for row in connection.execute(query)}
    missing = [id for id in ids if id not in found]
    if missing:
        raise DataError(f"trajectory {missing[0]} is not in the store, so nobody can rate it. Store the run first.")
    return found


def _fill(connection: Connection) -> None:
    """Items with all the answers that are wanted are full."""
    done = (
        select(func.count())
        .select_from(assignments)
        .where(assignments.c.item == queue_items.c.item, assignments.c.kind == "normal", assignments.c.state == "done")
    )
    is_open = (queue_items.c.status == "open") & (queue_items.c.gold == "")
    connection.execute(queue_items.update().where(is_open, queue_items.c.overlap <= done.scalar_subquery()).values(status="full"))


def _median(connection: Connection, person: str | None) -> float | None:
    query = select(assignments.c.finished - assignments.c.taken).where(assignments.c.state.in_(("done", "late")))
    if person is not None:
        query = query.where(assignments.c.person == person)
    found = list(connection.execute(query.order_by(assignments.c.finished.desc()).limit(RECENT)).scalars())
    return statistics.median(found) if found else None


def _item(row: Row[*tuple[object, ...]], taken: Sequence[tuple[str, str, str]]) -> QueueItem:
    done = sum((kind, state) == ("normal", "done") for kind, state, _ in taken)
    return QueueItem(
        trajectory=row.trajectory,
        taskset=row.taskset,
        overlap=row.overlap,
        is_gold=row.gold != "",
        priority=row.priority,
        status=row.status,
        done=done,
        live=row.busy - done,
        late=sum(state == "late" for _, state, _ in taken),
        skips=tuple(reason for _, state, reason in taken if state == "skipped"),
        other=row.other,
        gold_by=row.gold_by,
    )
