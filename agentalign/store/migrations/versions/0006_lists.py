"""Indexes for lists of one maker's runs of one split, which read every run of the maker before."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make them."""
    op.create_index("ix_trajectories_policy_split", "trajectories", ["policy", "split", "seq"])
    op.create_index("ix_trajectories_taskset_policy_split", "trajectories", ["taskset", "policy", "split", "seq"])
