"""What the scores of a run come to per criterion, in a table of its own, so that a million runs can be filtered by it.

Made by the rule that `overall` goes by, in the transaction that appends scores; nothing but filters reads it. Surprise: a reward model
takes no part in disagreement. Its answers are continuous, so it would disagree with everyone about everything. A decision settles one.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, delete, select

from agentalign.records.criterion import Score, effective, in_force
from agentalign.store import tables
from agentalign.store.appending import insert_all, read_records
from agentalign.store.database import is_one_of
from agentalign.store.rows import Row


def refresh(connection: Connection, ids: Iterable[str]) -> None:
    """Make the verdicts on these runs anew, in the caller's transaction."""
    wanted = sorted(set(ids))
    columns = tables.trajectories.c
    found = connection.execute(select(columns.id, columns.seq).where(is_one_of(connection, columns.id, wanted)))
    seqs = {row.id: row.seq for row in found}
    if not seqs:
        return
    table = tables.scores.c
    query = select(table.id, table.record, table.digest).where(is_one_of(connection, table.trajectory, sorted(seqs)))
    scores: dict[str, list[Score]] = {}
    for score in read_records(connection, query.order_by(table.seq), Score):
        scores.setdefault(score.trajectory, []).append(score)
    about = select(columns.seq).where(is_one_of(connection, columns.id, sorted(seqs)))
    connection.execute(delete(tables.verdicts).where(tables.verdicts.c.trajectory.in_(about)))
    insert_all(connection, tables.verdicts, [row for id, some in scores.items() for row in verdict_rows(seqs[id], some)])


def verdict_rows(seq: int, scores: Sequence[Score]) -> list[Row]:
    """The rows of `verdicts` for one run: a value per criterion on its own scale, and how far raters lie apart at the same place."""
    spreads = _spreads(scores)
    rows: list[Row] = []
    for criterion, counted in sorted(effective(scores).items()):
        values = [score.value for score in counted if score.value is not None]
        if values:
            value = sum(values) / len(values)
            rows.append({"criterion": criterion, "trajectory": seq, "value": value, "spread": spreads.get(criterion, 0.0)})
    return rows


def _spreads(scores: Sequence[Score]) -> dict[str, float]:
    places: dict[tuple[str, int | None], list[float]] = {}
    for score in in_force(scores):
        if score.value is not None and score.rater_kind != "reward_model":
            places.setdefault((score.criterion, score.step), []).append(score.value)
    found: dict[str, float] = {}
    for (criterion, _step), values in places.items():
        found[criterion] = max(found.get(criterion, 0.0), max(values) - min(values))
    return found
