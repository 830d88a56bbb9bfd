"""Which runs somebody must find nowhere: those that are open in their queue, or wait for them in it, and all relatives of these.

Relatives are what a run came from and what came from that, however far. A correction or a branch begins word for word like its parent,
and its page shows what somebody thought of that; a parent's page tells who made both. Surprise: a sibling is as telling as a parent, so
the walk goes up to the first run of all, and from there down to everything that began with it.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import CTE, ColumnElement, Connection, Select, and_, exists, literal, or_, select, union_all

from agentalign.store.database import is_one_of
from agentalign.store.tables import assignments, queue_items, trajectories

Among = Callable[[ColumnElement[str]], ColumnElement[bool]]
"""A condition on a column that holds runs."""


def is_open_for(person: str) -> ColumnElement[bool]:
    """Whether an assignment is this person's and not finished, whether its lease lives or not."""
    return and_(assignments.c.person == person, assignments.c.state == "open")


def is_for(person: str) -> ColumnElement[bool]:
    """Whether an item of the queue may come to this person at all: nobody is tested by an answer that they set themselves."""
    return queue_items.c.gold_by.is_distinct_from(person)


def open_for(person: str) -> list[Select[str]]:
    """Runs that this person has taken from the queue and not finished, alone or in a pair."""
    # No NULL may get into any of these: nothing is ever "not in" a list with one.
    return [select(column).where(is_open_for(person), column.is_not(None)) for column in (assignments.c.trajectory, assignments.c.other)]


def waiting_for(person: str, among: Among | None = None) -> list[Select[str]]:
    """Runs in the queue, alone or in a pair, that this person has not finished: any of them may still come to them.

    A run with an answer that they set themselves may not.
    """
    theirs = (assignments.c.item == queue_items.c.item) & (assignments.c.person == person)
    waits = and_(queue_items.c.status == "open", is_for(person), ~exists().where(theirs, assignments.c.state.not_in(("open", "drawn"))))
    columns = (queue_items.c.trajectory, queue_items.c.other)
    return [select(column).where(waits, column.is_not(None) if among is None else among(column)) for column in columns]


def neither_they_nor_relatives(runs: Sequence[Select[str]]) -> list[ColumnElement[bool]]:
    """The conditions on `trajectories` that leave out the runs and all their relatives.

    Most runs have no relatives. For these the first condition is all: a database walks from the runs, which may be a queue of thousands,
    only once it meets one that has.
    """
    every = union_all(*runs)
    stored, child = trajectories.c, trajectories.alias()
    has_child = exists().where(child.c.parent == stored.id).correlate(trajectories)
    found = _relatives(select(literal("").label("asked"), every.subquery().c[0].label("id")))
    return [stored.id.not_in(every), or_(and_(stored.parent.is_(None), ~has_child), stored.id.not_in(select(found.c.id)))]


def hidden(connection: Connection, person: str, asked: Sequence[str], *, waiting: bool) -> dict[str, int]:
    """As `Queue.hidden`, in the caller's transaction."""
    columns = trajectories.c
    relatives = _relatives(select(columns.id.label("asked"), columns.id.label("id")).where(is_one_of(connection, columns.id, asked)))
    families: dict[str, list[str]] = {}
    for run, relative in connection.execute(select(relatives.c.asked, relatives.c.id)):
        families.setdefault(run, []).append(relative)
    wanted = sorted({relative for family in families.values() for relative in family})

    def among(column: ColumnElement[str]) -> ColumnElement[bool]:
        return is_one_of(connection, column, wanted)

    found: dict[str, int] = {}
    if waiting:
        found |= dict.fromkeys(connection.execute(union_all(*waiting_for(person, among))).scalars(), 0)
    # A pair says nothing about marks: its number counts preferences.
    first, second, is_open = assignments.c.trajectory, assignments.c.other, is_open_for(person)
    in_pairs = union_all(*(select(column).where(is_open, second.is_not(None), among(column)) for column in (first, second)))
    found |= dict.fromkeys(connection.execute(in_pairs).scalars(), 0)
    for run, after in connection.execute(select(first, assignments.c.after).where(is_open, second.is_(None), among(first))):
        found[run] = max(found.get(run, 0), after)
    return {run: found.get(run, 0) for run in asked if any(relative in found for relative in families.get(run, ()))}


def _relatives(begun: Select[str, str]) -> CTE:
    """(asked, id) for every relative of each run `id` that the query begins with, itself included; `asked` is carried along."""
    run = trajectories.alias()
    up = begun.cte(recursive=True)
    up = up.union(select(up.c.asked, run.c.parent).join(run, run.c.id == up.c.id).where(run.c.parent.is_not(None)))
    down = select(up.c.asked, up.c.id).cte(recursive=True)
    child = trajectories.alias()
    return down.union(select(down.c.asked, child.c.id).join(child, child.c.parent == down.c.id))
