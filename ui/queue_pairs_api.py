"""A lead fills the queue with pairs: so many of each task, or one pair to test raters with, by the answers that the lead has just given.

Surprise: the known answers are read from what the lead said about the pair before, not from the request, so they were given blind as well.
"""

from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.errors import DataError
from agentalign.records.preference import PAIR_ANSWERS, Preference
from agentalign.scoring.to_compare import queue_pairs
from agentalign.store.filters import RunFilter
from agentalign.ui import compare
from agentalign.ui.api import House, Key, RunId, Saved, ascii_json
from agentalign.ui.auth import require_lead
from agentalign.ui.compare_api import own_draw

Lead = Annotated[str, Depends(require_lead)]
Name = Annotated[str, Field(max_length=500)]
MOST_PER_TASK = 20


class PairsIn(BaseModel):
    """Which pairs, and how many."""

    model_config = ConfigDict(extra="forbid")

    taskset: Name
    family: Name | None = None
    split: Name | None = None
    per_task: Annotated[int, Field(ge=1, le=MOST_PER_TASK)] = 1
    overlap: Annotated[int, Field(ge=1, le=100)] = 1


class PairsAdded(BaseModel):
    """What was put into the queue."""

    added: int
    changed: int
    """There already; they have the new overlap."""


class GoldIn(BaseModel):
    """A pair that the lead has compared."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    draw: RunId


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""

    @app.post("/api/queue/pairs", response_model=PairsAdded)
    def add_pairs(_lead: Lead, wanted: PairsIn) -> Response:
        """Put pairs of each task into the queue, among the newest runs that match."""
        among = RunFilter(taskset=wanted.taskset, family=wanted.family or None, split=wanted.split or None)
        criteria = {wanted.taskset: house.criteria(wanted.taskset)[0]}
        per_task, overlap = wanted.per_task, wanted.overlap
        added, changed = queue_pairs(house.store, among, criteria, per_task=per_task, overlap=overlap, newest=compare.NEWEST)
        return ascii_json(PairsAdded(added=added, changed=changed))

    @app.post("/api/queue/pairs/gold", response_model=Saved)
    def add_gold(lead: Lead, known: GoldIn) -> Response:
        """Test raters with this pair."""
        drawn = own_draw(house, known.draw, lead)
        added, _ = house.store.pairs.add([(drawn.left, drawn.right)], gold=known_answers(house.store.pairs.said(drawn)), gold_by=lead)
        return ascii_json(Saved(id=drawn.id, known=added == 0))


def known_answers(said: Iterable[Preference]) -> dict[str, str]:
    """What was said about a pair, by criterion, as `Pairs.add` takes it; DataError where nothing was said overall."""
    newest = {word.criterion: word for word in said}
    found = {key: _word(preference) for key, preference in newest.items() if preference.is_answer}
    if "overall" not in found:
        raise DataError("you have not said which run is better all in all, so there is no answer to hold raters to. Answer that first.")
    return found


def _word(preference: Preference) -> str:
    return preference.items[0].trajectory if preference.decided else PAIR_ANSWERS[int(preference.pair_answer)]
