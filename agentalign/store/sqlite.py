"""The store's SQLite file: many readers, one writer at a time over all processes of this machine.

Every write transaction and every checkpoint happens under one `flock` on store.lock, because SQLite 3.7.0 to 3.51.2 can lose commits when
two connections write or checkpoint a WAL at the same instant. A new file is built aside and renamed into place, so that an empty
store.db is never mistaken for a new one: it is damage, and is refused.
"""

import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from agentalign.errors import StoreError
from agentalign.store.files import put_in_place
from agentalign.store.network import network_file_system
from agentalign.store.rows import RESTORE
from agentalign.store.schema import check_known, migrate, revision
from agentalign.store.tables import REVISIONS

LOCK_SECONDS = 120.0
"""How long a write waits for other writers before it gives up with an error."""

ERASE_SECONDS = 60.0
"""How long forgetting waits for readers that still need what was deleted."""


class SqliteDatabase:
    """Connections to one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.where = f"store {path}"
        self._thread_lock = threading.Lock()
        self._process = os.getpid()
        refuse_network(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.where} cannot be made: {error}. Choose a folder that you may write to.") from error
        if not self.path.exists():
            with file_lock(self.path):
                if not self.path.exists():
                    create(self.path)
        self._readers = open_engine(self.path, "ro")
        self._writer = open_engine(self.path, "rw")
        self._file = _file_id(self.path)
        self._finalizer = weakref.finalize(self, _dispose, self.path, self._readers, self._writer)
        try:
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def _check_schema(self) -> None:
        with self.read() as connection:
            found = revision(connection)
            if found is None and inspect(connection).get_table_names():
                raise StoreError(f"{self.where} is another program's SQLite file. Choose another path, or move that file away.")
        if found is None:
            raise StoreError(f"{self.where} is empty: its tables are gone, so it was damaged or cut. {RESTORE}")
        check_known(found, self.where)
        if found != REVISIONS[-1]:
            with self.write() as connection:
                migrate(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only connection; everything read in it is of one moment."""
        with translated(self.path):
            self._reopen_if_replaced()
            with self._readers.begin() as connection:
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction of this machine; committed and on the disk when the block has ended."""
        with self._thread_lock, file_lock(self.path), translated(self.path):
            self._reopen_if_replaced()
            with self._writer.begin() as connection:
                yield connection

    @contextmanager
    def erase(self) -> Iterator[Connection]:
        """A write transaction; then what it deleted is gone from the file (overwritten with zeros) and from the log (cut)."""
        with self.write() as connection:
            yield connection
        deadline = time.monotonic() + ERASE_SECONDS
        while self._cut_log():
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.where}: it is deleted, but its bytes still stand in {self.path.name}-wal because someone reads without pause. "
                    "End the other programs; the last to close the store cuts that file."
                )
            time.sleep(0.05)

    def _cut_log(self) -> bool:
        """Move the log into the file and cut it; True where a reader stood in the way."""
        with self._thread_lock, file_lock(self.path), translated(self.path), closing(self._writer.raw_connection()) as connection:
            busy, _, _ = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(busy)

    def _reopen_if_replaced(self) -> None:
        """A restored file has our path but not our open connections: writes to those would vanish with the old file."""
        if os.getpid() != self._process:
            raise StoreError(f"{self.where} was opened before this process was forked. Open it again here, or start processes by spawn.")
        now = _file_id(self.path)
        if now != self._file:
            self._readers.dispose()
            self._writer.dispose()
            self._file = now

    def close(self) -> None:
        """Close every connection. A second call does nothing."""
        self._finalizer()


def _dispose(path: Path, readers: Engine, writer: Engine) -> None:
    readers.dispose()
    if cast(QueuePool, writer.pool).checkedin() == 0:  # never written, or closed already
        return
    # The last connection to close checkpoints, and checkpoints belong under the lock.
    try:
        with file_lock(path):
            writer.dispose()
    except StoreError:
        writer.dispose()


def _file_id(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise StoreError(
            f"store {path} is gone: the file was moved or deleted. Put it back, or restore a backup: `agentalign restore FILE`."
        ) from error
    return found.st_dev, found.st_ino


def refuse_network(path: Path) -> None:
    """StoreError where `path` lies on a network file system."""
    kind = network_file_system(path)
    if kind is not None:
        raise StoreError(
            f"store {path} lies on a network file system ({kind}), where SQLite loses data. "
            "Move the project to a local disk, or set AGENTALIGN_DATABASE_URL to a PostgreSQL database."
        )


def open_engine(path: Path, mode: str) -> Engine:
    """Connections to an existing file: "ro" for many readers, "rw" for the one writer."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA query_only = ON" if mode == "ro" else "PRAGMA secure_delete = ON")
        return connection

    if mode == "ro":
        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=60, pool_timeout=60)
    else:
        engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0)
    _begin_with(engine, "BEGIN" if mode == "ro" else "BEGIN IMMEDIATE")
    return engine


