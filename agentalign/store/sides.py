"""Which run of a pair a person sees on the left, and what they have said about the pair.

Sides are balanced for each person, not only drawn: of two pairs by the same two makers, each maker stands on the left once, in an order
that chance decides. A repeat is shown with its sides swapped, so that whoever answers by the side is found out.
Surprise: where one maker made both runs there is no maker to balance, so the lower run id takes its place.
"""

from random import Random

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select

from agentalign.records.preference import Preference, pair_id
from agentalign.store.appending import read_records
from agentalign.store.tables import assignments, preferences, scores, trajectories

DRAWN = ("normal", "own", "gold")
"""Kinds whose sides were drawn; a repeat's follow from those."""


def item_of(first: str, second: str | None) -> str:
    """What the queue knows a run, or a pair, by."""
    return first if second is None else pair_id(first, second)


def side(connection: Connection, person: str, first: str, second: str, chance: Random, *, is_repeat: bool = False) -> str:
    """The run that this person is to see on the left. `first` has the lower id."""
    before = select(assignments.c.on_left).where(assignments.c.item == item_of(first, second), assignments.c.person == person)
    shown = connection.execute(before.where(assignments.c.kind.in_(DRAWN)).order_by(assignments.c.seq.desc()).limit(1)).scalar()
    if shown is not None:
        return (second if shown == first else first) if is_repeat else shown
    made = select(trajectories.c.id, trajectories.c.policy).where(trajectories.c.id.in_((first, second)))
    makers = {row.id: row.policy for row in connection.execute(made)}
    low, high = sorted((first, second), key=lambda id: (makers[id], id))
    balance = _balance(connection, person, makers[low], makers[high])
    return low if balance < 0 or (balance == 0 and chance.random() < 0.5) else high


def compared(connection: Connection, person: str, first: str, second: str, after: int) -> set[str]:
    """The criteria by which this person has compared the two runs since the preference of this number, answers taken back left out."""
    said = said_about(connection, person, first, second, after)
    return {p.criterion for p in {p.criterion: p for p in said}.values() if not p.withdrawn}


def said_about(connection: Connection, person: str, first: str, second: str, after: int, until: int | None = None) -> list[Preference]:
    """What this person said about the two runs after the preference of one number, up to that of another, oldest first."""
    table = preferences.c
    query = select(table.id, table.record, table.digest).where(table.item == item_of(first, second), table.person == person)
    query = query.where(table.seq > after, *([] if until is None else [table.seq <= until]))
    return read_records(connection, query.order_by(table.seq), Preference)


def last_word(connection: Connection, second: str | None) -> int:
    """The number of the last preference, or for a single run (`second` is None) of the last score."""
    column = scores.c.seq if second is None else preferences.c.seq
    return connection.execute(select(func.max(column))).scalar() or 0


def _balance(connection: Connection, person: str, low: str, high: str) -> int:
    """How much more often the person saw `low` on the left than `high`, in pairs by these two makers."""
    one, two = trajectories.alias(), trajectories.alias()
    makers = or_(and_(one.c.policy == low, two.c.policy == high), and_(one.c.policy == high, two.c.policy == low))
    is_first = assignments.c.on_left == assignments.c.trajectory
    is_low: ColumnElement[bool] = is_first if low == high else case((is_first, one.c.policy), else_=two.c.policy) == low
    query = select(func.sum(case((is_low, 1), else_=-1))).select_from(assignments)
    query = query.join(one, one.c.id == assignments.c.trajectory).join(two, two.c.id == assignments.c.other)
    query = query.where(assignments.c.person == person, assignments.c.kind.in_(DRAWN), makers)
    return int(connection.execute(query).scalar() or 0)
