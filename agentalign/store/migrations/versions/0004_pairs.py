"""Pairs in the queue, with the sides that were drawn; and which of a person's scores still stand."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")
_UNNAMED = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
"""SQLite keeps no name of the constraint that has to go."""


def upgrade() -> None:
    """Columns for a second run; a queued thing is known by `item` from now on, which for a single run is the run's id."""
    connection = op.get_bind()
    unique = "uq_queue_items_trajectory" if connection.dialect.name == "sqlite" else "queue_items_trajectory_key"
    op.drop_index("ix_assignments_once", "assignments")
    for table in ("queue_items", "assignments"):
        with op.batch_alter_table(table, naming_convention=_UNNAMED) as batch:
            batch.add_column(sa.Column("item", _key, nullable=False, server_default=""))
            batch.add_column(sa.Column("other", _key))
            batch.create_foreign_key(f"fk_{table}_other", "trajectories", ["other"], ["id"])
            if table == "queue_items":
                batch.drop_constraint(unique, type_="unique")
            else:
                batch.add_column(sa.Column("on_left", _key))
        op.execute(sa.text(f"UPDATE {table} SET item = trajectory"))  # noqa: S608  (one of the two names above)
    op.create_index("ix_queue_items_item", "queue_items", ["item"], unique=True)
    op.create_index("ix_assignments_once", "assignments", ["item", "person", "kind"], unique=True)
    op.add_column("scores", sa.Column("stands", sa.Boolean, nullable=False, server_default=sa.true()))
    _fill_standing(connection)


def _fill_standing(connection: sa.Connection) -> None:
    rows = connection.execute(sa.text("SELECT seq, trajectory, person, record FROM scores WHERE person IS NOT NULL ORDER BY seq"))
    places: dict[tuple[object, ...], list[int]] = {}
    fallen: list[int] = []
    for seq, trajectory, person, record in rows:
        # A damaged record must not keep a store from opening: reading that score says what is wrong with it.
        try:
            score = json.loads(record)
            place = (trajectory, person, score["criterion"], score["step"])
            is_back = score["status"] == "withdrawn"
        except (ValueError, LookupError, TypeError):
            continue
        places.setdefault(place, []).append(seq)
        if is_back:
            fallen += places.pop(place)
    if fallen:
        connection.execute(sa.text("UPDATE scores SET stands = :no WHERE seq = :seq"), [{"no": False, "seq": seq} for seq in fallen])
