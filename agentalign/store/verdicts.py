"""What the scores of a run come to per criterion, in a table of its own, so that a million runs can be filtered by it.

Of the scores that count in `overall`, in the transaction that appends scores; nothing but filters reads it. Surprise: it is their mean for
gates too, where `overall` goes by the worst step. A reward model takes no part in disagreement: its answers are continuous, so it would
disagree with everyone about everything. A decision settles one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby

from sqlalchemy import Connection, delete, select, text

from agentalign.errors import AgentAlignError
from agentalign.records.criterion import Score, effective, in_force
from agentalign.store import tables
from agentalign.store.appending import insert_all, read_records
from agentalign.store.database import is_one_of
from agentalign.store.rows import Row, read

CHUNK = 1000
"""Runs looked at together."""
_INSERT = "INSERT INTO verdicts (criterion, trajectory, value, spread) VALUES (:criterion, :trajectory, :value, :spread)"


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


def refresh_where(connection: Connection, wanted: Callable[[Sequence[Score]], bool]) -> None:
    """Make the verdicts anew of every run whose scores, in the order they were stored, are such; for migrations.

    By the rule in force, whichever that is by then: the check of a store goes by it.
    """
    last = connection.execute(text("SELECT max(seq) FROM trajectories")).scalar() or 0
    for start in range(0, last + 1, CHUNK):
        for seq, scores in list(scores_of_runs(connection, start)):
            if wanted(scores):
                connection.execute(text("DELETE FROM verdicts WHERE trajectory = :seq"), {"seq": seq})
                if made := verdict_rows(seq, scores):
                    connection.execute(text(_INSERT), made)


def scores_of_runs(connection: Connection, start: int) -> Iterator[tuple[int, list[Score]]]:
    """(run number, its scores in the order they were stored) of the scored ones among `CHUNK` runs; damaged scores are left out."""
    # Names as they were in every schema: the tables of now may have columns that a store on its way here has not.
    query = text(
        "SELECT t.seq, s.record, s.digest FROM scores s JOIN trajectories t ON t.id = s.trajectory "
        "WHERE t.seq >= :start AND t.seq < :end ORDER BY t.seq, s.seq"
    )
    found = connection.execute(query, {"start": start, "end": start + CHUNK}).all()
    for seq, rows in groupby(found, key=lambda row: int(row[0])):
        scores: list[Score] = []
        for _, record, digest in rows:
            # A damaged record must not keep a store from opening: reading that score says what is wrong with it.
            with suppress(AgentAlignError):
                scores.append(read(Score, record, digest, "score"))
        yield seq, scores


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
