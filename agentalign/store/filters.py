"""Which runs are meant: a filter, and the same filter as a condition on the tables."""

from sqlalchemy import ColumnElement, Connection, Select, exists, or_, select

from agentalign.errors import DataError
from agentalign.records.base import Record
from agentalign.store.database import is_one_of
from agentalign.store.rows import folded, storable, tool_key
from agentalign.store.tables import NAME_LENGTH, assignments, bodies, calls, queue_items, scores, trainings, trajectories


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
    """Text that stands in a message, a reasoning or a call's arguments; case is ignored."""
    ids: tuple[str, ...] | None = None
    training: str | None = None
    """Training id: runs sampled while it trained (origin "id" or "id/...") and runs of the adapter that it saved."""
    unrated_by: str | None = None
    """A person: runs of which this person has scored nothing yet, neither the whole nor a step."""
    hidden_from: str | None = None
    """A person: not the runs that are open in this person's queue, of which no list or search may tell more than their page does."""
    waiting_for: str | None = None
    """A person: nor those that the queue may still give to this person."""


_COLUMNS = ("taskset", "task_id", "family", "split", "policy", "origin_kind", "stop_reason")


def conditions(connection: Connection, wanted: RunFilter) -> list[ColumnElement[bool]]:
    """The filter as conditions on `trajectories`."""
    found: list[ColumnElement[bool]] = []
    for column in _COLUMNS:
        value = getattr(wanted, column)
        if value is not None:
            found.append(trajectories.c[column] == bindable(value, column))
    if wanted.tool is not None:
        found.append(trajectories.c.seq.in_(select(calls.c.trajectory).where(calls.c.tool == tool_key(wanted.tool))))
    if wanted.text:
        found.append(trajectories.c.seq.in_(select(bodies.c.trajectory).where(_contains(wanted.text))))
    if wanted.ids is not None:
        found.append(is_one_of(connection, trajectories.c.id, [bindable(id, "ids") for id in wanted.ids]))
    if wanted.training is not None:
        training = bindable(wanted.training, "training")
        adapter = select(trainings.c.adapter).where(trainings.c.id == training, trainings.c.adapter != "")
        policy = trajectories.c.policy
        found.append(or_(policy == training, policy.startswith(training + "/", autoescape=True), policy.in_(adapter)))
    if wanted.unrated_by is not None:
        rated = select(scores.c.trajectory).where(scores.c.person == bindable(wanted.unrated_by, "unrated_by"))
        found.append(trajectories.c.id.not_in(rated))
    if wanted.hidden_from is not None:
        found.append(trajectories.c.id.not_in(open_for(bindable(wanted.hidden_from, "hidden_from"))))
    if wanted.waiting_for is not None:
        found.append(trajectories.c.id.not_in(waiting_for(bindable(wanted.waiting_for, "waiting_for"))))
    return found


def open_for(person: str) -> Select[str]:
    """Runs that this person has taken from the queue and not finished, whether the lease lives or not."""
    return select(assignments.c.trajectory).where(assignments.c.person == person, assignments.c.state == "open")


def waiting_for(person: str) -> Select[str]:
    """Runs in the queue that this person has not finished: any of them may still come to them."""
    theirs = (assignments.c.trajectory == queue_items.c.trajectory) & (assignments.c.person == person)
    return select(queue_items.c.trajectory).where(queue_items.c.status == "open", ~exists().where(theirs, assignments.c.state != "open"))


def bindable(value: str, what: str) -> str:
    """A value that can be asked for; DataError where no stored name can equal it."""
    if not storable(value):
        raise DataError(f"{what} {value!a} cannot be looked up: names hold no NUL characters and no lone surrogates. Remove them.")
    return value


def _contains(text: str) -> ColumnElement[bool]:
    if len(text) > NAME_LENGTH:
        raise DataError(f"the text to look for has {len(text)} characters; {NAME_LENGTH} are the most. Look for a shorter part of it.")
    return bodies.c.search.contains(folded(text), autoescape=True)
