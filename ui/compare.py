"""Blind comparison: two runs of one task, and by which criterion which one is better.

The sides are the store's: drawn for each person, balanced, and in the database before anyone sees them. The page knows a draw by an id
that says nothing; run ids and makers stay here.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel

from agentalign.records.criterion import Criterion
from agentalign.records.preference import Item, Preference, pair_id
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.to_compare import comparable, refuse_incomparable
from agentalign.store.filters import RunFilter
from agentalign.store.pairs import Draw
from agentalign.store.store import Store

Choice = Literal["left_far", "left", "tie", "right", "right_far", "both_bad"]
Answer = Choice | Literal["cant_judge"]
"""A choice, or that the rater cannot tell."""
Vote = Answer | Literal["withdrawn"]
"""An answer, or an earlier one taken back."""

NEWEST = 2000
"""Pairs are drawn among this many of a taskset's newest runs."""

MOST_QUESTIONS = 20
"""So many criteria are asked about a pair, the heaviest first: nobody answers more with care."""

STRENGTH: dict[Vote, float] = {
    "left_far": 3.0, "left": 1.0, "tie": 1.0, "right": 1.0, "right_far": 3.0, "both_bad": 1.0, "cant_judge": 1.0, "withdrawn": 1.0,
}  # fmt: skip
"""As `Preference.strength` says: 1 slightly, 3 far better."""


def questions(criteria: Sequence[Criterion]) -> list[Criterion]:
    """The criteria that a pair is compared by: those about whole runs that people can answer, in the team's order."""
    found = [criterion for criterion in criteria if criterion.level == "trajectory" and criterion.kind != "check"]
    kept = sorted(found, key=lambda criterion: (not criterion.gate, -criterion.weight))[:MOST_QUESTIONS]
    return [criterion for criterion in found if criterion in kept]


def draw_pair(store: Store, rater: str, runs: tuple[Trajectory, Trajectory]) -> Draw:
    """The rater's draw for these two runs, which they chose on their own."""
    first, second = runs
    refuse_incomparable(first, second)
    return store.pairs.draw(rater, first.id, second.id)


class Answered(BaseModel):
    """What a rater said about a drawn pair, in the sides of the draw."""

    criterion: str
    choice: Answer
    note: str
    chips: list[str] = []


def answered(said: Iterable[Preference], draw: Draw) -> list[Answered]:
    """The newest of the rater's answers on the pair by criterion, less those taken back."""
    newest = {p.criterion: p for p in said}
    words = [p for p in newest.values() if not p.withdrawn]
    return [Answered(criterion=p.criterion, choice=choice_of(p, draw.left), note=p.note, chips=list(p.chips)) for p in words]


def choice_of(preference: Preference, left: str) -> Answer:
    """The answer that the preference is, with this run on the left."""
    if preference.cant_judge:
        return "cant_judge"
    if not preference.decided:
        return "tie" if preference.tie else "both_bad"
    is_far = preference.strength > 2
    if preference.items[0].trajectory == left:
        return "left_far" if is_far else "left"
    return "right_far" if is_far else "right"


def preference_of(draw: Draw, choice: Vote, *, id: str, note: str, criterion: str = "overall", chips: tuple[str, ...] = ()) -> Preference:
    """What the rater's choice says, best first."""
    items = (Item(draw.left), Item(draw.right))
    return Preference(
        taskset=draw.taskset,
        items=items[::-1] if choice in ("right", "right_far") else items,
        criterion=criterion,
        strength=STRENGTH[choice],
        tie=choice == "tie",
        both_bad=choice == "both_bad",
        withdrawn=choice == "withdrawn",
        cant_judge=choice == "cant_judge",
        chips=chips,
        left=draw.left,
        source="human",
        rater=draw.person,
        note=note,
        id=id,
    )


def open_pair(store: Store, taskset: str, rater: str) -> tuple[tuple[Trajectory, Trajectory], int] | None:
    """Two runs of one task that this rater has not compared yet, by chance, and how many such pairs there are; None where none is left.

    What the queue may bring them is left out: there it comes with a place to fill.
    """
    done = store.pairs.compared_by(rater, taskset) | store.pairs.waiting(rater)
    groups = comparable(store, RunFilter(taskset=taskset), NEWEST)
    pairs = [pair for group in groups for pair in group if pair_id(pair[0].id, pair[1].id) not in done]
    if not pairs:
        return None
    first, second = secrets.choice(pairs)
    return (store.trajectory(first.id), store.trajectory(second.id)), len(pairs)
