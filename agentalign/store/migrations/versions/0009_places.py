"""Where several kinds of rater answered about steps of one run, the highest counts at each step, and no longer in the run as a whole.

So the verdicts of such runs are made anew.
"""

from collections.abc import Sequence

from alembic import op

from agentalign.records.criterion import Score
from agentalign.store.verdicts import refresh_where

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Refresh the verdicts."""
    refresh_where(op.get_bind(), _several_kinds)


def _several_kinds(scores: Sequence[Score]) -> bool:
    kinds: dict[str, set[str]] = {}
    for score in scores:
        kinds.setdefault(score.criterion, set()).add(score.rater_kind)
    of_steps = {score.criterion for score in scores if score.step is not None}
    return any(len(kinds[criterion]) > 1 for criterion in of_steps)
