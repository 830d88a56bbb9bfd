"""The routes under /api/queue: take the next run or pair, keep it, finish or skip it; a lead fills the queue and sees what is in it.

Nothing that a rater is told depends on the kind of an assignment: a gold run and a repeat look like any other, and what is left is told
in steps of ten, because only a normal run fills a place. Of a pair not even the runs' ids are told; the page asks /api/compare for it by
its assignment. A run comes with the answer that takes it, and a finished one may bring the next: from the key to the next run there is one
question. Surprise: that is no more than a courtesy. Where taking the next run fails, the finished one is acknowledged all the same.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError, DataError
from agentalign.records.criterion import Criterion, Score
from agentalign.scoring.to_compare import put_pairs, refuse_incomparable
from agentalign.scoring.urgency import urgency
from agentalign.store.queue import Assignment, Finish, Queue, Rules
from agentalign.store.store import Store
from agentalign.ui import compare, hidden
from agentalign.ui.auth import Person, require_lead, require_person, require_rater
from agentalign.ui.criteria import criteria_of
from agentalign.ui.views import RunView

Rater = Annotated[str, Depends(require_rater)]
Asking = Annotated[Person, Depends(require_person)]
Lead = Annotated[str, Depends(require_lead)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ItemId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}([+][0-9a-f]{32})?$")]
Taskset = Annotated[str | None, Field(max_length=500)]


class NextIn(BaseModel):
    """What to take a run from."""

    model_config = ConfigDict(extra="forbid")

    taskset: Taskset = None


class DoneIn(BaseModel):
    """A run is finished. The key is the page's; finishing twice is finishing once, whatever the key."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    next: bool = False
    """Take the next run too, and send it with the acknowledgement."""


class SkipIn(DoneIn):
    """A run is given back."""

    reason: Annotated[str, Field(max_length=1000)]


class ItemsIn(BaseModel):
    """Runs for the queue."""

    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[RunId], Field(min_length=1, max_length=1000)]
    overlap: Annotated[int, Field(ge=1, le=100)] = 1
    pair: bool = False
    """The two runs are one thing to rate: a pair to compare."""


class StatusIn(BaseModel):
    """Runs, or pairs ("ID+ID", the lower one first), to open or close."""

    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[ItemId], Field(min_length=1, max_length=1000)]
    status: Literal["open", "closed"]


class GoldIn(BaseModel):
    """A run that the lead has rated."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    run: RunId


class Taken(BaseModel):
    """A run or a pair in the rater's hands. Its kind is not told."""

    assignment: str
    run: str | None
    """None for a pair."""
    state: str
    left: float
    """Seconds of the lease; 0 where it has ended and others may have the run."""
    lease: float
    """Seconds that a heartbeat buys."""


def taken(found: Assignment, rules: Rules) -> Taken:
    """What a rater is told about an assignment."""
    return Taken(
        assignment=found.id,
        run=None if found.other else found.trajectory,
        state=found.state,
        left=max(0.0, found.left),
        lease=rules.lease_seconds,
    )


class Desk(NamedTuple):
    """What the routes work on."""

    project: Project
    store: Store
    queue: Queue
    show: Callable[[Person, str], RunView]
    """A run's page as a person may see it."""


def add_queue(app: FastAPI, project: Project, store: Store, rules: Rules, show: Callable[[Person, str], RunView]) -> None:
    """Add the routes to the app."""
    desk = Desk(project, store, store.queue(rules), show)

    @app.get("/api/queue")
    def progress(rater: Rater, taskset: str | None = None) -> JSONResponse:
        """What I have in hand, and how far we are."""
        found = desk.queue.current(rater)
        hand = None if found is None else taken(found, rules).model_dump()
        return JSONResponse({"current": hand, "progress": store.queue_items.progress(rater, taskset or None).in_steps()._asdict()})

    @app.post("/api/queue/next")
    def take(person: Asking, wanted: NextIn) -> Response:
        """The run to rate now, with all that its page shows; null where nothing is left."""
        return told(next_one(desk, person, wanted.taskset or None))

    @app.post("/api/queue/{assignment}/beat")
    def beat(rater: Rater, assignment: RunId) -> JSONResponse:
        """Keep it."""
        own(desk.queue, assignment, rater)
        return JSONResponse(taken(desk.queue.beat(assignment, rater), rules).model_dump())

    @app.post("/api/queue/{assignment}/done")
    def done(person: Asking, assignment: RunId, said: DoneIn) -> Response:
        """It is finished."""
        found = own(desk.queue, assignment, person.name)
        asked = required(project, store.recent.taskset(found.trajectory), is_pair=bool(found.other))
        return saved(desk, person, said, assignment, desk.queue.finish(assignment, person.name, asked))

    @app.post("/api/queue/{assignment}/skip")
    def skip(person: Asking, assignment: RunId, said: SkipIn) -> Response:
        """Give it back."""
        own(desk.queue, assignment, person.name)
        return saved(desk, person, said, assignment, desk.queue.skip(assignment, person.name, said.reason))

    _leading(app, desk)


