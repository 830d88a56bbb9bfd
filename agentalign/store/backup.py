"""Backup and restore: one SQLite file holds a whole store, whichever database it came from or goes to.

A backup is of one moment, taken while others write; copying store.db by hand is not one, because its newest commits stand in store.db-wal.
Both directions read every record again before they call it done, and a damaged store is moved aside, never written over: a restore
reads the store that it replaces as well, because one damaged page leaves every other run readable.
Surprise: a restore does not bring back what the store has forgotten since. Only where the store itself is gone, or damaged so far that
its tombstones cannot be read, can nobody know.
"""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import quote

from sqlalchemy import Connection, func, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from agentalign.errors import AgentAlignError, DataError, StoreError
from agentalign.store import sqlite, tables
from agentalign.store.check import StoreReport, check, count, stream
from agentalign.store.database import Database, database_path, open_database
from agentalign.store.files import put_in_place
from agentalign.store.forgetting import Tombstone, forget_again
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
        _copy_file(source, copy, "backup")
        _upgrade(copy, source)
        report = _sound(copy, f"backup {source}")
        if path is None:
            return _into_database(copy, url, report, force)
        sqlite.refuse_network(path)
        with sqlite.file_lock(path):
            return _into_file(copy, path, report, force)


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


def _copy_file(source: Path, copy: Path, kind: str) -> None:
    with sqlite.translated(source, kind), closing(_connect(source, "ro")) as there, closing(sqlite3.connect(copy)) as here:
        there.backup(here)
        here.execute("PRAGMA journal_mode = DELETE")


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


def _into_file(copy: Path, path: Path, report: StoreReport, force: bool) -> StoreReport:
    """Put the file in the store's place; returns what it holds then. Called under the store's lock."""
    held, stones = _look_into(path)
    if held is not None:
        _refuse_full(held, str(path), force)
    left = _leave_out(copy, stones, report)
    if held is None:
        _move_aside(path, force)
        sqlite.set_wal(copy)
        put_in_place(copy, path)
        return left
    # Through SQLite, so that whoever has the store open sees the new content in their next transaction.
    with sqlite.translated(path), closing(_connect(copy, "ro")) as there, closing(_connect(path, "rw")) as here:
        here.execute("PRAGMA synchronous = FULL")
        there.backup(here)
    return left


def _stones(connection: Connection) -> Iterator[Tombstone]:
    """The tombstones of a store, which may be older than they are; of a damaged one those before the damage."""
    table = tables.tombstones.c
    if inspect(connection).has_table("tombstones"):
        for row in stream(connection, select(table.id, table.what, table.reason, table.time).order_by(table.seq)):
            stone = Tombstone(row.id, row.what, row.reason, row.time)
            # SQLite's columns take any type, and damage makes use of it.
            if all(isinstance(field, str) for field in stone):
                yield stone


def _leave_out(copy: Path, stones: list[Tombstone], report: StoreReport) -> StoreReport:
    """Take out of the copy what these tombstones name, down to the bytes; returns what it holds then, read again."""
    if not stones:
        return report
    with sqlite.file_engine(copy) as engine, engine.begin() as connection:
        forgotten = forget_again(connection, stones)
    with closing(sqlite3.connect(copy)) as raw:
        raw.execute("VACUUM")
    return _sound(copy, "what is left of the backup")._replace(forgotten=forgotten) if forgotten else report


def _look_into(path: Path) -> tuple[int | None, list[Tombstone]]:
    """How many records a store file holds, None where there is none or it is not sound; and what can be read of its tombstones.

    A copy is looked into, so that the file itself stays as it is found, and one of an older schema can be brought up first.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None, []
    stones: list[Tombstone] = []
    with _aside(path) as copy:
        # Whatever the reading trips over: what it trips over is no store to write over.
        with suppress(AgentAlignError, SQLAlchemyError, sqlite3.Error, ValueError, TypeError):
            _copy_file(path, copy, "store")
            with sqlite.translated(path), sqlite.file_engine(copy) as engine, engine.begin() as connection:
                for stone in _stones(connection):
                    stones.append(stone)  # noqa: PERF402  (those before the damage are kept)
            _upgrade(copy, path)
            with sqlite.translated(path), sqlite.file_engine(copy) as engine, engine.begin() as connection:
                report = check(connection)
            if not report.problems:
                return sum(report[:5]), stones
    return None, stones


def _move_aside(path: Path, force: bool) -> None:
    endings = [ending for ending in ("", "-wal", "-shm") if path.with_name(path.name + ending).exists()]
    if endings and not force:
        raise StoreError(
            f"store {path} is there but damaged, or not to be read by this agentalign. Force the restore: its files are kept beside it "
            "under another name."
        )
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    for ending in endings:
        there = path.with_name(path.name + ending)
        if ending == "-shm" or (ending == "-wal" and there.stat().st_size == 0):
            there.unlink()  # an index of the log, which SQLite makes anew, or no log at all
        else:
            # The ending stays last: by it SQLite finds the log, and with it the newest commits, when someone opens what was kept.
            there.rename(path.with_name(f"{path.name}.damaged-{moment}{ending}"))


def _refuse_full(held: int, where: str, force: bool) -> None:
    if held and not force:
        raise StoreError(f"store {where} holds {held} records, which a restore would replace. Back it up first, then force the restore.")


def _into_database(copy: Path, url: str, report: StoreReport, force: bool) -> StoreReport:
    database: Database = open_database(url)
    try:
        with database.read() as connection:
            left = _leave_out(copy, list(_stones(connection)), report)
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
    return left
