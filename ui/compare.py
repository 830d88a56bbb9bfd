"""Blind comparison: two runs of one task, and which one is better.

The sides are drawn once per rater and pair, by chance, and kept in a file before anyone sees them: a reload or a restart shows the
same sides. The page knows a draw by a token that says nothing; ids and makers stay here.
"""

import hmac
import re
import secrets
from collections.abc import Iterable, Sequence, Set
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from agentalign.errors import DataError
from agentalign.records.base import canonical_json, now
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.store import RunRow, Store
from agentalign.ui.files import write_once

Choice = Literal["left_far", "left", "tie", "right", "right_far", "both_bad"]
Vote = Choice | Literal["withdrawn"]
"""A choice, or an earlier one taken back."""

NEWEST = 2000
"""Pairs are drawn among this many of a taskset's newest runs."""

NEWEST_UNNAMED = 300
"""And of runs that name no task among these, because each has to be read whole."""

PER_TASK = 40
"""And among this many of one task's: pairs grow with the square."""

STRENGTH: dict[Choice, float] = {"left_far": 3.0, "left": 1.0, "tie": 1.0, "right": 1.0, "right_far": 3.0, "both_bad": 1.0}
"""As `Preference.strength` says: 1 slightly, 3 far better."""


class Draw(BaseModel):
    """A pair with its sides, as kept on disk."""

    rater: str
    taskset: str
    left: str
    right: str
    time: str


class Kept(NamedTuple):
    """A draw and the token the page knows it by."""

    token: str
    draw: Draw


def draw_pair(folder: Path, secret: bytes, rater: str, runs: tuple[Trajectory, Trajectory]) -> Kept:
    """The rater's draw for these two runs: the one on disk, or a new one, on disk before this returns."""
    first, second = sorted(runs, key=lambda run: run.id)
    if first.taskset != second.taskset or first.same_task_key() != second.same_task_key():
        raise DataError("these two runs are not of one task, so neither can be better at it. Choose two runs of the same task.")
    if first.content_digest == second.content_digest:
        raise DataError("these two runs are word for word the same, so there is nothing to compare. Choose two that differ.")
    # Keyed, or a token could be recomputed from two run ids and would tell which runs it hides.
    token = hmac.new(secret, canonical_json([rater, first.id, second.id]).encode(), sha256).hexdigest()[:32]
    path = folder / f"{token}.json"
    if not path.exists():
        left, right = (first, second) if secrets.randbits(1) else (second, first)
        write_once(path, Draw(rater=rater, taskset=first.taskset, left=left.id, right=right.id, time=now()).model_dump_json())
    return Kept(token, read_draw(folder, token, rater))


def read_draw(folder: Path, token: str, rater: str) -> Draw:
    """The rater's draw of this token; DataError where there is none."""
    path = folder / f"{token}.json"
    if not re.fullmatch(r"[0-9a-f]{32}", token) or not path.is_file():
        raise DataError("this pair was never drawn here. Reload the page for another one.")
    draw = Draw.model_validate_json(path.read_text("utf-8"))
    if draw.rater != rater:
        raise DataError("this pair was drawn for someone else. Reload the page for one of your own.")
    return draw


def forget_draws(folder: Path, runs: Set[str], person: str | None) -> int:
    """Delete the draws that show one of the runs or were made for the person; returns how many."""
    gone = 0
    for path in folder.glob("*.json"):
        draw = Draw.model_validate_json(path.read_text("utf-8"))
        if draw.rater == person or {draw.left, draw.right} & runs:
            path.unlink()
            gone += 1
    return gone


class Answered(BaseModel):
    """What a rater said about a drawn pair, in the sides of the draw."""

    criterion: str
    choice: Choice
    note: str


def answered(said: Iterable[Preference], draw: Draw) -> list[Answered]:
    """The newest of the rater's answers on the pair by criterion, less those taken back."""
    pair = {Item(draw.left), Item(draw.right)}
    newest = {p.criterion: p for p in said if p.rater == draw.rater and set(p.items) == pair}
    words = [p for p in newest.values() if not p.withdrawn]
    return [Answered(criterion=p.criterion, choice=choice_of(p, draw.left), note=p.note) for p in words]


def choice_of(preference: Preference, left: str) -> Choice:
    """The choice that the preference is, with this run on the left."""
    if not preference.decided:
        return "tie" if preference.tie else "both_bad"
    is_far = preference.strength > 2
    if preference.items[0].trajectory == left:
        return "left_far" if is_far else "left"
    return "right_far" if is_far else "right"


def preference_of(draw: Draw, choice: Vote, *, id: str, note: str, criterion: str = "overall") -> Preference:
    """What the rater's choice says, best first."""
    items = (Item(draw.left), Item(draw.right))
    return Preference(
        taskset=draw.taskset,
        items=items[::-1] if choice in ("right", "right_far") else items,
        criterion=criterion,
        strength=1.0 if choice == "withdrawn" else STRENGTH[choice],
        tie=choice == "tie",
        both_bad=choice == "both_bad",
        withdrawn=choice == "withdrawn",
        left=draw.left,
        source="human",
        rater=draw.rater,
        note=note,
        id=id,
    )


def open_pair(store: Store, taskset: str, rater: str) -> tuple[tuple[Trajectory, Trajectory], int] | None:
    """Two runs of one task that this rater has not compared yet, by chance, and how many such pairs there are; None where none is left."""
    partial = {run.id for run in store.trajectories(RunFilter(taskset=taskset, origin_kind="correction")) if run.is_corrected_step}
    words = {frozenset(p.items): p for p in store.preferences(taskset, "overall", "human") if p.rater == rater}
    done = {frozenset(item.trajectory for item in items) for items, word in words.items() if not word.withdrawn}
    tasks: dict[str, list[RunRow]] = {}
    rows = [row for row in store.runs(RunFilter(taskset=taskset), limit=NEWEST).rows if row.id not in partial]
    unnamed = _keys_of_unnamed(store, [row.id for row in rows if row.task_id is None][:NEWEST_UNNAMED])
    for row in rows:
        task = "task/" + row.task_id if row.task_id is not None else unnamed.get(row.id)
        if task is not None:
            tasks.setdefault(task, []).append(row)
    pairs = [pair for group in tasks.values() for pair in _different(group[:PER_TASK]) if frozenset((pair[0].id, pair[1].id)) not in done]
    if not pairs:
        return None
    first, second = secrets.choice(pairs)
    return (store.trajectory(first.id), store.trajectory(second.id)), len(pairs)


def _keys_of_unnamed(store: Store, ids: Sequence[str]) -> dict[str, str]:
    """Imported runs that name no task are told apart by how they begin, which only the whole run says."""
    return {run.id: run.same_task_key() for run in store.trajectories(RunFilter(ids=tuple(ids)))} if ids else {}


def _different(rows: Sequence[RunRow]) -> list[tuple[RunRow, RunRow]]:
    return [(a, b) for a, b in combinations(rows, 2) if a.content_digest != b.content_digest]
