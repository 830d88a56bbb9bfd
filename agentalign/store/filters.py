"""Which runs are meant: a filter, and the same filter as a condition on the tables."""

from typing import NamedTuple

from pydantic import model_validator
from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, func, or_, select

from agentalign.errors import DataError
from agentalign.records.base import Record
from agentalign.store import blind, search
from agentalign.store.database import is_one_of
from agentalign.store.rows import storable, tool_key
from agentalign.store.tables import calls, scores, trainings, trajectories, verdicts

FEW = 5000
"""Runs that a condition on another table may collect at once; where it holds for more, each run of the list is asked about in turn."""


class RunFilter(Record):
    """Which runs; every field that is set must hold."""

    taskset: str | None = None
    task_id: str | None = None
    family: str | None = None
    split: str | None = None
    policy: str | None = None
    """What made the run: `Trajectory.origin.reference`."""
    origin_kind: str | None = None
    stop_reason: str | None = None
    tool: str | None = None
    """Name of a tool that the agent called at least once."""
    text: str | None = None
    """Text that stands in a message, a reasoning, a call's name or arguments, or a result; case is ignored. Three characters or more are
    found by an index; one or two are looked for in every run. Tool schemas, tracebacks, metadata and notes are not searched."""
    errors: bool = False
    """Runs with a failed call, or one that could not be read."""
    ids: tuple[str, ...] | None = None
    training: str | None = None
    """Training id: runs sampled while it trained (origin "id" or "id/...") and runs of the adapter that it saved."""
    unrated_by: str | None = None
    """A person: runs of which this person has scored nothing yet, neither the whole nor a step; what was taken back is no score."""
    hidden_from: str | None = None
    """A person: not the runs that are open in this person's queue, of which no list or search may tell more than their page does, and none
    of their relatives (see `store/blind.py`)."""
    waiting_for: str | None = None
    """A person: nor those that the queue may still give to this person, and theirs."""
    criterion: str | None = None
    """"name@version": runs that have a value by it; the next three fields are about it."""
    score_at_least: float | None = None
    """On the criterion's own scale. The mean of what counts in `overall` is meant: people before judges before checks."""
    score_at_most: float | None = None
    disagreement: float | None = None
    """Raters' answers at one place (the run, or a step) lie further apart than this, by `criterion` or, where that is not set, by any.
    Reward models are not counted."""
    parent: str | None = None
    """A run's id: runs that were forked from it, or correct it."""

    @model_validator(mode="after")
    def _about_a_criterion(self) -> "RunFilter":
        if self.criterion is None and (self.score_at_least is not None or self.score_at_most is not None):
            raise ValueError(
                "score_at_least and score_at_most need a criterion: every criterion has its own scale. Name one as name@version."
            )
        return self


_COLUMNS = ("taskset", "task_id", "family", "split", "policy", "origin_kind", "stop_reason", "parent")
_OF_VERDICTS = ("score_at_least", "score_at_most", "disagreement")


class Listing(NamedTuple):
    """A filter for a list, read newest first."""

    source: FromClause
    where: list[ColumnElement[bool]]
    place: ColumnElement[int]
    """Orders the list; it holds what `trajectories.seq` holds."""


def listing(connection: Connection, wanted: RunFilter) -> Listing:
    """The filter in the form in which a page of a list costs the least."""
    found = search.newest_first(connection, wanted.text) if wanted.text else None
    if found is not None:
        source, place, held = found
        return Listing(source, [*conditions(connection, wanted.model_copy(update={"text": None})), *held], place)
    if _is_about_all_judged(wanted) and not _are_few(connection, _verdicts(wanted)):
        # Few runs of many are judged: the judged ones are read newest first, and each is looked up, not the other way round.
        source = verdicts.join(trajectories, trajectories.c.seq == verdicts.c.trajectory)
        rest = wanted.model_copy(update={"criterion": None, **dict.fromkeys(_OF_VERDICTS)})
        return Listing(source, [*_by_verdict(wanted, is_ordered=True), *conditions(connection, rest)], verdicts.c.trajectory)
    return Listing(trajectories, conditions(connection, wanted), trajectories.c.seq)


def _is_about_all_judged(wanted: RunFilter) -> bool:
    """Whether a criterion narrows the list more than anything else does that has an index."""
    others = any(getattr(wanted, name) is not None for name in (*_COLUMNS, "tool", "ids", "training") if name != "taskset")
    return wanted.criterion is not None and not wanted.text and not others


