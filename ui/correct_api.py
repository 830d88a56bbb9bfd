"""Routes of corrections (a step as it should have been, saved with the pair that it makes, and taken back) and of the guidelines."""

from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.environments.taskset import find_taskset
from agentalign.errors import DataError
from agentalign.records.base import digest
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import Act, correct_step, correction_pair, inherited_tokens, offered_tools
from agentalign.ui import hidden, views
from agentalign.ui.api import House, Key, Note, Rater, RunId, Saved, ascii_json, stored_run

MOST_CALLS = 32
MOST_GUIDELINES = 64 * 1024


class CallIn(BaseModel):
    """A tool call as the rater wrote it."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    arguments: Annotated[str, Field(max_length=100_000)]
    """JSON text."""


class CorrectionIn(BaseModel):
    """The step as it should have been. Whose word that is, is read from the cookie."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    trajectory: RunId
    step: Annotated[int, Field(ge=0)]
    content: Annotated[str, Field(max_length=100_000)] = ""
    reasoning: Annotated[str, Field(max_length=100_000)] = ""
    calls: Annotated[list[CallIn], Field(max_length=MOST_CALLS)] = []
    note: Note = ""


class WithdrawalIn(BaseModel):
    """Whose correction is taken back is read from the cookie."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    trajectory: RunId
    step: Annotated[int, Field(ge=0)]


class CorrectionView(BaseModel):
    """The rater's own correction of a step that stands."""

    step: int
    run: str
    entry: views.Entry
    note: str


class CorrectionsView(BaseModel):
    """The rater's own corrections of one run."""

    corrections: list[CorrectionView]
    tools: list[str]
    """Names that a call may have here."""


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""

    @app.get("/api/runs/{run}/corrections", response_model=CorrectionsView)
    def corrections(rater: Rater, run: RunId) -> Response:
        """What this rater corrected in a run, and which tools a correction may call."""
        found = stored_run(house.store, run)
        seen = own_words(house, found, rater).seen
        shown = [_view(house, step, word) for step, word in sorted(seen.items()) if not word.withdrawn]
        return ascii_json(CorrectionsView(corrections=shown, tools=list(offered_tools(found))))

    @app.get("/api/guidelines")
    def guidelines(_rater: Rater, taskset: Annotated[str, Query(max_length=500)]) -> Response:
        """The team's guidelines for raters, as they were written."""
        return ascii_json({"text": guidelines_of(house.project.tasks, taskset)})

    @app.post("/api/corrections", response_model=Saved)
    def correct(rater: Rater, wanted: CorrectionIn) -> Response:
        """Save a step as it should have been."""
        original = stored_run(house.store, wanted.trajectory)
        act = Act(wanted.content, wanted.reasoning, tuple((call.name, call.arguments) for call in wanted.calls))
        corrected = correct_step(original, wanted.step, act, rater)
        pair = correction_pair(corrected, original, note=wanted.note, id=digest(["correction", rater, wanted.key]))
        report = house.store.add_judged([corrected], inherited_tokens(corrected, house.store.tokens(original.id)), [], [pair])
        return ascii_json(Saved(id=corrected.id, known=report.stored == 0))

    @app.post("/api/corrections/withdrawn", response_model=Saved)
    def withdraw(rater: Rater, wanted: WithdrawalIn) -> Response:
        """Take the rater's correction of a step back; it is kept, and no longer learned from."""
        original = stored_run(house.store, wanted.trajectory)
        words = own_words(house, original, rater)
        word = words.seen.get(wanted.step)
        if word is None:
            raise DataError(f"you have not corrected step {wanted.step} of this run, so there is nothing to take back. Reload the page.")
        id = digest(["correction", rater, wanted.key])
        said = [word.model_copy(update={"withdrawn": True, "id": id})]
        earlier = words.unseen.get(wanted.step)
        if earlier is not None and not earlier.withdrawn:  # nobody takes back what they cannot see: it stands again, with the time it had
            said.append(earlier.model_copy(update={"id": digest(["correction", rater, wanted.key, "again"])}))
        report = house.store.add_preferences(said)
        return ascii_json(Saved(id=word.items[0].trajectory, known=report.stored == 0))


def guidelines_of(tasks: Path, taskset: str) -> str:
    """guidelines.md of a taskset; empty where the team wrote none."""
    path = find_taskset(taskset, tasks) / "guidelines.md"
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MOST_GUIDELINES)


class OwnWords(NamedTuple):
    """By step the rater's newest words on their corrections of a run, withdrawals included."""

    seen: dict[int, Preference]
    unseen: dict[int, Preference]
    """Of a run that is open in the rater's queue: those from before it was taken, which would tell that it comes again."""


def own_words(house: House, run: Trajectory, rater: str) -> OwnWords:
    """What this rater said about their corrections of a run."""
    taken = hidden.taken_at(house.store, rater, run.id)
    found = OwnWords({}, {})
    for word in house.store.preferences(run.taskset, source="correction"):
        step = word.items[-1].step
        if word.rater == rater and word.items[-1].trajectory == run.id and step is not None and _is_own(house, word, rater):
            (found.seen if word.time > taken else found.unseen)[step] = word
    return found


def _is_own(house: House, word: Preference, rater: str) -> bool:
    """Whether the better side was written here: pairs made from an expert's runs have the source "correction" too."""
    better = house.store.trajectory(word.items[0].trajectory)
    return better.is_corrected_step and better.parent == tuple(word.items[-1]) and better.origin.reference == rater


def _view(house: House, step: int, word: Preference) -> CorrectionView:
    run = house.store.trajectory(word.items[0].trajectory)
    return CorrectionView(step=step, run=run.id, entry=views.timeline(run.messages, run.steps)[-1], note=word.note)
