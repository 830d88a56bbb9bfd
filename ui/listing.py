"""The list of runs: what it can be narrowed to, and a page of it.

Nothing is read whole for it: a row has its excerpt and its counts from the store, so a page costs the same for long runs and short ones.
"""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, field_validator

from agentalign.errors import DataError
from agentalign.records.criterion import Criterion, Score
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui import hidden, views
from agentalign.ui.auth import Person

PAGE = 50


class RunsView(BaseModel):
    """A page of the list."""

    rows: list[views.ListRow]
    next: str | None
    total: int
    is_exact: bool
    """False where more than `total` runs match."""


class ListQuery(BaseModel):
    """The list's filters."""

    model_config = ConfigDict(extra="forbid")

    taskset: str | None = None
    family: str | None = None
    split: str | None = None
    policy: str | None = None
    stop_reason: str | None = None
    tool: str | None = None
    text: str | None = None
    task_id: str | None = None
    parent: str | None = None
    errors: bool = False
    criterion: str | None = None
    score_at_least: float | None = None
    score_at_most: float | None = None
    disagreement: float | None = None
    unrated: bool = False
    after: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return None if value == "" else value


def list_page(store: Store, criteria_of: Callable[[str], Sequence[Criterion]], query: ListQuery, person: Person) -> RunsView:
    """A page of runs that match, with what each is about and how it was judged."""
    fields = query.model_dump(exclude={"unrated", "after"})
    if query.criterion is None and not (query.score_at_least is None and query.score_at_most is None):
        raise DataError("every criterion has its own scale. Choose a criterion before its least or most value.")
    rater = person.name
    wanted = hidden.seen_by(person, RunFilter(**fields, unrated_by=rater if query.unrated else None))
    page = store.runs(wanted, PAGE, query.after)
    scores: dict[str, list[Score]] = {}
    for score in store.scores([row.id for row in page.rows]):
        scores.setdefault(score.trajectory, []).append(score)
    criteria = {taskset: criteria_of(taskset) for taskset in {row.taskset for row in page.rows}}
    rows = [views.list_row(row, scores.get(row.id, []), criteria[row.taskset], rater) for row in page.rows]
    return RunsView(rows=rows, next=page.next, total=page.total, is_exact=page.is_exact)
