"""Is everything in a store what was put there? Every record is read, hashed again and compared with its columns."""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection, Row, Select, func, select, text

from agentalign.errors import AgentAlignError
from agentalign.records.adapter import Training
from agentalign.records.criterion import Score
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.store import rows, tables, verdicts
from agentalign.store.search import indexed

CHUNK = 100
"""Records held in memory at once."""


class StoreReport(NamedTuple):
    """What a store holds, and what is wrong with it."""

    trajectories: int
    tokens: int
    scores: int
    preferences: int
    trainings: int
    problems: tuple[str, ...] = ()
    """One sentence each; empty for a sound store."""
    forgotten: int = 0
    """Of a restore: records of the backup that were forgotten since it was made, and so were left out."""


def count(connection: Connection) -> StoreReport:
    """How many records of each kind there are."""
    kinds = (tables.trajectories, tables.tokens, tables.scores, tables.preferences, tables.trainings)
    numbers = [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in kinds]
    return StoreReport(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])


def check(connection: Connection) -> StoreReport:
    """Read everything and compare; the database's own check comes first."""
    problems: list[str] = []
    if connection.dialect.name == "sqlite":
        found = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
        problems += [f"SQLite: {line}" for line in found if line != "ok"]
        missing = connection.execute(text("PRAGMA foreign_key_check"))
        problems += [f"SQLite: a row of {row[0]} refers to a missing row of {row[2]}" for row in missing]
        if problems:
            return count(connection)._replace(problems=tuple(problems))
    for examine in (_runs, _tokens, _scores, _verdicts, _search, _preferences, _trainings):
        problems += examine(connection)
    return count(connection)._replace(problems=tuple(problems))


def stream(connection: Connection, query: Select[*tuple[object, ...]]) -> Iterator[Row[*tuple[object, ...]]]:
    """Rows of a query, a few in memory at a time."""
    # Options of the statement, not of the connection: those would stay, and PostgreSQL has no cursors for what comes next.
    for part in connection.execute(query, execution_options={"yield_per": CHUNK}).partitions():
        yield from part


def _problem(what: str, stored: rows.Row, expected: rows.Row) -> Iterator[str]:
    for column, value in expected.items():
        if stored[column] != value:
            yield f"{what}: column {column} is {stored[column]!r} but its record says {value!r}"


def _runs(connection: Connection) -> Iterator[str]:
    query = (
        select(tables.trajectories, tables.bodies.c.record, tables.bodies.c.digest, tables.bodies.c.search)
        .outerjoin(tables.bodies)
        .order_by(tables.trajectories.c.seq)
    )
    for row in stream(connection, query):
        what = f"trajectory {row.id}"
        if row.record is None:
            yield f"{what} has lost its record"
            continue
        try:
            trajectory = rows.read(Trajectory, row.record, row.digest, what)
        except AgentAlignError as error:
            yield str(error)
            continue
        expected = {**rows.trajectory_row(trajectory), **rows.body_row(trajectory)}
        if not trajectory.created:
            del expected["created"]
        yield from _problem(what, dict(row._mapping), expected)


def _tokens(connection: Connection) -> Iterator[str]:
    table = tables.tokens.c
    for row in stream(connection, select(tables.trajectories.c.id, table.base, table.data, table.digest).join(tables.tokens)):
        try:
            rows.read_tokens(row.id, row.base, row.data, row.digest)
        except AgentAlignError as error:
            yield str(error)


def _scores(connection: Connection) -> Iterator[str]:
    for row in stream(connection, select(tables.scores)):
        try:
            score = rows.read(Score, row.record, row.digest, f"score {row.id}")
        except AgentAlignError as error:
            yield str(error)
        else:
            yield from _problem(f"score {row.id}", dict(row._mapping), rows.score_row(score))


def _verdicts(connection: Connection) -> Iterator[str]:
    """What filters read must be what the scores say; damaged scores were reported already."""
    table = tables.verdicts
    last = connection.execute(select(func.max(tables.trajectories.c.seq))).scalar() or 0
    wrong: list[tuple[int, str]] = []
    for start in range(0, last + 1, verdicts.CHUNK):
        here = select(table).where(table.c.trajectory >= start, table.c.trajectory < start + verdicts.CHUNK)
        stored = {(row.trajectory, row.criterion): (row.value, row.spread) for row in connection.execute(here)}
        found = [row for seq, scores in verdicts.scores_of_runs(connection, start) for row in verdicts.verdict_rows(seq, scores)]
        expected = {(row["trajectory"], row["criterion"]): (row["value"], row["spread"]) for row in found}
        wrong += sorted(place for place in stored.keys() | expected.keys() if stored.get(place) != expected.get(place))
    if wrong:
        yield f"{len(wrong)} verdicts that filters read differ from the scores, the first on {wrong[0][1]} of run number {wrong[0][0]}"


def _search(connection: Connection) -> Iterator[str]:
    held, there = indexed(connection), connection.execute(select(func.count()).select_from(tables.bodies)).scalar_one()
    if held is not None and held != there:
        yield f"the text index holds {held} runs of {there}, so a search would miss some"


def _preferences(connection: Connection) -> Iterator[str]:
    ids = set(connection.execute(select(tables.trajectories.c.id)).scalars())
    for row in stream(connection, select(tables.preferences)):
        try:
            preference = rows.read(Preference, row.record, row.digest, f"preference {row.id}")
        except AgentAlignError as error:
            yield str(error)
        else:
            yield from _problem(f"preference {row.id}", dict(row._mapping), rows.preference_row(preference))
            lost = [item.trajectory for item in preference.items if item.trajectory not in ids]
            yield from (f"preference {row.id} is about run {id}, which is missing" for id in lost)


def _trainings(connection: Connection) -> Iterator[str]:
    for row in stream(connection, select(tables.trainings)):
        try:
            training = rows.read(Training, row.record, row.digest, f"training {row.id}")
        except AgentAlignError as error:
            yield str(error)
        else:
            yield from _problem(f"training {row.id}", dict(row._mapping), rows.training_row(training))
