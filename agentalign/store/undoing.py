"""What somebody said before a run or a pair came to them stands again where they took back all that they said since.

Blind, the page shows only answers that were given since the run was taken. Taking one back is said of a place, not of an answer, so it
takes the earlier ones there along, which nobody saw. When the assignment ends, the earlier answer is appended again; until then what was
said last holds, as always. Surprise: it comes after the assignment's last number, so it is no answer of a repeat, nor one about gold.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Row, Select, and_, select

from agentalign.records.base import Record, digest, now
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.preference import Preference
from agentalign.store import rows, verdicts
from agentalign.store.appending import insert_new, read_records
from agentalign.store.tables import preferences, scores

R = TypeVar("R", bound=Record)


def say_again(connection: Connection, ended: Row[*tuple[object, ...]]) -> None:
    """Append what stood when this assignment was taken and fell by what was taken back since, in the transaction that ends it."""
    if ended.other is not None:
        told = and_(preferences.c.item == ended.item, preferences.c.person == ended.person)
        words = select(preferences.c.id, preferences.c.record, preferences.c.digest).where(told).order_by(preferences.c.seq)
        since, before = (words.where(side) for side in (preferences.c.seq > ended.after, preferences.c.seq <= ended.after))
        again = _fallen(connection, since, before, Preference)
        insert_new(connection, preferences, [rows.preference_row(_anew(word, word.id, ended.id)) for word in again])
        return
    mine = and_(scores.c.trajectory == ended.trajectory, scores.c.person == ended.person)
    marks = select(scores.c.id, scores.c.record, scores.c.digest).where(mine).order_by(scores.c.seq)
    since, before = (marks.where(side) for side in (scores.c.seq > ended.after, scores.c.seq <= ended.after))
    lost = _fallen(connection, since, before, Score)
    insert_new(connection, scores, [rows.score_row(_anew(mark, mark.id, ended.id)) for mark in lost])
    if lost:
        verdicts.refresh(connection, [ended.trajectory])


def _fallen(connection: Connection, since: Select[str, str, str], before: Select[str, str, str], cls: type[R]) -> list[R]:
    """By place the last answer of before, where one was given since and taken back."""
    places: dict[object, list[bool]] = {}
    for place, is_back, _ in _placed(read_records(connection, since, cls)):
        places.setdefault(place, []).append(is_back)
    # Where the first word since takes something back, it is the earlier answer, on a page that showed it.
    undone = {place for place, backs in places.items() if backs[-1] and not backs[0]}
    if not undone:
        return []
    last = {place: (is_back, record) for place, is_back, record in _placed(read_records(connection, before, cls)) if place in undone}
    return [record for is_back, record in last.values() if not is_back]


def _placed(records: Sequence[R]) -> Iterable[tuple[object, bool, R]]:
    """Each with its place, and whether it takes back what was said there."""
    for record in records:
        if isinstance(record, Score):
            yield (record.criterion, record.step), record.status == ScoreStatus.WITHDRAWN, record
        elif isinstance(record, Preference):
            yield record.criterion, record.withdrawn, record


def _anew(said: R, id: str, assignment: str) -> R:
    return said.model_copy(update={"id": digest(["again", assignment, id]), "time": now()})
