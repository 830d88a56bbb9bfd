"""Storing runs and what is said about them, in the caller's transaction.

Each function makes its rows at once and returns what writes them. Surprise: that is why it returns a function: writing long runs into JSON
takes longer than inserting them, and must not hold up whoever else waits to write.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, Table

from agentalign.records.base import Record
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import TokenRecord, Trajectory
from agentalign.store import rows, standing, tables, verdicts
from agentalign.store.appending import insert_all, insert_new, insert_tokens, refuse_conflicts, require_items
from agentalign.store.forgetting import gone_with, tombstones
from agentalign.store.rows import Row

R = TypeVar("R", bound=Record)


class AddReport(NamedTuple):
    """What storing did."""

    stored: int
    known: int
    """Already there, unaltered; nothing was written for these."""
    forgotten: int = 0
    """Deleted for good earlier; nothing was written for these."""


Write = Callable[[Connection], AddReport]


def adding_runs(trajectories: Sequence[Trajectory], tokens: Sequence[TokenRecord]) -> Write:
    """Runs, and recorded tokens of these or of stored runs."""
    unique = {trajectory.id: trajectory for trajectory in trajectories}
    short = [rows.trajectory_row(trajectory) for trajectory in unique.values()]
    long = {id: rows.body_row(trajectory) for id, trajectory in unique.items()}
    packed = [rows.token_row(record) for record in tokens]

    def write(connection: Connection) -> AddReport:
        gone = gone_with(connection, unique)
        added = insert_new(connection, tables.trajectories, [row for row in short if row["id"] not in gone])
        insert_all(connection, tables.bodies, [{"trajectory": seq, **long[id]} for id, seq in added.items()])
        called = [{"tool": tool, "trajectory": seq} for id, seq in added.items() for tool in sorted(rows.called_tools(unique[id]))]
        insert_all(connection, tables.calls, called)
        if kept := [row for row in packed if row["trajectory"] not in gone]:
            insert_tokens(connection, kept)
        lost = sum(trajectory.id in gone for trajectory in trajectories)
        return AddReport(len(added), len(trajectories) - len(added) - lost, lost)

    return write


def adding_scores(scores: Sequence[Score]) -> Write:
    """Scores of stored runs."""
    return _adding(tables.scores, rows.score_row, scores, lambda score: [Item(score.trajectory, score.step)])


def adding_preferences(preferences: Sequence[Preference]) -> Write:
    """Preferences between stored runs."""
    return _adding(tables.preferences, rows.preference_row, preferences, lambda preference: preference.items)


def _adding(table: Table, row_of: Callable[[R], Row], records: Sequence[R], items: Callable[[R], Iterable[Item]]) -> Write:
    made = [(row_of(record), record) for record in records]

    def write(connection: Connection) -> AddReport:
        gone = tombstones(connection, [row["id"] for row, _ in made])
        new = [(row, record) for row, record in made if row["id"] not in gone]
        require_items(connection, [item for _, record in new for item in items(record)])
        added = insert_new(connection, table, [row for row, _ in new])
        if len(added) < len(new):
            refuse_conflicts(connection, table, [row for row, _ in new], [record for _, record in new])
        if table is tables.scores and added:
            verdicts.refresh(connection, (row["trajectory"] for row, _ in new if row["id"] in added))
        standing.take_back(connection, [record for row, record in new if row["id"] in added])
        return AddReport(len(added), len(new) - len(added), len(made) - len(new))

    return write
