"""Backup and restore: one SQLite file holds a whole store, whichever database it came from or goes to.

A backup is of one moment, taken while others write; copying store.db by hand is not one, because its newest commits stand in store.db-wal.
Both directions read every record again before they call it done, and a damaged store is moved aside, never written over.
Surprise: a restore does not bring back what the store has forgotten since. Only where the store itself is gone or damaged are its
tombstones too, and nobody can know.
"""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import quote

from sqlalchemy import Connection, func, insert, inspect, select

from agentalign.errors import DataError, StoreError
from agentalign.store import sqlite, tables
from agentalign.store.check import StoreReport, check, count, stream
from agentalign.store.database import Database, database_path, open_database
from agentalign.store.files import put_in_place
from agentalign.store.forgetting import Tombstone, forget_again, tombstones
from agentalign.store.schema import check_known, migrate, revision


def backup(url: str, target: Path, *, force: bool = False) -> StoreReport:
    """Copy the store at `url`, as of one moment, into the file `target`; returns what the copy holds."""
    live = database_path(url)
    if live is not None and target.resolve() == live.resolve():
        raise DataError(f"{target} is the store itself. Name another file.")
    if target.exists() and not force:
        raise DataError(f"{target} exists. Name another file, or force it to be replaced.")
    source = open_database(url)
    try:
        with _aside(target) as copy:
            with source.read() as connection:
                _copy_out(connection, copy)
            report = _sound(copy, source.where)
            put_in_place(copy, target)
    finally:
        source.close()
    return report


def restore(source: Path, url: str, *, force: bool = False) -> StoreReport:
    """Put a backup in the place of the store at `url`; without `force` only where there is none or an empty one."""
    if not source.is_file():
        raise DataError(f"there is no backup {source}. Name a file that `agentalign backup` wrote.")
    path = database_path(url)
    with _aside(path or Path(tempfile.gettempdir()) / "agentalign-restore.db") as copy:
        with sqlite.translated(source, "backup"), closing(_connect(source, "ro")) as there, closing(sqlite3.connect(copy)) as here:
            there.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")
        _upgrade(copy, source)
        report = _sound(copy, f"backup {source}")
        if path is None:
            forgotten = _into_database(copy, url, force)
        else:
            sqlite.refuse_network(path)
            with sqlite.file_lock(path):
                forgotten = _into_file(copy, path, force)
        if forgotten:
            report = _sound(copy, f"backup {source}")._replace(forgotten=forgotten)
    return report


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A file beside `target` to build in, gone afterwards unless it was renamed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            yield Path(folder) / target.name
    except OSError as error:
        raise StoreError(f"{target} could not be written ({error}). Free some space or choose a folder that you may write to.") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, timeout=30, isolation_level=None)


def _copy_out(connection: Connection, copy: Path) -> None:
    if connection.dialect.name == "sqlite":
        raw = cast(sqlite3.Connection, connection.connection.driver_connection)
        with closing(sqlite3.connect(copy)) as here:
            raw.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")
        return
    sqlite.build(copy)
    with sqlite.file_engine(copy) as engine, engine.begin() as here:
        _copy_rows(connection, here)


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in tables.metadata.sorted_tables:
        part = []
        for row in stream(source, select(table)):
            part.append(dict(row._mapping))
            if len(part) == 100:
                target.execute(insert(table), part)
                part = []
        if part:
            target.execute(insert(table), part)


def _upgrade(copy: Path, source: Path) -> None:
    with sqlite.translated(source, "backup"), sqlite.file_engine(copy) as engine, engine.begin() as connection:
        found = revision(connection)
        if found is None:
            raise DataError(f"{source} is a SQLite file but no backup of a store. Name a file that `agentalign backup` wrote.")
        check_known(found, f"backup {source}")
        if found != tables.REVISIONS[-1]:
            migrate(connection)


def _sound(copy: Path, where: str) -> StoreReport:
    with sqlite.translated(copy, "copy"), sqlite.file_engine(copy) as engine, engine.begin() as connection:
        report = check(connection)
    if report.problems:
        first = report.problems[0]
        raise StoreError(f"{where} is damaged in {len(report.problems)} places; the first: {first}. Nothing was replaced.")
    return report


def _into_file(copy: Path, path: Path, force: bool) -> int:
    """Put the file in the store's place; returns how many records were left out. Called under the store's lock."""
    held = _records_of(path)
    if held is None:
        _move_aside(path, force)
        sqlite.set_wal(copy)
        put_in_place(copy, path)
        return 0
    _refuse_full(held, str(path), force)
    with sqlite.translated(path), sqlite.file_engine(path) as engine, engine.begin() as connection:
        stones = _stones(connection)
    forgotten = _leave_out(copy, stones)
    # Through SQLite, so that whoever has the store open sees the new content in their next transaction.
    with sqlite.translated(path), closing(_connect(copy, "ro")) as there, closing(_connect(path, "rw")) as here:
        here.execute("PRAGMA synchronous = FULL")
        there.backup(here)
    return forgotten


def _stones(connection: Connection) -> list[Tombstone]:
    """The tombstones of a store, which may be older than they are."""
    return list(tombstones(connection).values()) if inspect(connection).has_table("tombstones") else []


def _leave_out(copy: Path, stones: list[Tombstone]) -> int:
    """Take out of the copy what these tombstones name, down to the bytes."""
    if not stones:
        return 0
    with sqlite.file_engine(copy) as engine, engine.begin() as connection:
        forgotten = forget_again(connection, stones)
    with closing(sqlite3.connect(copy)) as raw:
        raw.execute("VACUUM")
    return forgotten


def _records_of(path: Path) -> int | None:
    """How many records a store file holds; None where there is no file or a damaged one."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        with sqlite.translated(path), sqlite.file_engine(path) as engine, engine.begin() as connection:
            return sum(count(connection)[:5])
    except StoreError:
        return None


def _move_aside(path: Path, force: bool) -> None:
    names = [path.with_name(path.name + ending) for ending in ("", "-wal", "-shm")]
    there = [name for name in names if name.exists()]
    if there and not force:
        raise StoreError(f"store {path} is damaged but there. Force the restore: the damaged files are kept beside it under another name.")
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for name in there:
        name.rename(name.with_name(f"{name.name}.damaged-{moment}"))


def _refuse_full(held: int, where: str, force: bool) -> None:
    if held and not force:
        raise StoreError(f"store {where} holds {held} records, which a restore would replace. Back it up first, then force the restore.")


def _into_database(copy: Path, url: str, force: bool) -> int:
    database: Database = open_database(url)
    try:
        with database.read() as connection:
            forgotten = _leave_out(copy, _stones(connection))
        with sqlite.file_engine(copy) as engine, engine.begin() as source, database.write() as target:
            _refuse_full(sum(count(target)[:5]), database.where, force)
            for table in reversed(tables.metadata.sorted_tables):
                target.execute(table.delete())
            _copy_rows(source, target)
            for table in tables.metadata.sorted_tables:
                if "seq" in table.c:
                    counter = func.pg_get_serial_sequence(table.name, "seq")
                    highest = target.execute(select(func.max(table.c.seq))).scalar() or 0
                    target.execute(select(func.setval(counter, highest + 1, False)))
    finally:
        database.close()
    return forgotten
