"""Routes of the blind comparison: draw a pair, and save what a rater says about it, criterion by criterion.

Every answer is a preference of its own, saved at once; "overall" is the one that recipes learn from unless told otherwise. Surprise: what
this rater said about the pair already comes back with it, in the sides of the draw, so that a reload loses nothing.
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.errors import DataError
from agentalign.records.base import digest
from agentalign.records.criterion import Criterion
from agentalign.store.pairs import Draw
from agentalign.ui import align, compare, hidden, views
from agentalign.ui.api import Asking, House, Key, Note, Rater, RunId, Saved, ascii_json, stored_run


class PreferenceIn(BaseModel):
    """A choice between the two sides of a draw."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    draw: RunId
    criterion: Annotated[str, Field(max_length=100)] = "overall"
    choice: compare.Vote
    note: Note = ""
    chips: Annotated[list[str], Field(max_length=9)] = []
    """Those of the criterion's chips that were ticked."""


class DrawIn(BaseModel):
    """Which pair to show: one that the queue gave, two runs that the rater chose, or any open pair of a taskset."""

    model_config = ConfigDict(extra="forbid")

    taskset: Annotated[str | None, Field(max_length=500)] = None
    runs: tuple[RunId, RunId] | None = None
    assignment: RunId | None = None


class DrawView(BaseModel):
    """A pair to compare, or none left."""

    draw: str | None
    open: int
    """Pairs of the taskset that this rater has not compared, this one included."""
    criteria: list[views.CriterionView] = []
    """What is asked about it before the overall question."""
    answers: list[compare.Answered] = []
    """What this rater has said about it."""
    shared: int = 0
    """How many entries both runs begin with."""
    rows: list[align.Row] = []
    """What stands side by side after them."""
    left: views.BlindRun | None = None
    right: views.BlindRun | None = None


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""

    @app.post("/api/compare", response_model=DrawView)
    def draw(person: Asking, wanted: DrawIn) -> Response:
        """Draw a pair to compare."""
        if wanted.assignment is not None:
            return ascii_json(draw_view(house, own_draw(house, wanted.assignment, person.name), 1))
        if wanted.runs is not None:
            # Blind, but not without a word: beside a run whose maker is known the side alone may tell who made the other.
            for run in wanted.runs:
                hidden.refuse_hidden(house.store, person, run)
            found, left_open = (stored_run(house.store, wanted.runs[0]), stored_run(house.store, wanted.runs[1])), 1
        else:
            any_pair = compare.open_pair(house.store, wanted.taskset or "", person.name)
            if any_pair is None:
                return ascii_json(DrawView(draw=None, open=0))
            found, left_open = any_pair
        return ascii_json(draw_view(house, compare.draw_pair(house.store, person.name, found), left_open))

    @app.post("/api/preferences", response_model=Saved)
    def add_preference(rater: Rater, vote: PreferenceIn) -> Response:
        """Save one answer."""
        drawn = own_draw(house, vote.draw, rater)
        chips = chips_of(vote, compare.questions(house.criteria(drawn.taskset)[0]))
        id = digest(["preference", rater, vote.key])
        preference = compare.preference_of(drawn, vote.choice, id=id, note=vote.note, criterion=vote.criterion, chips=chips)
        report = house.store.add_preferences([preference])
        return ascii_json(Saved(id=preference.id, known=report.stored == 0))


def chips_of(vote: PreferenceIn, criteria: Sequence[Criterion]) -> tuple[str, ...]:
    """The ticked chips in the team's order; DataError where the criterion is not asked about pairs, or has no such chip."""
    asked: dict[str, tuple[str, ...]] = {"overall": (), **{criterion.key: criterion.chips for criterion in criteria}}
    if vote.criterion not in asked:
        raise DataError(f"'{vote.criterion}' is not asked about pairs here. Reload the page; asked are {', '.join(asked)}.")
    known = asked[vote.criterion]
    unknown = [chip for chip in vote.chips if chip not in known]
    if unknown:
        raise DataError(f"'{vote.criterion}' has no chip {unknown[0][:40]!a}. Reload the page; it has {list(known)}.")
    return tuple(chip for chip in known if chip in vote.chips)


def own_draw(house: House, id: str, person: str) -> Draw:
    """The person's draw; 404 for anybody else's: that it exists is not told either."""
    try:
        return house.store.pairs.drawn(id, person)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def draw_view(house: House, drawn: Draw, left_open: int) -> DrawView:
    """The two sides without anything that tells where they came from."""
    left, right = (views.blind_view(house.store.trajectory(id)) for id in (drawn.left, drawn.right))
    # A pair that comes again in the queue shows nothing of what was said about it before.
    said = house.store.pairs.said(drawn)
    return DrawView(
        draw=drawn.id,
        open=left_open,
        criteria=[views.criterion_view(criterion) for criterion in compare.questions(house.criteria(drawn.taskset)[0])],
        answers=compare.answered(said, drawn),
        # Message numbers may differ where the text does not: entries are compared by what they show.
        shared=align.shared_entries(left.timeline, right.timeline),
        rows=align.align(left.timeline, right.timeline),
        left=left,
        right=right,
    )
