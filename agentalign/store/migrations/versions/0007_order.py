"""Scores count in the order they were stored, whatever their times say; and no assignment waits for numbers that were forgotten.

Verdicts of runs whose scores' times run backwards are made anew by the rule in force, whichever that is by then: the check goes by it.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby, pairwise

import sqlalchemy as sa
from alembic import op

from agentalign.errors import AgentAlignError
from agentalign.records.criterion import Score
from agentalign.store.rows import read
from agentalign.store.verdicts import verdict_rows

revision = "0007"
down_revision = "0006"

CHUNK = 1000
"""Runs looked at together."""


def upgrade() -> None:
    """Refresh the verdicts and lower the bounds."""
    connection = op.get_bind()
    _refresh_verdicts(connection)
    for table, about in (("scores", "other IS NULL"), ("preferences", "other IS NOT NULL")):
        highest = connection.execute(sa.text(f"SELECT max(seq) FROM {table}")).scalar() or 0  # noqa: S608  (one of two names)
        for bound in ("after", "until"):
            lower = sa.text(f"UPDATE assignments SET {bound} = :highest WHERE {about} AND {bound} > :highest")  # noqa: S608
            connection.execute(lower, {"highest": highest})


def _refresh_verdicts(connection: sa.Connection) -> None:
    last = connection.execute(sa.text("SELECT max(seq) FROM trajectories")).scalar() or 0
    columns = "criterion, trajectory, value, spread"
    insert = sa.text(f"INSERT INTO verdicts ({columns}) VALUES (:criterion, :trajectory, :value, :spread)")  # noqa: S608
    for start in range(0, last + 1, CHUNK):
        for seq, scores in list(_disordered(connection, start)):
            connection.execute(sa.text("DELETE FROM verdicts WHERE trajectory = :seq"), {"seq": seq})
            made = verdict_rows(seq, scores)
            if made:
                connection.execute(insert, made)


def _disordered(connection: sa.Connection, start: int) -> Iterator[tuple[int, list[Score]]]:
    """Runs of this chunk in whose scores a later one says an earlier time."""
    query = sa.text(
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
        if any(after.time < before.time for before, after in pairwise(scores)):
            yield seq, scores
