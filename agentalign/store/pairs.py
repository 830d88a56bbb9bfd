"""Pairs of runs to compare: queued like runs, or opened by someone on their own, and the sides in which each person sees them.

A draw is an assignment: its sides are in the database before anyone sees them, so a reload, a restart or a backup shows the same ones.
Surprise: a pair that somebody opens on their own is an assignment too, of the kind "own"; it fills no place and hides no run.
"""

import secrets
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from sqlalchemy import Connection, exists, select

from agentalign.errors import DataError
from agentalign.records.base import canonical_json
from agentalign.records.preference import PAIR_ANSWERS, Preference
from agentalign.store import blind
from agentalign.store.appending import insert_all
from agentalign.store.database import Database, is_one_of
from agentalign.store.filters import bindable
from agentalign.store.queue import clock
from agentalign.store.queue_items import as_known, check_overlap, put, tasksets_of
from agentalign.store.rows import name
from agentalign.store.sides import item_of, last_word, said_about, side
from agentalign.store.tables import assignments, preferences, queue_items, trajectories


class Draw(NamedTuple):
    """A pair as one person sees it."""

    id: str
    """Of the assignment; says nothing, so a page may know it."""
    person: str
    taskset: str
    left: str
    right: str
    after: int
    """Number of the last preference before it was drawn; of a pair that was opened on one's own 0, all of one's answers are its own."""


class Pairs:
    """The pairs of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        overlap: int = 1,
        priority: Mapping[str, float] | None = None,
        gold: Mapping[str, str] | None = None,
        gold_by: str | None = None,
    ) -> tuple[int, int]:
        """Put pairs of stored runs into the queue; returns (how many are new, how many were there and are changed).

        `priority` is by item ("ID+ID", the lower id first). `gold` maps "overall" or "name@version" to the known answer about a single
        pair: the better run's id, "tie" or "both bad"; `gold_by` says who set it, and is not tested by it.
        Whether two runs are of one task is the caller's to know.
        """
        check_overlap(overlap)
        known = as_known(known_answers(pairs, gold) if gold else "", gold_by)
        unique = {item_of(*pair): tuple(sorted(bindable(id, "run id") for id in pair)) for pair in pairs}
        with self._database.write() as connection:
            tasksets = tasksets_of(connection, sorted({id for pair in unique.values() for id in pair}))
            _refuse_unequal(connection, list(unique.values()), tasksets)
            rows = [
                {"item": item, "trajectory": first, "other": second, "taskset": tasksets[first], "overlap": overlap} | known
                for item, (first, second) in unique.items()
            ]
            return put(connection, rows, priority or {}, clock(connection))

    def draw(self, person: str, one: str, two: str, chance: Random | None = None) -> Draw:
        """The pair as this person sees it, now and ever after; drawn where they never opened it on their own."""
        first, second = sorted((bindable(one, "run id"), bindable(two, "run id")))
        item = item_of(first, second)
        with self._database.write() as connection:
            own = select(assignments.c.id).where(assignments.c.item == item, assignments.c.person == person, assignments.c.kind == "own")
            id = connection.execute(own).scalar()
            if id is None:
                id, now = secrets.token_hex(16), clock(connection)
                tasksets_of(connection, [first, second])
                left = side(connection, name(person, "name of a rater"), first, second, chance or secrets.SystemRandom())
                row = {"id": id, "item": item, "trajectory": first, "other": second, "on_left": left, "person": person, "kind": "own"}
                times = {"after": last_word(connection, second), "taken": now, "expires": now}
                insert_all(connection, assignments, [{**row, **times, "state": "drawn", "reason": ""}])
            return _draw(connection, id, person)

    def drawn(self, id: str, person: str) -> Draw:
        """The person's draw of this id; DataError where there is none, or it is someone else's."""
        with self._database.read() as connection:
            return _draw(connection, id, person)

    def said(self, draw: Draw) -> list[Preference]:
        """What the person said about the pair since it was drawn, oldest first."""
        with self._database.read() as connection:
            return said_about(connection, draw.person, draw.left, draw.right, draw.after)

    def compared_by(self, person: str, taskset: str) -> set[str]:
        """Pairs of a taskset on which this person has said which run is better overall, or that it cannot be told; by their "ID+ID"."""
        said = preferences.c
        query = select(said.item).distinct().where(said.person == bindable(person, "rater"), said.taskset == bindable(taskset, "taskset"))
        with self._database.read() as connection:
            return set(connection.execute(query.where(said.criterion == "overall", said.stands, said.item.is_not(None))).scalars())

    def waiting(self, person: str) -> set[str]:
        """Pairs that the queue may still give to this person, or has given them; by their "ID+ID"."""
        theirs = (assignments.c.item == queue_items.c.item) & (assignments.c.person == person)
        ended = exists().where(theirs, assignments.c.state.not_in(("open", "drawn")))
        query = select(queue_items.c.item).where(
            queue_items.c.status == "open", queue_items.c.other.is_not(None), blind.is_for(person), ~ended
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())


def known_answers(pairs: Sequence[tuple[str, str]], gold: Mapping[str, str]) -> str:
    """Known answers as the queue keeps them: places in `PAIR_ANSWERS`; DataError where one says nothing about the pair."""
    if len(pairs) != 1:
        raise DataError(f"a known answer is about one pair, and these are {len(pairs)}. Add the pair on its own.")
    words = (*sorted(pairs[0]), *PAIR_ANSWERS[2:])
    for criterion, answer in gold.items():
        if answer not in words:
            raise DataError(f"{answer!a} is no answer about a pair by {criterion!a}. Name the better run, or say 'tie' or 'both bad'.")
    return canonical_json({criterion: float(words.index(answer)) for criterion, answer in gold.items()})


def _draw(connection: Connection, id: str, person: str) -> Draw:
    query = select(assignments, trajectories.c.taskset).join(trajectories, trajectories.c.id == assignments.c.trajectory)
    query = query.where(assignments.c.id == bindable(id, "draw"), assignments.c.person == bindable(person, "rater"))
    row = connection.execute(query.where(assignments.c.other.is_not(None))).one_or_none()
    if row is None:
        raise DataError("this pair was never drawn for you. Reload the page for another one.")
    right = row.other if row.on_left == row.trajectory else row.trajectory
    return Draw(row.id, row.person, row.taskset, row.on_left, right, 0 if row.kind == "own" else row.after)


def _refuse_unequal(connection: Connection, pairs: Sequence[tuple[str, ...]], tasksets: Mapping[str, str]) -> None:
    contents = select(trajectories.c.id, trajectories.c.content_digest).where(is_one_of(connection, trajectories.c.id, list(tasksets)))
    digests = {row.id: row.content_digest for row in connection.execute(contents)}
    for first, second in pairs:
        if first == second or digests[first] == digests[second]:
            raise DataError(f"runs {first[:12]} and {second[:12]} are word for word the same, so nothing can be compared. Leave them out.")
        if tasksets[first] != tasksets[second]:
            raise DataError(f"runs {first[:12]} and {second[:12]} are of two tasksets. Pair runs of one task.")
