"""Queues of runs to rate, their assignments, accounts of people, and tombstones of what was forgotten."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")


def upgrade() -> None:
    """Make the four tables."""
    op.create_table(
        "queue_items",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("trajectory", _key, sa.ForeignKey("trajectories.id"), nullable=False, unique=True),
        sa.Column("taskset", _key, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("gold", sa.Text, nullable=False),
        sa.Column("priority", sa.Float, nullable=False),
        sa.Column("status", _key, nullable=False),
        sa.Column("added", sa.Float, nullable=False),
    )
    op.create_index("ix_queue_items_next", "queue_items", ["status", "priority", "taskset"])
    op.create_table(
        "assignments",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("trajectory", _key, sa.ForeignKey("trajectories.id"), nullable=False),
        sa.Column("person", _key, nullable=False),
        sa.Column("kind", _key, nullable=False),
        sa.Column("state", _key, nullable=False),
        sa.Column("after", _seq, nullable=False),
        sa.Column("until", _seq),
        sa.Column("taken", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("finished", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("ix_assignments_once", "assignments", ["trajectory", "person", "kind"], unique=True)
    op.create_index("ix_assignments_person", "assignments", ["person", "state"])
    op.create_table(
        "accounts",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("name", _key, nullable=False, unique=True),
        sa.Column("role", _key, nullable=False),
        sa.Column("password", sa.Text, nullable=False),
        sa.Column("created", _key, nullable=False),
    )
    op.create_table(
        "tombstones",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("what", _key, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("time", _key, nullable=False),
    )
