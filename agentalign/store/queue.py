"""The queue, as a rater meets it: take a run or a pair, keep the lease alive, finish or skip.

An assignment is one row for an item (a run, or two to compare), a person and a kind: *normal* ones share the item's overlap, *gold* ones
(the answer is known) and *repeat* ones (the same person once more, a pair with its sides swapped) stand outside it. A lease lives by the
database's clock, so no rater's clock matters, and every decision is made inside the one write transaction. Surprise: a lease that ran
out is no state. The row stays open; its item is free for others at that instant, and whoever answers late is thanked, stored and flagged,
but fills no place. Only where the item takes no more answers meanwhile is it *lapsed*: nobody gets it back, and it hides nothing.
"""

import secrets
from collections.abc import Collection
from itertools import count
from random import Random
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, FromClause, Row, ScalarSelect, Select, and_, exists, func, or_, select, text

from agentalign.errors import DataError
from agentalign.records.base import digest
from agentalign.records.criterion import Score
from agentalign.store import blind
from agentalign.store.appending import read_records
from agentalign.store.database import Database
from agentalign.store.filters import bindable
from agentalign.store.rows import name
from agentalign.store.sides import compared, item_of, last_word, side
from agentalign.store.tables import assignments, queue_items, scores
from agentalign.store.undoing import say_again

Kind = Literal["normal", "gold", "repeat", "own"]
State = Literal["open", "done", "late", "skipped", "lapsed", "drawn"]
FINISHED: tuple[State, ...] = ("done", "late", "skipped")

LOOK_AHEAD = 64
"""Among so many of the most urgent runs one is drawn by person, so that not all raters meet them in one order."""

PEEK = 256
"""Items that are looked at together, until LOOK_AHEAD of them are found."""

CLOSE = 0.05
"""Priorities that differ by less are equal."""

MAX_REASON = 1000


class Rules(NamedTuple):
    """How a queue hands out runs."""

    lease_seconds: float = 600.0
    """How long a run is kept for a person who sends no heartbeat."""
    gold_rate: float = 0.1
    """Share of assignments whose answer is known already."""
    repeat_rate: float = 0.05
    """Share of assignments that the same person has answered before."""
    repeat_after: int = 10
    """A repeat comes after at least so many other finished runs."""
    held_at: int = 2
    """So many people skipped a run: it waits for a lead."""


class Assignment(NamedTuple):
    """One run in one person's hands."""

    id: str
    """Says nothing; who knows it is still asked who they are."""
    trajectory: str
    person: str
    kind: Kind
    state: State
    taken: float
    """Seconds since 1970 by the database's clock."""
    left: float
    """Seconds until the lease ends; 0 or less where it has ended."""
    reason: str
    """Why it was skipped."""
    other: str | None = None
    """Of a pair: its second run."""
    on_left: str | None = None
    """Of a pair: which of the two this person sees on the left."""

    @property
    def item(self) -> str:
        """What is rated, as the queue knows it."""
        return item_of(self.trajectory, self.other)


class Finish(NamedTuple):
    """What finishing an assignment did."""

    known: bool
    """It was finished so already."""
    late: bool
    """The lease had run out: the answer is stored and flagged, and fills no place."""


