"""Deleting for good: runs with all that was said about them, or everything that one person said.

What goes leaves a tombstone: its id, when and why, and nothing of its content. So a training that learned from it can still be told
honestly, and an import, a waiting browser or an old file cannot bring it back. Surprise: forks and corrections of a run repeat its
beginning word for word, so they go with it, and those that come later are not let in.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select

from agentalign.errors import DataError
from agentalign.records.base import now
from agentalign.records.trajectory import Trajectory
from agentalign.store import search, tables, verdicts
from agentalign.store.appending import insert_new
from agentalign.store.check import stream
from agentalign.store.database import is_one_of
from agentalign.store.filters import bindable

MAX_REASON = 500


class Tombstone(NamedTuple):
    """What is left of a forgotten run, score or preference."""

    id: str
    what: str
    """run, score or preference."""
    reason: str
    time: str


class Forgotten(NamedTuple):
    """What was deleted."""

    runs: tuple[str, ...]
    """Ids, forks and corrections of the runs that were named included."""
    scores: tuple[str, ...]
    preferences: tuple[str, ...]
    assignments: int
    accounts: int

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id that a training may have learned from."""
        return (*self.runs, *self.scores, *self.preferences)


def descendants(connection: Connection, ids: Sequence[str]) -> list[str]:
    """The stored runs among `ids` and every run that was forked off or corrected from one of them, however far."""
    table = tables.trajectories.c
    there = select(table.id).where(is_one_of(connection, table.id, [bindable(id, "run id") for id in ids]))
    found = dict.fromkeys(connection.execute(there).scalars())
    waiting = list(ids)
    while waiting:
        children = connection.execute(select(table.id).where(is_one_of(connection, table.parent, waiting))).scalars()
        waiting = [child for child in children if child not in found]
        found |= dict.fromkeys(waiting)
    return list(found)


def foreseen(connection: Connection, ids: Sequence[str], person: str | None) -> Forgotten:
    """What `forget` would delete: the runs with their forks, and everything that the person said, decided or corrected."""
    person = None if person is None else bindable(person, "name of a person")
    runs = descendants(connection, [*ids, *_corrections(connection, person)])
    about = is_one_of(connection, tables.scores.c.trajectory, runs)
    if person is not None:
        about |= tables.scores.c.person == person
    scores = dict.fromkeys(connection.execute(select(tables.scores.c.id).where(about)).scalars())
    scores |= dict.fromkeys(_decisions(connection, person))
    taken = select(func.count()).select_from(tables.assignments).where(_taken(connection, runs, person))
    known = select(func.count()).select_from(tables.accounts).where(tables.accounts.c.name == person)
    preferences = _preferences(connection, set(runs), person)
    counts = (connection.execute(query).scalar_one() for query in (taken, known))
    return Forgotten(tuple(runs), tuple(scores), tuple(preferences), *counts)


def forget(connection: Connection, ids: Sequence[str], person: str | None, reason: str) -> Forgotten:
    """Delete what `foreseen` names, in the caller's transaction."""
    if not reason.strip() or len(bindable(reason, "reason")) > MAX_REASON:
        raise DataError(f"forgetting needs a reason of 1 to {MAX_REASON} characters: it is all that is left to explain the gap.")
    found = foreseen(connection, ids, person)
    connection.execute(delete(tables.assignments).where(_taken(connection, found.runs, person)))
    if person is not None:
        connection.execute(delete(tables.accounts).where(tables.accounts.c.name == person))
        # What a run is known to be stays the team's; who said so does not.
        connection.execute(tables.queue_items.update().where(tables.queue_items.c.gold_by == person).values(gold_by=None))
    _delete(connection, found.runs, found.scores, found.preferences)
    for what, gone in (("run", found.runs), ("score", found.scores), ("preference", found.preferences)):
        insert_new(connection, tables.tombstones, [{"id": id, "what": what, "reason": reason, "time": now()} for id in gone])
    return found


def gone_with(connection: Connection, runs: Mapping[str, Trajectory]) -> dict[str, Tombstone]:
    """Of runs that are to be stored those that were forgotten, or go back to one that was; these get a tombstone as well.

    Without one of its own, a fork that was refused today would be no reason to refuse the fork of it that comes tomorrow.
    """
    parents = {run.id: run.parent[0] for run in runs.values() if run.parent is not None}
    known = tombstones(connection, {*runs, *parents.values()})
    gone = {id: known[id] for id in runs if id in known}
    late: dict[str, Tombstone] = {}
    before = -1
    while len(late) > before:
        before = len(late)
        for id, parent in parents.items():
            stone = late.get(parent) or known.get(parent)
            if id not in known and stone is not None and stone.what == "run":
                late[id] = stone._replace(id=id)
    insert_new(connection, tables.tombstones, [stone._asdict() for stone in late.values()])
    return gone | late