def conditions(connection: Connection, wanted: RunFilter) -> list[ColumnElement[bool]]:
    """The filter as conditions on `trajectories`."""
    found: list[ColumnElement[bool]] = []
    for column in _COLUMNS:
        value = getattr(wanted, column)
        if value is not None:
            found.append(trajectories.c[column] == bindable(value, column))
    if wanted.tool is not None:
        called = select(calls.c.trajectory).where(calls.c.tool == tool_key(wanted.tool))
        found.append(_among(connection, called, calls.c.trajectory))
    if wanted.errors:
        found.append(trajectories.c.n_errors > 0)
    if wanted.text:
        found.append(search.stands_in(connection, wanted.text))
    if wanted.ids is not None:
        found.append(is_one_of(connection, trajectories.c.id, [bindable(id, "ids") for id in wanted.ids]))
    if wanted.training is not None:
        training = bindable(wanted.training, "training")
        adapter = select(trainings.c.adapter).where(trainings.c.id == training, trainings.c.adapter != "")
        policy = trajectories.c.policy
        sampled = and_(policy >= training + "/", policy < training + "0")  # "0" follows "/": every name that begins so, by the index
        found.append(or_(policy == training, sampled, policy.in_(adapter)))
    if wanted.unrated_by is not None:
        rated = select(scores.c.trajectory).where(scores.c.person == bindable(wanted.unrated_by, "unrated_by"), scores.c.stands)
        found.append(~rated.where(scores.c.trajectory == trajectories.c.id).correlate(trajectories).exists())
    if wanted.criterion is not None or wanted.disagreement is not None:
        found.append(_among(connection, _verdicts(wanted), verdicts.c.trajectory))
    hidden: list[Select[str]] = []
    if wanted.hidden_from is not None:
        hidden += blind.open_for(bindable(wanted.hidden_from, "hidden_from"))
    if wanted.waiting_for is not None:
        hidden += blind.waiting_for(bindable(wanted.waiting_for, "waiting_for"))
    if hidden:
        found += blind.neither_they_nor_relatives(hidden)
    return found


def _verdicts(wanted: RunFilter) -> Select[int]:
    return select(verdicts.c.trajectory).where(*_by_verdict(wanted))


def _by_verdict(wanted: RunFilter, *, is_ordered: bool = False) -> list[ColumnElement[bool]]:
    # "+ 0" keeps the database from sorting all that match, where they stand in order already.
    value, spread = (column + 0 if is_ordered else column for column in (verdicts.c.value, verdicts.c.spread))
    found: list[ColumnElement[bool]] = []
    if wanted.criterion is not None:
        found.append(verdicts.c.criterion == bindable(wanted.criterion, "criterion"))
    if wanted.score_at_least is not None:
        found.append(value >= wanted.score_at_least)
    if wanted.score_at_most is not None:
        found.append(value <= wanted.score_at_most)
    if wanted.disagreement is not None:
        found.append(spread > wanted.disagreement)
    return found


def _among(connection: Connection, found: Select[int], run: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a run is one of those found in another table, whose column `run` names it."""
    is_there = found.where(run == trajectories.c.seq).correlate(trajectories).exists()
    return trajectories.c.seq.in_(found) if _are_few(connection, found) else is_there


def _are_few(connection: Connection, found: Select[int]) -> bool:
    return connection.execute(select(func.count()).select_from(found.limit(FEW + 1).subquery())).scalar_one() <= FEW


def bindable(value: str, what: str) -> str:
    """A value that can be asked for; DataError where no stored name can equal it."""
    if not storable(value):
        raise DataError(f"{what} {value!a} cannot be looked up: names hold no NUL characters and no lone surrogates. Remove them.")
    return value


def of_criterion(column: ColumnElement[str], wanted: str) -> ColumnElement[bool]:
    """The condition for "overall", "name@version", or "name" for all versions."""
    bindable(wanted, "criterion")
    if "@" in wanted or wanted == "overall":
        return column == wanted
    return column.startswith(wanted + "@", autoescape=True)


def cursor(after: str) -> int:
    """A page's `next` as the place it stands for; DataError where it is none."""
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise DataError(f"{after!r} is not a place in a list of runs. Use the `next` of the page before.")
    return int(after)