def _begin_with(engine: Engine, statement: str) -> None:
    # isolation_level=None keeps Python's sqlite3 from opening transactions of its own, which begin deferred and too late.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)


def create(path: Path) -> None:
    """A new, empty store file with our schema, renamed into place when it is whole. Call it under the lock."""
    if path.with_name(path.name + "-wal").exists():
        raise StoreError(
            f"store {path} is gone but its log {path.name}-wal is there. Put it back, or restore a backup: `agentalign restore FILE`."
        )
    building = path.with_name(f"{path.name}.new")
    building.unlink(missing_ok=True)
    with translated(path):
        build(building)
        set_wal(building)
        put_in_place(building, path)


def build(path: Path) -> None:
    """Make our tables in a new file that nobody else knows of."""
    with file_engine(path) as engine, engine.begin() as connection:
        migrate(connection)


@contextmanager
def file_engine(path: Path) -> Iterator[Engine]:
    """Connections to a file that nobody else has open, such as a copy; made where it is missing."""
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(path, isolation_level=None), poolclass=NullPool)
    _begin_with(engine, "BEGIN IMMEDIATE")
    try:
        yield engine
    finally:
        engine.dispose()


def set_wal(path: Path) -> None:
    """Make the file one that many may read while one writes; it stays so."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    finally:
        connection.close()
    if mode != "wal":
        raise StoreError(f"store {path} lies on a file system without shared memory, which SQLite needs. Choose a folder on a local disk.")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """The lock of all writers of the store at `path`, over threads and processes; the system frees it when its holder dies."""
    try:
        descriptor = os.open(path.with_name("store.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(f"store {path} cannot be locked: {error}. Writing needs the right to write to its folder.") from error
    try:
        _acquire(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    pause = 0.0005
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"store {path} has been locked by another process for {LOCK_SECONDS:.0f} seconds. Nothing was written. "
                    "Wait for that process or end it, then try again."
                ) from error
        except OSError as error:
            raise StoreError(f"store {path} lies on a file system without locks ({error}). Choose a folder on a local disk.") from error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.01)


_SENTENCES = {
    "SQLITE_NOTADB": "is not a SQLite database, so it was damaged or overwritten. " + RESTORE,
    "SQLITE_CORRUPT": "is damaged: SQLite finds its pages malformed. " + RESTORE,
    "SQLITE_FULL": "has no room left on its disk. Nothing of this was stored; free some space and try again.",
    "SQLITE_IOERR": "cannot be read or written: the disk reports an error. Nothing of this was stored; check the disk.",
    "SQLITE_BUSY": "is locked by another program. Nothing of this was stored; close that program and try again.",
    "SQLITE_READONLY": "may not be written by this user. Give yourself the right to write to the file and its folder.",
    "SQLITE_CANTOPEN": "cannot be opened. Check that the file is there and that you may read it and write to its folder.",
    "SQLITE_PERM": "may not be opened by this user. Give yourself the right to read and write it.",
    "SQLITE_TOOBIG": "cannot hold a record of this size. Shorten the run's longest message.",
}


@contextmanager
def translated(path: Path, kind: str = "store") -> Iterator[None]:
    """SQLite's errors as one sentence each. Errors that are ours, such as a wrong statement, keep their traceback."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quoted damaged bytes in its own message
        raise StoreError(f"{kind} {path} {_SENTENCES['SQLITE_CORRUPT']}") from error
    except (DBAPIError, sqlite3.DatabaseError) as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(original, "sqlite_errorname", "") or ""
        for prefix, sentence in _SENTENCES.items():
            if code.startswith(prefix):
                raise StoreError(f"{kind} {path} {sentence}") from error
        if str(original).startswith(("no such table", "no such column", "foreign key mismatch", "Could not decode to UTF-8")):
            raise StoreError(f"{kind} {path} is damaged ({original}). {RESTORE}") from error
        raise
