"""What a rater may not see of a run while it is open in their queue: who made it, and what anybody said about it.

The one place that knows. Lists and searches leave such runs out altogether, because a filter or a neighbour tells as much as a column;
the run's page shows what happened and the rater's own marks since it was taken. Surprise: for the role rater this begins before the run
is taken, as soon as the queue may give it to them; else one could look first.
"""

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

from fastapi import HTTPException

from agentalign.records.criterion import Score
from agentalign.records.preference import Preference
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui.auth import Person
from agentalign.ui.views import RunView, is_mine

T = TypeVar("T")

OPEN = "this run is open in your queue, so nothing is told about where it came from. Finish it first."


def seen_by(person: Person, filter: RunFilter) -> RunFilter:
    """The filter, less the runs that this person must not find by it."""
    return filter.model_copy(update={"hidden_from": person.name, "waiting_for": person.name if person.role == "rater" else None})


def hidden_runs(store: Store, person: Person, ids: Collection[str]) -> dict[str, int]:
    """Those of the runs about which nothing may be told, each with the number of the last score before it was taken."""
    return store.queue().hidden(person.name, ids, waiting=person.role == "rater")


def refuse_hidden(store: Store, person: Person, id: str) -> None:
    """409 where nothing may be told about the run."""
    if hidden_runs(store, person, [id]):
        raise HTTPException(409, OPEN)


def told(store: Store, person: Person, id: str, scores: list[Score]) -> tuple[list[Score], bool]:
    """The scores of a run that this person may see, and whether the rest of its story is hidden."""
    after = hidden_runs(store, person, [id]).get(id)
    return (scores, False) if after is None else (store.queue().own_scores(person.name, id, after), True)


def taken_at(store: Store, person: str, id: str) -> str:
    """When a run that is open in somebody's queue was taken, as records write times; "" for any other run.

    By the database's clock, as nothing else is: assignments know the numbers of scores, not those of corrections.
    """
    seconds = store.queue().taken_at(person, id)
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def without_origin(view: RunView) -> RunView:
    """The run's page without a word about who made it, when, or how good it is."""
    blank = {"policy": "", "origin_kind": "", "error": "", "seconds": None, "created": "", "overall": None, "bases": 0}
    return view.model_copy(update={**blank, "hidden": True})


def shown_scores(store: Store, person: Person, scores: Iterable[Score]) -> Iterator[Score]:
    """Scores to export: of hidden runs only the person's own."""
    for part in _parts(scores):
        hidden = hidden_runs(store, person, {score.trajectory for score in part})
        yield from (score for score in part if score.trajectory not in hidden or is_mine(score, person.name))


def shown_preferences(store: Store, person: Person, preferences: Iterable[Preference]) -> Iterator[Preference]:
    """Preferences to export: where a hidden run takes part only the person's own."""
    for part in _parts(preferences):
        hidden = hidden_runs(store, person, {item.trajectory for preference in part for item in preference.items})
        for preference in part:
            is_own = preference.source == "human" and preference.rater == person.name
            if is_own or not any(item.trajectory in hidden for item in preference.items):
                yield preference


def _parts(found: Iterable[T]) -> Iterator[list[T]]:
    part: list[T] = []
    for one in found:
        part.append(one)
        if len(part) == 500:
            yield part
            part = []
    if part:
        yield part
