"""The first schema. Written out, not taken from tables.py: a migration must never change once it is released."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")


def upgrade() -> None:
    """Make every table."""
    _runs()
    op.create_table(
        "scores",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("trajectory", _key, sa.ForeignKey("trajectories.id"), nullable=False, index=True),
        sa.Column("criterion", _key, nullable=False),
        sa.Column("person", _key),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("digest", _key, nullable=False),
    )
    op.create_index("ix_scores_person", "scores", ["person", "trajectory"])
    op.create_table(
        "preferences",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("taskset", _key, nullable=False, index=True),
        sa.Column("criterion", _key, nullable=False),
        sa.Column("source", _key, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("digest", _key, nullable=False),
    )
    op.create_table(
        "trainings",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("taskset", _key, nullable=False),
        sa.Column("adapter", _key, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("digest", _key, nullable=False),
    )


def _runs() -> None:
    op.create_table(
        "trajectories",
        sa.Column("seq", _seq, primary_key=True),
        sa.Column("id", _key, nullable=False, unique=True),
        sa.Column("taskset", _key, nullable=False),
        sa.Column("task_id", _key),
        sa.Column("family", _key, nullable=False),
        sa.Column("split", _key, nullable=False),
        sa.Column("policy", _key, nullable=False),
        sa.Column("origin_kind", _key, nullable=False),
        sa.Column("stop_reason", _key, nullable=False),
        sa.Column("content_digest", _key, nullable=False, index=True),
        sa.Column("n_steps", sa.Integer, nullable=False),
        sa.Column("n_calls", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("created", _key, nullable=False),
    )
    op.create_index("ix_trajectories_filters", "trajectories", ["taskset", "split", "family", "policy", "origin_kind", "stop_reason"])
    op.create_index("ix_trajectories_task", "trajectories", ["task_id", "taskset"])
    op.create_index("ix_trajectories_policy", "trajectories", ["policy", "taskset"])
    op.create_table(
        "bodies",
        sa.Column("trajectory", _seq, sa.ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("digest", _key, nullable=False),
        sa.Column("search", sa.Text, nullable=False),
    )
    op.create_table(
        "calls",
        sa.Column("tool", _key, primary_key=True),
        sa.Column("trajectory", _seq, sa.ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
    )
    op.create_table(
        "tokens",
        sa.Column("trajectory", _seq, sa.ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
        sa.Column("base", _key, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("digest", _key, nullable=False),
    )