class Queue:
    """The rater's side of a store's queue."""

    def __init__(self, database: Database, rules: Rules = Rules()) -> None:
        self._database = database
        self.rules = rules

    def take(self, person: str, taskset: str | None = None, chance: Random | None = None) -> Assignment | None:
        """The run to rate now: the one in hand, else the next; None where nothing is left for this person."""
        chance = chance or secrets.SystemRandom()
        name(person, "name of a rater")
        with self._database.write() as connection:
            now = clock(connection)
            _lapse(connection, person, now)
            found = self._resumed(connection, person, taskset, now)
            if found is not None:
                return found
            draw = chance.random()
            item, kind = None, "normal"
            if draw < self.rules.gold_rate:
                item, kind = _gold(connection, person, taskset, chance), "gold"
            elif draw < self.rules.gold_rate + self.rules.repeat_rate:
                item, kind = self._repeat(connection, person, taskset, chance), "repeat"
            if item is None:
                item, kind = _normal(connection, person, taskset, now), "normal"
            if item is None:  # every rater meets each known answer, however little there is beside them
                item, kind = _gold(connection, person, taskset, chance), "gold"
            return None if item is None else self._assign(connection, item, person, kind, now, chance)

    def beat(self, id: str, person: str) -> Assignment:
        """Keep a lease alive, or take it up again where its place is still free; look at `left` and `state` for what came of it."""
        with self._database.write() as connection:
            now = clock(connection)
            row = _mine(connection, id, person)
            is_kept = connection.execute(_open(person, None).where(assignments.c.id == row.id, comes_back(now))).first() is not None
            return self._renewed(connection, row, now) if is_kept else assignment_of(row, now)

    def finish(self, id: str, person: str, required: Collection[str] = ()) -> Finish:
        """The person is done with the run. DataError where one of the `required` criteria was not answered since it was taken."""
        with self._database.write() as connection:
            now = clock(connection)
            row = _mine(connection, id, person)
            if row.state in ("done", "late"):
                return Finish(True, row.state == "late")
            if row.state == "skipped":
                raise DataError("this run was skipped, and a skip stays. Your marks on it are kept; take the next run.")
            missing = sorted(set(required) - _answered(connection, row))
            if missing:
                how = "Mark each, or say that it does not apply." if row.other is None else "Answer each, or skip the pair."
                raise DataError(f"not answered yet: {', '.join(missing)}. {how}")
            late = row.expires <= now
            self._end(connection, row, "late" if late else "done", now)
            _settle(connection, row.item)
            return Finish(False, late)

    def skip(self, id: str, person: str, reason: str) -> Finish:
        """Give the run back for good, with a reason; after two skips it waits for a lead."""
        if not reason.strip() or len(reason) > MAX_REASON:
            raise DataError(f"a skip needs a reason of 1 to {MAX_REASON} characters. Say in a few words why.")
        with self._database.write() as connection:
            now = clock(connection)
            row = _mine(connection, id, person)
            if row.state in FINISHED:
                if row.state != "skipped":
                    raise DataError("this run is finished already, so it cannot be skipped. Take the next one.")
                return Finish(True, False)
            late = row.expires <= now
            self._end(connection, row, "skipped", now, bindable(reason, "reason of a skip"))
            skips = select(func.count()).select_from(assignments).where(_on(row.item), assignments.c.state == "skipped")
            if connection.execute(skips).scalar_one() >= self.rules.held_at:
                is_open = and_(queue_items.c.item == row.item, queue_items.c.status == "open")
                connection.execute(queue_items.update().where(is_open).values(status="held"))
            return Finish(False, late)

    def current(self, person: str) -> Assignment | None:
        """The run in the person's hands, if its lease lives."""
        with self._database.read() as connection:
            now = clock(connection)
            row = connection.execute(_open(person, None).where(assignments.c.expires > now)).first()
            return None if row is None else assignment_of(row, now)

    def assignment(self, id: str, person: str) -> Assignment:
        """The person's assignment; DataError where there is none, or it is someone else's."""
        with self._database.read() as connection:
            return assignment_of(_mine(connection, id, person), clock(connection))

    def hidden(self, person: str, ids: Collection[str], *, waiting: bool = False) -> dict[str, int]:
        """Which of the runs are open in this person's queue, each with the number of the last score that was there when it was taken.

        Others' answers and the run's origin are not to be shown. With `waiting` also runs that the queue may still give to this person.
        Neither are those of such runs' relatives. For these and what waits the number is 0: all of the person's own marks may be seen.
        """
        asked = [bindable(id, "run id") for id in ids]
        with self._database.read() as connection:
            return blind.hidden(connection, bindable(person, "name of a rater"), asked, waiting=waiting)

    def taken_at(self, person: str, trajectory: str) -> float | None:
        """When this person took the run that is open in their queue, in seconds since 1970; None where it is not, or in a pair alone."""
        of = (assignments.c.trajectory == bindable(trajectory, "run id"), assignments.c.other.is_(None))
        with self._database.read() as connection:
            return connection.execute(select(func.max(assignments.c.taken)).where(_is_open_for(person), *of)).scalar()

    def own_scores(self, person: str, trajectory: str, after: int) -> list[Score]:
        """What this person said about a run since the score of this number."""
        query = select(scores.c.id, scores.c.record, scores.c.digest).where(scores.c.trajectory == bindable(trajectory, "run id"))
        query = query.where(scores.c.person == bindable(person, "name of a rater"), scores.c.seq > after).order_by(scores.c.seq)
        with self._database.read() as connection:
            return read_records(connection, query, Score)

    def _resumed(self, connection: Connection, person: str, taskset: str | None, now: float) -> Assignment | None:
        row = connection.execute(_open(person, taskset).where(comes_back(now))).first()
        return None if row is None else self._renewed(connection, row, now)

    def _repeat(self, connection: Connection, person: str, taskset: str | None, chance: Random) -> str | None:
        again = assignments.alias()
        had = exists().where(again.c.item == assignments.c.item, again.c.person == person, again.c.kind == "repeat")
        query = select(assignments.c.item).join(queue_items, queue_items.c.item == assignments.c.item)
        query = query.where(
            assignments.c.person == person, assignments.c.kind == "normal", assignments.c.state == "done", ~had, *_of(taskset)
        ).where(queue_items.c.status.in_(("open", "full")))  # what was closed is asked of nobody again
        query = query.order_by(assignments.c.finished.desc()).offset(self.rules.repeat_after).limit(LOOK_AHEAD)
        return _any(list(connection.execute(query).scalars()), chance)

    def _assign(self, connection: Connection, item: str, person: str, kind: str, now: float, chance: Random) -> Assignment:
        id = secrets.token_hex(16)
        query = select(queue_items.c.trajectory, queue_items.c.other).where(queue_items.c.item == item)
        first, second = connection.execute(query).one()
        left = None if second is None else side(connection, person, first, second, chance, is_repeat=kind == "repeat")
        values = {"id": id, "item": item, "trajectory": first, "other": second, "on_left": left, "person": person, "kind": kind}
        values |= {"state": "open", "after": last_word(connection, second), "reason": ""}
        connection.execute(assignments.insert().values(**values, taken=now, expires=now + self.rules.lease_seconds))
        return assignment_of(_mine(connection, id, person), now)

    def _renewed(self, connection: Connection, row: Row[*tuple[object, ...]], now: float) -> Assignment:
        expires = now + self.rules.lease_seconds
        connection.execute(assignments.update().where(assignments.c.seq == row.seq).values(expires=expires))
        return assignment_of(row, now)._replace(left=self.rules.lease_seconds)

    def _end(self, connection: Connection, row: Row[*tuple[object, ...]], state: State, now: float, reason: str = "") -> None:
        values = {"state": state, "finished": now, "reason": reason, "until": last_word(connection, row.other)}
        connection.execute(assignments.update().where(assignments.c.seq == row.seq).values(**values))
        # After `until`: what is said again here is no answer of this assignment.
        say_again(connection, row)


