"""Who set a known answer: nobody is tested by their own. Of those set before it is not known."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")


def upgrade() -> None:
    """Add the column."""
    op.add_column("queue_items", sa.Column("gold_by", _key))