def next_one(desk: Desk, person: Person, taskset: str | None) -> dict[str, Any]:
    """What is taken now, and the run's page with it: it is shown at once, so the lease begins when it is."""
    found = desk.queue.take(person.name, taskset)
    hand = None if found is None else taken(found, desk.queue.rules)
    return {
        "current": hand and hand.model_dump(),
        "progress": desk.store.queue_items.progress(person.name, taskset).in_steps()._asdict(),
        "run": desk.show(person, hand.run).model_dump() if hand and hand.run else None,
    }


def _leading(app: FastAPI, desk: Desk) -> None:
    store = desk.store

    @app.get("/api/queue/items")
    def items(_lead: Lead, taskset: str | None = None, status: str | None = None) -> JSONResponse:
        """What is in the queue."""
        return JSONResponse({"items": [item._asdict() for item in store.queue_items.items(taskset or None, status or None)]})

    @app.post("/api/queue/items")
    def add(_lead: Lead, wanted: ItemsIn) -> JSONResponse:
        """Put runs into the queue, or two of them as a pair; urgent ones come first."""
        criteria = {taskset: known_criteria(desk.project, taskset) for taskset in {store.recent.taskset(run) for run in wanted.runs}}
        if wanted.pair:
            added, changed = put_pairs(store, [_pair(store, wanted.runs)], criteria, overlap=wanted.overlap)
        else:
            urgent = urgency(store, wanted.runs, criteria)
            added, changed = store.queue_items.add(wanted.runs, overlap=wanted.overlap, priority=urgent)
        return JSONResponse({"added": added, "changed": changed})

    @app.post("/api/queue/items/status")
    def set_status(_lead: Lead, wanted: StatusIn) -> JSONResponse:
        """Open or close runs of the queue."""
        return JSONResponse({"changed": store.queue_items.set_status(wanted.runs, wanted.status)})

    @app.post("/api/queue/items/gold")
    def add_gold(person: Asking, known: GoldIn) -> JSONResponse:
        """Test raters with this run, by what the lead said about it."""
        hidden.refuse_hidden(store, person, known.run)
        gold = known_values(desk.project, store.recent.taskset(known.run), store.scores([known.run]), person.name)
        added, _ = store.queue_items.add([known.run], gold=gold, gold_by=person.name)
        return JSONResponse({"saved": True, "id": known.run, "known": added == 0})


def known_values(project: Project, taskset: str, scores: Sequence[Score], person: str) -> dict[str, float]:
    """What the person says of a whole run by the criteria in force, by criterion; DataError where they say nothing."""
    asked = required(project, taskset, is_pair=False)
    mine = [score for score in scores if score.rater_kind == "human" and score.rater == person and score.step is None]
    newest = {score.criterion: score for score in mine}
    found = {key: value for key in asked if key in newest and (value := newest[key].value) is not None}
    if not found:
        names = ", ".join(asked) or "none, so people cannot rate runs of it"
        raise DataError(f"you have given this run no mark, so there is no answer to hold raters to. Asked of {taskset}: {names}.")
    return found


def _pair(store: Store, runs: Sequence[str]) -> tuple[str, str]:
    if len(runs) != 2:
        raise DataError(f"a pair has two runs, and these are {len(runs)}. Tick two runs of one task.")
    first, second = (store.recent.trajectory(run) for run in runs)
    refuse_incomparable(first, second)
    return first.id, second.id


def known_criteria(project: Project, taskset: str) -> tuple[Criterion, ...]:
    """A taskset's criteria; none where there are none that can be read."""
    try:
        return criteria_of(project.tasks, taskset)
    except AgentAlignError:
        return ()


def own(queue: Queue, assignment: str, rater: str) -> Assignment:
    """The rater's assignment; 404 for anybody else's: that it exists is not told either."""
    try:
        return queue.assignment(assignment, rater)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def required(project: Project, taskset: str, *, is_pair: bool) -> list[str]:
    """The criteria that a person has to answer before a run, or a pair, of this taskset is finished."""
    criteria = known_criteria(project, taskset)
    if is_pair:
        return ["overall", *(criterion.key for criterion in compare.questions(criteria) if criterion.kind == "human")]
    return [criterion.key for criterion in criteria if criterion.kind == "human" and criterion.level == "trajectory"]


def saved(desk: Desk, person: Person, said: DoneIn, id: str, ended: Finish) -> Response:
    """The acknowledgement that the page waits for: sent only after COMMIT, and whatever comes of the wish for the next run."""
    answer: dict[str, Any] = {"saved": True, "id": id, **ended._asdict()}
    if said.next:
        answer["next"] = None
        with suppress(AgentAlignError):  # the page asks again, and is told why
            answer["next"] = next_one(desk, person, None)
    return told(answer)


def told(content: dict[str, Any]) -> Response:
    """JSON in ASCII: a run may hold lone surrogates, and those have no UTF-8."""
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json")
