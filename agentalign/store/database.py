"""Which database a URL means: SQLite or PostgreSQL, behind the same three methods."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sqlalchemy import ColumnElement, Connection, cast, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.types import Text

from agentalign.errors import StoreError
from agentalign.records.base import canonical_json
from agentalign.store.postgres import PostgresDatabase
from agentalign.store.sqlite import SqliteDatabase


class Database(Protocol):
    """Where a store keeps its tables."""

    where: str
    """The database in words, without its password, for error sentences."""

    def read(self) -> AbstractContextManager[Connection]:
        """A read-only transaction."""

    def write(self) -> AbstractContextManager[Connection]:
        """A write transaction, on the disk when the block has ended."""

    def erase(self) -> AbstractContextManager[Connection]:
        """A write transaction after which nothing that was deleted in it can be read from the database's files."""

    def close(self) -> None:
        """Close every connection."""


def open_database(url: str) -> Database:
    """The database of a URL such as "sqlite:///folder/store.db" or "postgresql://user@host/name"."""
    path = database_path(url)
    return PostgresDatabase(_parse(url).set(drivername="postgresql+psycopg")) if path is None else SqliteDatabase(path)


def database_path(url: str) -> Path | None:
    """The file of a SQLite URL; None for PostgreSQL; StoreError for anything else."""
    file = url.removeprefix("sqlite:///")
    if file not in (url, "", ":memory:"):
        return Path(file)  # taken as it is: a folder's name may hold '?' and '%'
    parsed = _parse(url)
    if parsed.get_backend_name() == "postgresql":
        return None
    where = parsed.render_as_string(hide_password=True)
    raise StoreError(f"a store cannot live in {where}. Write sqlite:///folder/store.db or postgresql://user@host/name.")


def _parse(url: str) -> URL:
    try:
        return make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    except (ArgumentError, ValueError) as error:
        raise StoreError("the store's URL cannot be read. Write e.g. sqlite:///folder/store.db or postgresql://user@host/name.") from error


def is_one_of(connection: Connection, column: ColumnElement[str], values: Sequence[str]) -> ColumnElement[bool]:
    """`column IN values` for any number of values, as one bound parameter: both databases limit the number of parameters."""
    if connection.dialect.name == "postgresql":
        return column == func.any(cast(literal(list(values), ARRAY(Text)), ARRAY(Text)))
    each = func.json_each(canonical_json(list(values))).table_valued("value")
    return column.in_(select(each.c.value))
