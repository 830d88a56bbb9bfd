"""Scores count in the order they were stored, whatever their times say; and no assignment waits for numbers that were forgotten.

Verdicts of runs whose scores' times run backwards are made anew by the rule in force, whichever that is by then: the check goes by it.
"""

from collections.abc import Sequence
from itertools import pairwise

import sqlalchemy as sa
from alembic import op

from agentalign.records.criterion import Score
from agentalign.store.verdicts import refresh_where

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Refresh the verdicts and lower the bounds."""
    connection = op.get_bind()
    refresh_where(connection, _disordered)
    for table, about in (("scores", "other IS NULL"), ("preferences", "other IS NOT NULL")):
        highest = connection.execute(sa.text(f"SELECT max(seq) FROM {table}")).scalar() or 0  # noqa: S608  (one of two names)
        for bound in ("after", "until"):
            lower = sa.text(f"UPDATE assignments SET {bound} = :highest WHERE {about} AND {bound} > :highest")  # noqa: S608
            connection.execute(lower, {"highest": highest})


def _disordered(scores: Sequence[Score]) -> bool:
    return any(after.time < before.time for before, after in pairwise(scores))
