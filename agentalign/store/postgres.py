"""The store in PostgreSQL, for teams that share one over the network. The same records, the same one writer at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from agentalign.errors import StoreError
from agentalign.store.schema import check_known, migrate, revision
from agentalign.store.tables import REVISIONS, metadata

# One write at a time keeps `seq` in the order of commits and makes deadlocks impossible. Any constant would do, if it is always the same.
_LOCK = text("SELECT pg_advisory_xact_lock(7305804402566)")
# A server that runs without synchronous commits would forget acknowledged ratings in a power cut.
_DURABLE = text("SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'")


class PostgresDatabase:
    """Connections to one PostgreSQL database."""

    def __init__(self, url: URL) -> None:
        self.where = f"store {url.render_as_string(hide_password=True)}"
        self._engine = _engine(url, self.where)
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        try:
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def _check_schema(self) -> None:
        with self.read() as connection:
            encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
            if encoding != "UTF8":
                raise StoreError(f"{self.where} is encoded in {encoding} which lacks characters. Make it anew with ENCODING 'UTF8'.")
            found = revision(connection)
        check_known(found, self.where)
        if found != REVISIONS[-1]:
            with self.write() as connection:
                found = revision(connection)  # another process may have been quicker
                check_known(found, self.where)
                if found != REVISIONS[-1]:
                    migrate(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction; everything read in it is of one moment."""
        with _translated(self.where), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction of this database; committed when the block has ended."""
        with _translated(self.where), self._engine.begin() as connection:
            connection.execute(_LOCK)
            connection.execute(_DURABLE)
            yield connection

    @contextmanager
    def erase(self) -> Iterator[Connection]:
        """A write transaction; then every table is written anew without what was deleted, and others wait meanwhile."""
        with self.write() as connection:
            yield connection
        with _translated(self.where), self._engine.connect() as connection:
            vacuum = connection.execution_options(isolation_level="AUTOCOMMIT")
            for table in metadata.sorted_tables:
                vacuum.execute(text(f"VACUUM FULL {table.name}"))

    def close(self) -> None:
        """Close every connection. A second call does nothing."""
        self._engine.dispose()


def _engine(url: URL, where: str) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=4, max_overflow=60)
    except ModuleNotFoundError as error:
        raise StoreError(f"{where} needs the PostgreSQL driver. Install it with `pip install 'agentalign[postgres]'`.") from error


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if state in ("42501", "25006"):  # insufficient privilege, read-only transaction
            raise StoreError(f"{where} may not be written by this user ({_first_line(error)}). Grant it the right.") from error
        if state.startswith(("53", "54", "58", "XX")):  # out of disk or memory, over a limit, I/O error, corruption
            raise StoreError(f"{where} failed ({_first_line(error)}). Nothing was stored; see the server's log.") from error
        if isinstance(error, OperationalError) or error.connection_invalidated or "connection option" in str(error.orig):
            raise StoreError(
                f"{where} cannot be reached ({_first_line(error)}). Check AGENTALIGN_DATABASE_URL and the server, then save again: "
                "what was stored already is only counted as known."
            ) from error
        raise


def _first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__