def clock(connection: Connection) -> float:
    """The database's time, in seconds since 1970: the one clock that all raters share."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return float(connection.execute(text("SELECT (julianday('now') - 2440587.5) * 86400.0")).scalar_one())


def busy(now: float, among: FromClause = queue_items) -> ScalarSelect[int]:
    """How many places of an item in `queue_items`, or in a part of it, are taken: normal answers, and normal leases that live."""
    given = assignments.alias()  # so that it may stand in a question about assignments
    holding = or_(given.c.state == "done", and_(given.c.state == "open", given.c.expires > now))
    query = select(func.count()).select_from(given)
    return query.where(given.c.item == among.c.item, given.c.kind == "normal", holding).scalar_subquery()


def comes_back(now: float) -> ColumnElement[bool]:
    """Whether an open assignment, joined with its item, is given to its person again: its lease lives, or its place is free."""
    is_free = and_(queue_items.c.status == "open", busy(now) < queue_items.c.overlap)
    return or_(assignments.c.expires > now, assignments.c.kind != "normal", is_free)


def _is_open_for(person: str) -> ColumnElement[bool]:
    return blind.is_open_for(bindable(person, "name of a rater"))


def _of(taskset: str | None) -> list[ColumnElement[bool]]:
    return [] if taskset is None else [queue_items.c.taskset == bindable(taskset, "taskset")]


def _on(item: str) -> ColumnElement[bool]:
    return and_(assignments.c.item == item, assignments.c.kind == "normal")


def _open(person: str, taskset: str | None) -> Select[*tuple[object, ...]]:
    query = select(assignments).join(queue_items, queue_items.c.item == assignments.c.item)
    return query.where(_is_open_for(person), *_of(taskset)).order_by(assignments.c.taken.desc())


def _mine(connection: Connection, id: str, person: str) -> Row[*tuple[object, ...]]:
    query = select(assignments).where(assignments.c.id == bindable(id, "assignment"), assignments.c.person == bindable(person, "rater"))
    # A pair that was opened on one's own is no lease: it can be neither finished nor skipped.
    row = connection.execute(query.where(assignments.c.kind != "own")).one_or_none()
    if row is None:
        raise DataError("this run is not in your queue. Take the next one.")
    return row


def assignment_of(row: Row[*tuple[object, ...]], now: float) -> Assignment:
    """A row of the table as it is handed out."""
    return Assignment(
        row.id, row.trajectory, row.person, row.kind, row.state, row.taken, row.expires - now, row.reason, row.other, row.on_left
    )


def _normal(connection: Connection, person: str, taskset: str | None, now: float) -> str | None:
    """The most urgent item with a free place that this person never had; among equally urgent ones each person meets their own order."""
    found: list[Row[str, float, bool]] = []
    for start in count(0, PEEK):
        # Places are counted for the most urgent only: in a queue of ten thousand items that is most of the work.
        some = select(queue_items).where(queue_items.c.status == "open", queue_items.c.gold == "", *_of(taskset))
        urgent = some.order_by(queue_items.c.priority.desc(), queue_items.c.seq).limit(PEEK).offset(start).subquery()
        had = exists().where(assignments.c.item == urgent.c.item, assignments.c.person == person, assignments.c.kind == "normal")
        is_free = and_(~had, busy(now, urgent) < urgent.c.overlap).label("is_free")
        looked_at = connection.execute(
            select(urgent.c.item, urgent.c.priority, is_free).order_by(urgent.c.priority.desc(), urgent.c.seq)
        ).all()
        found += [row for row in looked_at if row.is_free]
        if len(found) >= LOOK_AHEAD or len(looked_at) < PEEK:
            break
    if not found:
        return None
    equal: list[str] = [row.item for row in found[:LOOK_AHEAD] if row.priority >= found[0].priority - CLOSE]
    return min(equal, key=lambda item: digest([person, item]), default=None)


def _gold(connection: Connection, person: str, taskset: str | None, chance: Random) -> str | None:
    query = select(queue_items.c.item).where(is_unmet_gold(person), *_of(taskset)).order_by(queue_items.c.seq)
    return _any(list(connection.execute(query).scalars()), chance)


def is_unmet_gold(person: str) -> ColumnElement[bool]:
    """Whether the person is still to meet an item of which the answer is known."""
    had = exists().where(assignments.c.item == queue_items.c.item, assignments.c.person == person)
    return and_(queue_items.c.status == "open", queue_items.c.gold != "", blind.is_for(person), ~had)


def _any(found: list[str], chance: Random) -> str | None:
    return chance.choice(found) if found else None


def _answered(connection: Connection, row: Row[*tuple[object, ...]]) -> set[str]:
    if row.other is not None:
        return compared(connection, row.person, row.trajectory, row.other, row.after)
    mine = and_(scores.c.trajectory == row.trajectory, scores.c.person == row.person, scores.c.stands)
    return set(connection.execute(select(scores.c.criterion).where(mine, scores.c.seq > row.after)).scalars())


def _lapse(connection: Connection, person: str, now: float) -> None:
    """A lease that ran out on an item which takes no more answers is over: for its person the run is one like any other."""
    takes_answers = exists().where(queue_items.c.item == assignments.c.item, queue_items.c.status == "open")
    is_over = and_(_is_open_for(person), assignments.c.kind == "normal", assignments.c.expires <= now, ~takes_answers)
    connection.execute(assignments.update().where(is_over).values(state="lapsed"))


def _settle(connection: Connection, item: str) -> None:
    """An item with all its answers is full, and is looked at no more when the next one is chosen."""
    done = select(func.count()).select_from(assignments).where(_on(item), assignments.c.state == "done").scalar_subquery()
    is_full = and_(queue_items.c.item == item, queue_items.c.status == "open", queue_items.c.gold == "")
    connection.execute(queue_items.update().where(is_full, queue_items.c.overlap <= done).values(status="full"))