def forget_again(connection: Connection, stones: Sequence[Tombstone]) -> int:
    """Delete what these tombstones of another copy of the store name, and take them over; returns how many records that were."""
    known = tombstones(connection, [stone.id for stone in stones])
    new = [stone for stone in stones if stone.id not in known]
    named = {what: [stone.id for stone in new if stone.what == what] for what in ("run", "score", "preference")}
    runs = descendants(connection, named["run"])
    about = is_one_of(connection, tables.scores.c.id, named["score"]) | is_one_of(connection, tables.scores.c.trajectory, runs)
    scores = list(connection.execute(select(tables.scores.c.id).where(about)).scalars())
    there = select(tables.preferences.c.id).where(is_one_of(connection, tables.preferences.c.id, named["preference"]))
    preferences = sorted({*connection.execute(there).scalars(), *_preferences(connection, set(runs), None)})
    connection.execute(delete(tables.assignments).where(_about(connection, tables.assignments, runs)))
    _delete(connection, runs, scores, preferences)
    insert_new(connection, tables.tombstones, [stone._asdict() for stone in new])
    return len(runs) + len(scores) + len(preferences)


def _delete(connection: Connection, runs: Sequence[str], scores: Sequence[str], preferences: Sequence[str]) -> None:
    of_scores = is_one_of(connection, tables.scores.c.id, scores)
    judged = set(connection.execute(select(tables.scores.c.trajectory).where(of_scores)).scalars()) - set(runs)
    connection.execute(delete(tables.scores).where(of_scores))
    for part in _parts(preferences):
        connection.execute(delete(tables.preferences).where(is_one_of(connection, tables.preferences.c.id, part)))
    connection.execute(delete(tables.queue_items).where(_about(connection, tables.queue_items, runs)))
    _delete_runs(connection, runs)
    verdicts.refresh(connection, judged)
    search.forget(connection)
    _lower_bounds(connection)
    _reopen(connection)


def tombstones(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, Tombstone]:
    """Tombstones by id: all, or those of `ids`."""
    table = tables.tombstones.c
    query = select(table.id, table.what, table.reason, table.time)
    if ids is not None:
        query = query.where(is_one_of(connection, table.id, list(ids)))
    return {row.id: Tombstone(*row) for row in connection.execute(query)}


def _about(connection: Connection, table: Table, runs: Sequence[str]) -> ColumnElement[bool]:
    """Whether a row of the queue is about one of the runs, alone or in a pair."""
    return is_one_of(connection, table.c.trajectory, runs) | is_one_of(connection, table.c.other, runs)


def _taken(connection: Connection, runs: Sequence[str], person: str | None) -> ColumnElement[bool]:
    """Whether an assignment is about one of the runs, or the person's."""
    about = _about(connection, tables.assignments, runs)
    return about if person is None else about | (tables.assignments.c.person == person)


def _parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + 1000] for start in range(0, len(ids), 1000))


def _corrections(connection: Connection, person: str | None) -> list[str]:
    """Ids of the corrected steps that the person wrote."""
    table = tables.trajectories.c
    written = select(table.id).where(table.policy == person, table.origin_kind == "correction")
    return [] if person is None else list(connection.execute(written).scalars())


def _decisions(connection: Connection, person: str | None) -> list[str]:
    """Ids of the scores by which the person decided. The column `person` is of raters alone, so the records are asked."""
    if person is None:
        return []
    table = tables.scores.c
    query = select(table.id, table.record).where(table.person.is_(None), table.record.contains('"adjudicator"'))
    found = ((row.id, json.loads(row.record)) for row in stream(connection, query))
    return [id for id, record in found if record["rater_kind"] == "adjudicator" and record["rater"] == person]


def _preferences(connection: Connection, runs: set[str], person: str | None) -> list[str]:
    """Ids of the preferences about one of the runs, or of the person. Only the records know, so all are read."""
    found: list[str] = []
    for row in stream(connection, select(tables.preferences.c.id, tables.preferences.c.record)):
        record = json.loads(row.record)
        theirs = person is not None and record["rater"] == person and record["source"] in ("human", "correction", "adjudicator")
        if theirs or any(item[0] in runs for item in record["items"]):
            found.append(row.id)
    return found


def _delete_runs(connection: Connection, runs: Sequence[str]) -> None:
    numbers = select(tables.trajectories.c.seq).where(is_one_of(connection, tables.trajectories.c.id, runs))
    of: tuple[tuple[Table, ColumnElement[int]], ...] = (
        (tables.tokens, tables.tokens.c.trajectory),
        (tables.verdicts, tables.verdicts.c.trajectory),
        (tables.calls, tables.calls.c.trajectory),
        (tables.bodies, tables.bodies.c.trajectory),
    )
    for table, column in of:
        connection.execute(delete(table).where(column.in_(numbers)))
    connection.execute(delete(tables.trajectories).where(is_one_of(connection, tables.trajectories.c.id, runs)))


def _lower_bounds(connection: Connection) -> None:
    """No assignment may wait for numbers beyond the highest that is left: SQLite gives those out again, to the next answers."""
    taken = tables.assignments.c
    for numbers, about in ((tables.scores.c.seq, taken.other.is_(None)), (tables.preferences.c.seq, taken.other.is_not(None))):
        highest = connection.execute(select(func.max(numbers))).scalar() or 0
        for bound in (taken.after, taken.until):
            connection.execute(tables.assignments.update().where(about, bound > highest).values({bound: highest}))


def _reopen(connection: Connection) -> None:
    """Runs that lost an answer wait for another one."""
    items, taken = tables.queue_items.c, tables.assignments.c
    done = select(func.count()).select_from(tables.assignments)
    done = done.where(taken.item == items.item, taken.kind == "normal", taken.state == "done")
    lacking = (items.status == "full") & (items.overlap > done.scalar_subquery())
    connection.execute(tables.queue_items.update().where(lacking).values(status="open"))
