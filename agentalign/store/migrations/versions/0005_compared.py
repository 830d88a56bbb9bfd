"""Whose word on which pair a preference is, and whether it still stands: what a person compared is found without reading every record."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")
CHUNK = 1000


def upgrade() -> None:
    """The columns, filled for what is stored already, and the indexes over them."""
    op.add_column("preferences", sa.Column("person", _key))
    op.add_column("preferences", sa.Column("item", _key))
    op.add_column("preferences", sa.Column("stands", sa.Boolean, nullable=False, server_default=sa.true()))
    _fill(op.get_bind())
    op.create_index("ix_preferences_item", "preferences", ["item", "person", "seq"])
    op.create_index("ix_preferences_person", "preferences", ["person", "taskset", "criterion", "stands", "item"])


def _fill(connection: sa.Connection) -> None:
    places: dict[tuple[object, ...], list[int]] = {}
    fallen: list[int] = []
    after = 0
    query = sa.text("SELECT seq, criterion, source, record FROM preferences WHERE seq > :after ORDER BY seq LIMIT :most")
    while found := connection.execute(query, {"after": after, "most": CHUNK}).all():
        after, values = found[-1].seq, []
        for seq, criterion, source, record in found:
            # A damaged record must not keep a store from opening: reading that preference says what is wrong with it.
            try:
                word = json.loads(record)
                runs = [id for id, step in word["items"] if step is None]
                person = word["rater"] if source == "human" else None
                is_back = bool(word.get("withdrawn"))
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
            item = "+".join(sorted(runs)) if len(runs) == len(word["items"]) == 2 else None
            values.append({"seq": seq, "person": person, "item": item})
            if person is None or item is None:
                continue
            place = (criterion, person, item)
            places.setdefault(place, []).append(seq)
            if is_back:
                fallen += places.pop(place)
        if values:
            connection.execute(sa.text("UPDATE preferences SET person = :person, item = :item WHERE seq = :seq"), values)
    if fallen:
        connection.execute(sa.text("UPDATE preferences SET stands = :no WHERE seq = :seq"), [{"no": False, "seq": seq} for seq in fallen])
