"""What a list of runs can be narrowed to: the values that occur in its columns, each found by one step of an index."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select

from agentalign.store import tables
from agentalign.store.filters import RunFilter, conditions

runs_table = tables.trajectories.c

NEWEST_CALLS = 1000
"""Calls of a tool that are looked at for one of a taskset."""


class RunChoices(NamedTuple):
    """What a list of runs can be narrowed to: the values that occur, sorted."""

    taskset: list[str]
    """Of all runs; the other lists are of the taskset that was asked about."""
    family: list[str]
    split: list[str]
    policy: list[str]
    stop_reason: list[str]
    tool: list[str]
    """Of a taskset: those that one of the tool's newest runs called in it."""
    criterion: list[str]
    """Criteria, as name@version, that any run has a value by."""


def choices(connection: Connection, taskset: str | None) -> RunChoices:
    """The values that occur in the runs of a taskset, or of all."""
    matching = conditions(connection, RunFilter(taskset=taskset))
    family, split, policy, stop_reason = (_values(connection, runs_table[name], matching) for name in RunChoices._fields[1:5])
    tools = _values(connection, tables.calls.c.tool, [])
    if taskset is not None:
        tools = [tool for tool in tools if _is_called(connection, tool, taskset)]
    criteria = _values(connection, tables.verdicts.c.criterion, [])
    return RunChoices(_values(connection, runs_table.taskset, []), family, split, policy, stop_reason, tools, criteria)


def _values(connection: Connection, column: ColumnElement[str], where: Sequence[ColumnElement[bool]]) -> list[str]:
    """The values that occur, sorted, the empty one left out: one step of the index per value, not one per run."""
    seen = select(func.min(column).label("value")).where(*where).cte("seen", recursive=True)
    next_one = select(func.min(column)).where(*where, column > seen.c.value).correlate(seen).scalar_subquery()
    seen = seen.union_all(select(next_one).where(seen.c.value.is_not(None)))
    return sorted(value for value in connection.execute(select(seen.c.value)).scalars() if value)


def _is_called(connection: Connection, tool: str, taskset: str) -> bool:
    newest = select(tables.calls.c.trajectory).where(tables.calls.c.tool == tool).order_by(tables.calls.c.trajectory.desc())
    some = newest.limit(NEWEST_CALLS).subquery()
    query = select(runs_table.seq).join(some, some.c.trajectory == runs_table.seq).where(runs_table.taskset == taskset).limit(1)
    return connection.execute(query).first() is not None
