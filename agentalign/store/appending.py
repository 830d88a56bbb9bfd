"""Inserting what is new and leaving alone what is known, in the caller's transaction."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Select, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from agentalign.errors import DataError
from agentalign.records.base import Record
from agentalign.records.preference import Item
from agentalign.store import rows, tables
from agentalign.store.database import is_one_of
from agentalign.store.rows import Row

R = TypeVar("R", bound=Record)


def insert_new(connection: Connection, table: Table, new: Sequence[Row], key: str = "id", returned: str = "seq") -> dict[str, int]:
    """Insert the rows whose `key` is not there yet; returns {key: `returned`} of those that were inserted."""
    if not new:
        return {}
    insert = postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
    statement = insert.on_conflict_do_nothing(index_elements=[key]).returning(table.c[key], table.c[returned])
    return {row[0]: row[1] for row in connection.execute(statement, list(new))}


def insert_all(connection: Connection, table: Table, new: Sequence[Row]) -> None:
    """Insert rows that cannot be there yet."""
    if new:
        connection.execute(table.insert(), list(new))


def insert_tokens(connection: Connection, new: Sequence[Row]) -> None:
    """Insert rows of `rows.token_row`; a run that has tokens keeps those."""
    columns = tables.trajectories.c
    known = select(columns.id, columns.seq).where(is_one_of(connection, columns.id, [row["trajectory"] for row in new]))
    seqs = {row.id: row.seq for row in connection.execute(known)}
    for row in new:
        if row["trajectory"] not in seqs:
            raise DataError(
                f"trajectory {row['trajectory']} has tokens but is not in the store. Store the run before its tokens, or with them."
            )
    insert_new(
        connection, tables.tokens, [{**row, "trajectory": seqs[row["trajectory"]]} for row in new], key="trajectory", returned="trajectory"
    )


def require_items(connection: Connection, items: Iterable[Item]) -> None:
    """DataError where an item is about a run that is not stored, or a step that its run does not have."""
    last: dict[str, int] = {}
    for id, step in items:
        last[id] = max(last.get(id, -1), -1 if step is None else step)
        if step is not None and step < 0:
            raise DataError(f"trajectory {id} has no step {step}: steps are counted from 0.")
    columns = tables.trajectories.c
    query = select(columns.id, columns.n_steps).where(is_one_of(connection, columns.id, sorted(last)))
    n_steps = {row.id: row.n_steps for row in connection.execute(query)}
    for id, step in last.items():
        if id not in n_steps and connection.execute(select(tables.tombstones.c.seq).where(tables.tombstones.c.id == id)).first():
            raise DataError(f"trajectory {id} was forgotten, or goes back to a run that was, so nothing can be said about it. Leave it.")
        if id not in n_steps:
            raise DataError(f"trajectory {id} is not in the store, so nothing can be said about it. Store the run first.")
        if step >= n_steps[id]:
            raise DataError(f"trajectory {id} has {n_steps[id]} steps, so it has no step {step}: steps are counted from 0.")


def refuse_conflicts(connection: Connection, table: Table, new: Sequence[Row], records: Sequence[Record]) -> None:
    """DataError where an id is stored with other content: counting it as known would lose someone's word.

    The time may differ: whoever lost the answer to a save makes the record anew and saves it again.
    """
    query = select(table.c.id, table.c.record, table.c.digest).where(is_one_of(connection, table.c.id, [row["id"] for row in new]))
    stored = {row.id: row for row in connection.execute(query)}
    for row, record in zip(new, records, strict=True):
        held = stored[row["id"]]
        if held.record == row["record"]:
            continue
        there = rows.read(type(record), held.record, held.digest, f"{table.name} {row['id']}")
        if there.model_dump(exclude={"time"}) != record.model_dump(exclude={"time"}):
            raise DataError(f"{table.name}: id {row['id']!r} is stored with other content, which stays. Send the new one under a new id.")


def read_records(connection: Connection, query: Select[str, str, str], cls: type[R]) -> list[R]:
    """Records of a query for (id, record, digest)."""
    return [rows.read(cls, record, digest, f"{cls.__name__.lower()} {id}") for id, record, digest in connection.execute(query)]
