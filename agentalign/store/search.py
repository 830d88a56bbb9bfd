"""Text search: which runs hold a text, by an index of three-character pieces.

SQLite has an FTS5 table of trigrams beside `bodies`, PostgreSQL a GIN index of the extension pg_trgm; triggers and the database keep them
in step with every insert and delete. An index only narrows: the text itself is then looked for in what is left, so both databases find
exactly what stands there, case aside. The surprise: a text of one or two characters has no trigram, and is looked for in every run.
"""

from sqlalchemy import ColumnElement, Connection, FromClause, Select, column, func, select, table

from agentalign.errors import DataError
from agentalign.store.rows import folded
from agentalign.store.tables import NAME_LENGTH, bodies, trajectories

PIECE = 3
MOST_PIECES = 40
"""Pieces of a long text that are asked for; the text itself decides anyway."""

run_text = table("run_text", column("rowid"), column("run_text"))
"""The FTS5 table of SQLite; it holds no text of its own."""


def stands_in(connection: Connection, text: str) -> ColumnElement[bool]:
    """Whether a run of `trajectories` holds the text."""
    wanted = _wanted(text)
    if connection.dialect.name != "sqlite":
        return trajectories.c.seq.in_(select(bodies.c.trajectory).where(bodies.c.search.contains(wanted, autoescape=True)))
    found = [] if len(wanted) < PIECE else [trajectories.c.seq.in_(_candidates(wanted))]
    return _verified(wanted) if not found else found[0] & _verified(wanted)


def newest_first(connection: Connection, text: str) -> tuple[FromClause, ColumnElement[int], list[ColumnElement[bool]]] | None:
    """For a page of a list: what to select from, the column that gives the order, and what must hold; None where `stands_in` serves.

    SQLite would collect every match of a common text before it looks at the first. Read from the index on, newest first, a page ends
    as soon as it is full.
    """
    wanted = _wanted(text)
    if connection.dialect.name != "sqlite" or len(wanted) < PIECE:
        return None
    # "+ 0" keeps SQLite from looking every run up in the index, which costs a hundred times as much as the other way round.
    source = run_text.join(trajectories, trajectories.c.seq == run_text.c.rowid + 0)
    return source, run_text.c.rowid, [_matches(wanted), _verified(wanted)]


def forget(connection: Connection) -> None:
    """Take what deleted runs left in SQLite's index out of the file's pages; PostgreSQL does so by VACUUM."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("INSERT INTO run_text(run_text) VALUES ('optimize')")


def indexed(connection: Connection) -> int | None:
    """How many runs the index of SQLite holds; None for PostgreSQL, whose indexes are its own affair."""
    if connection.dialect.name != "sqlite":
        return None
    return int(connection.exec_driver_sql("SELECT count(*) FROM run_text_docsize").scalar_one())


def _wanted(text: str) -> str:
    if len(text) > NAME_LENGTH:
        raise DataError(f"the text to look for has {len(text)} characters; {NAME_LENGTH} are the most. Look for a shorter part of it.")
    return folded(text)


def _verified(wanted: str) -> ColumnElement[bool]:
    holds = func.instr(bodies.c.search, wanted) > 0
    return select(bodies.c.trajectory).where(bodies.c.trajectory == trajectories.c.seq, holds).correlate(trajectories).exists()


def _candidates(wanted: str) -> Select[int]:
    return select(run_text.c.rowid).where(_matches(wanted))


def _matches(wanted: str) -> ColumnElement[bool]:
    pieces = list(dict.fromkeys(wanted[at : at + PIECE] for at in range(len(wanted) - PIECE + 1)))[:MOST_PIECES]
    quoted = " AND ".join('"' + piece.replace('"', '""') + '"' for piece in pieces)
    return run_text.c.run_text.op("MATCH")(quoted)
