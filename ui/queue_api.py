"""The routes under /api/queue: take the next run or pair, keep it, finish or skip it; a lead fills the queue and sees what is in it.

Nothing that a rater is told depends on the kind of an assignment: a gold run and a repeat look like any other. Of a pair not even the
runs' ids are told; the page asks /api/compare for it by its assignment.
"""

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from agentalign.config.project import Project
from agentalign.environments.taskset import find_taskset, load_criteria
from agentalign.errors import AgentAlignError, DataError
from agentalign.store.queue import Assignment, Queue, Rules
from agentalign.store.store import Store
from agentalign.ui import compare
from agentalign.ui.auth import require_lead, require_rater

Rater = Annotated[str, Depends(require_rater)]
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


class SkipIn(DoneIn):
    """A run is given back."""

    reason: Annotated[str, Field(max_length=1000)]


class ItemsIn(BaseModel):
    """Runs for the queue."""

    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[RunId], Field(min_length=1, max_length=1000)]
    overlap: Annotated[int, Field(ge=1, le=100)] = 1


class StatusIn(BaseModel):
    """Runs, or pairs ("ID+ID", the lower one first), to open or close."""

    model_config = ConfigDict(extra="forbid")

    runs: Annotated[list[ItemId], Field(min_length=1, max_length=1000)]
    status: Literal["open", "closed"]


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


def add_queue(app: FastAPI, project: Project, store: Store, rules: Rules) -> None:
    """Add the routes to the app."""
    queue = store.queue(rules)

    @app.get("/api/queue")
    def progress(rater: Rater, taskset: str | None = None) -> JSONResponse:
        """What I have in hand, and how far we are."""
        found = queue.current(rater)
        hand = None if found is None else taken(found, rules).model_dump()
        return JSONResponse({"current": hand, "progress": store.queue_items.progress(rater, taskset or None)._asdict()})

    @app.post("/api/queue/next")
    def take(rater: Rater, wanted: NextIn) -> JSONResponse:
        """The run to rate now; null where nothing is left."""
        found = queue.take(rater, wanted.taskset or None)
        hand = None if found is None else taken(found, rules).model_dump()
        return JSONResponse({"current": hand, "progress": store.queue_items.progress(rater, wanted.taskset or None)._asdict()})

    @app.post("/api/queue/{assignment}/beat")
    def beat(rater: Rater, assignment: RunId) -> JSONResponse:
        """Keep it."""
        own(queue, assignment, rater)
        return JSONResponse(taken(queue.beat(assignment, rater), rules).model_dump())

    @app.post("/api/queue/{assignment}/done")
    def done(rater: Rater, assignment: RunId, _said: DoneIn) -> JSONResponse:
        """It is finished."""
        found = own(queue, assignment, rater)
        ended = queue.finish(assignment, rater, required(project, store.trajectory(found.trajectory).taskset, is_pair=bool(found.other)))
        return saved(assignment, **ended._asdict())

    @app.post("/api/queue/{assignment}/skip")
    def skip(rater: Rater, assignment: RunId, said: SkipIn) -> JSONResponse:
        """Give it back."""
        own(queue, assignment, rater)
        return saved(assignment, **queue.skip(assignment, rater, said.reason)._asdict())

    _leading(app, store)


def _leading(app: FastAPI, store: Store) -> None:
    @app.get("/api/queue/items")
    def items(_lead: Lead, taskset: str | None = None, status: str | None = None) -> JSONResponse:
        """What is in the queue."""
        return JSONResponse({"items": [item._asdict() for item in store.queue_items.items(taskset or None, status or None)]})

    @app.post("/api/queue/items")
    def add(_lead: Lead, wanted: ItemsIn) -> JSONResponse:
        """Put runs into the queue."""
        added, changed = store.queue_items.add(wanted.runs, overlap=wanted.overlap)
        return JSONResponse({"added": added, "changed": changed})

    @app.post("/api/queue/items/status")
    def set_status(_lead: Lead, wanted: StatusIn) -> JSONResponse:
        """Open or close runs of the queue."""
        return JSONResponse({"changed": store.queue_items.set_status(wanted.runs, wanted.status)})


def own(queue: Queue, assignment: str, rater: str) -> Assignment:
    """The rater's assignment; 404 for anybody else's: that it exists is not told either."""
    try:
        return queue.assignment(assignment, rater)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def required(project: Project, taskset: str, *, is_pair: bool) -> list[str]:
    """The criteria that a person has to answer before a run, or a pair, of this taskset is finished."""
    try:
        criteria = load_criteria(find_taskset(taskset, project.tasks) / "criteria.yaml")
    except AgentAlignError:
        criteria = ()
    if is_pair:
        return ["overall", *(criterion.key for criterion in compare.questions(criteria) if criterion.kind == "human")]
    return [criterion.key for criterion in criteria if criterion.kind == "human" and criterion.level == "trajectory"]


def saved(id: str, **told: Any) -> JSONResponse:
    """The acknowledgement that the page waits for: sent only after COMMIT."""
    return JSONResponse({"saved": True, "id": id, **told})
