"""The routes under /api: read inputs, call one function, return outputs.

A save answers only after the store's COMMIT, and the same save sent twice is one save. Plain `def` handlers run in threads, which is
what the store is made for. Answers are ASCII JSON: models write lone surrogates, and those have no UTF-8.
"""

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError, DataError, StoreError
from agentalign.exchange.ratings import preference_table, rating_lines, score_table
from agentalign.records.base import digest
from agentalign.records.criterion import Criterion, Score, ScoreStatus
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui import hidden, tokens, views
from agentalign.ui.access import enforce
from agentalign.ui.assets import Assets
from agentalign.ui.auth import Guard, Person, Signer, project_signer, require_person, require_rater
from agentalign.ui.criteria import criteria_of
from agentalign.ui.files import project_secret
from agentalign.ui.inspect_api import inspect_routes
from agentalign.ui.listing import ListQuery, RunsView, list_page
from agentalign.ui.queue_api import add_queue
from agentalign.ui.team import add_team

STATIC = Path(__file__).parent / "static"

Rater = Annotated[str, Depends(require_rater)]
Asking = Annotated[Person, Depends(require_person)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Note = Annotated[str, Field(max_length=4000)]
Name = Annotated[str | None, Query(max_length=500)]


class House(NamedTuple):
    """What the routes work on."""

    project: Project
    store: Store
    secret: bytes

    def criteria(self, taskset: str) -> tuple[tuple[Criterion, ...], str]:
        """The taskset's criteria, or why there are none."""
        try:
            return criteria_of(self.project.tasks, taskset), ""
        except AgentAlignError as error:
            return (), str(error)


class ScoreIn(BaseModel):
    """A mark. Who gave it is read from the cookie."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: Key
    """Idempotency key, made by the page once per mark."""
    trajectory: RunId
    criterion: Annotated[str, Field(max_length=100)]
    step: Annotated[int | None, Field(ge=0)] = None
    value: float | None = None
    """None: the criterion does not apply, unless `status` says otherwise."""
    status: Literal["cant_judge", "withdrawn"] | None = None
    """The rater cannot tell, or takes an earlier answer back; without a value."""
    note: Note = ""
    chips: Annotated[list[str], Field(max_length=9)] = []
    """Those of the criterion's chips that were ticked."""


class Saved(BaseModel):
    """The acknowledgement: sent only after COMMIT."""

    saved: Literal[True] = True
    id: str
    known: bool
    """The same save had arrived before."""


class Refused(BaseModel):
    """A mark that was not saved; those beside it were."""

    saved: Literal[False] = False
    detail: str


class ScoresIn(BaseModel):
    """Marks that waited in the page, in the order in which they were given."""

    model_config = ConfigDict(extra="forbid")

    marks: Annotated[list[ScoreIn], Field(min_length=1, max_length=100)]


class ScoresSaved(BaseModel):
    """What became of every mark, in their order: an acknowledgement, sent only after COMMIT, or why it was refused."""

    saved: Literal[True] = True
    marks: list[Saved | Refused]


def create_api(project: Project, *, rater: str, team: bool = False, home: str | None = None, rules: Rules = Rules()) -> FastAPI:
    """The parent app with everything but the page itself.

    Args:
        project: Whose runs are shown.
        rater: Name under which this machine's person rates; nobody's on a team's server.
        team: People log in to accounts of their own.
        home: Address under which a team reaches this server, where that is not this machine.
        rules: How the queue hands out runs.
    """
    house = House(project, Store(project.store_url), project_secret(project.state / "ui"))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        room.close()
        house.store.close()

    # The interactive documentation would load its scripts from elsewhere.
    app = FastAPI(title="agentalign", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, dependencies=[Depends(enforce)])
    app.add_exception_handler(AgentAlignError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    signer = project_signer(house.secret)
    _reading(app, house, signer, team=team)
    _rating(app, house)
    _exporting(app, house)
    accounts = house.store.accounts if team else None
    add_queue(app, project, house.store, rules, lambda person, run: shown_run(house, person, run))
    add_team(app, accounts, signer, secure=bool(home and home.startswith("https://")))
    app.include_router(inspect_routes(house.store))
    # They stand on this module.
    from agentalign.ui import agreement_api, checks_api, compare_api, correct_api, lineage_api, play_api, queue_pairs_api, training_api

    agreement_api.add(app, house)
    compare_api.add(app, house)
    correct_api.add(app, house)
    lineage_api.add(app, house)
    queue_pairs_api.add(app, house)
    training_api.add(app, house)
    checks_api.add(app, house)
    room = play_api.add(app, house)
    app.state.assets = Assets(STATIC)
    app.mount("/ui", app.state.assets)
    app.add_middleware(Guard, signer=signer, owner=rater, accounts=accounts, home=home)
    return app


def ascii_json(content: BaseModel | dict[str, Any]) -> Response:
    """The content as JSON in ASCII, whatever characters it holds."""
    plain = content.model_dump() if isinstance(content, BaseModel) else content
    return Response(json.dumps(plain, allow_nan=False, separators=(",", ":")), media_type="application/json")


def _refusal(_request: Request, error: Exception) -> JSONResponse:
    # A store that is locked or full may take the same save a moment later: 503 tells the page to try again.
    return JSONResponse({"detail": str(error).encode("utf-8", "backslashreplace").decode()}, 503 if isinstance(error, StoreError) else 422)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    # The input is not repeated: it may hold what has no UTF-8.
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "not valid"}
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{place or 'the request'}: {first['msg']}."}, 422)


def _reading(app: FastAPI, house: House, signer: Signer, *, team: bool) -> None:
    @app.get("/api/session")
    def session(person: Asking) -> Response:
        """Who I am, and what there is to look at."""
        tasksets = house.store.choices().taskset
        return ascii_json({"rater": person.name, "role": person.role, "team": team, "id": signer.project, "tasksets": tasksets})

    @app.get("/api/choices")
    def choices(_rater: Rater, taskset: Name = None) -> Response:
        """What the list can be narrowed to."""
        return ascii_json(house.store.choices(taskset or None)._asdict())

    @app.get("/api/runs", response_model=RunsView)
    def runs(person: Asking, filter: Annotated[ListQuery, Query()]) -> Response:
        """One page of the list of runs, newest first; those that this person rates blind are left out."""
        return ascii_json(list_page(house.store, lambda taskset: house.criteria(taskset)[0], filter, person))

    @app.get("/api/runs/{run}", response_model=views.RunView)
    def run(person: Asking, run: RunId) -> Response:
        """One run with the criteria to rate it by and all verdicts on it."""
        return ascii_json(shown_run(house, person, run))

    @app.get("/api/runs/{run}/tokens", response_model=tokens.TokensView)
    def run_tokens(person: Asking, run: RunId, seen_as: Name = None) -> Response:
        """The run as a recipe, or one training, sees it."""
        hidden.refuse_hidden(house.store, person, run)
        found = stored_run(house.store, run)
        return ascii_json(tokens.tokens_view(found, house.store.tokens(run), house.project, seen_as or "sft"))


def stored_run(store: Store, id: str) -> Trajectory:
    """The run, or 404."""
    try:
        return store.recent.trajectory(id)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def taskset_of(store: Store, id: str) -> str:
    """The taskset of a run, or 404. The run itself is not read."""
    try:
        return store.recent.taskset(id)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def shown_run(house: House, person: Person, id: str) -> views.RunView:
    """The run's page as this person may see it."""
    found = stored_run(house.store, id)
    criteria, missing = house.criteria(found.taskset)
    scores, is_hidden = hidden.told(house.store, person, id, house.store.scores([id]))
    bases = len(tokens.known_bases(house.project, found.origin.reference))
    view = views.run_view(found, scores, criteria, criteria_missing=missing, rater=person.name, bases=bases)
    return hidden.without_origin(view) if is_hidden else view


def _rating(app: FastAPI, house: House) -> None:
    @app.post("/api/scores", response_model=Saved)
    def add_score(rater: Rater, mark: ScoreIn) -> Response:
        """Save one mark."""
        return ascii_json(_saved(house, mark, rater))

    @app.post("/api/scores/many", response_model=ScoresSaved)
    def add_scores(rater: Rater, given: ScoresIn) -> Response:
        """Save marks, and refuse only those that cannot be."""
        return ascii_json(ScoresSaved(marks=_saved_all(house, given.marks, rater)))


def _saved(house: House, mark: ScoreIn, rater: str) -> Saved:
    score = _score(house, mark, rater)
    report = house.store.add_scores([score])
    return Saved(id=score.id, known=report.stored == 0)


def _saved_all(house: House, marks: Sequence[ScoreIn], rater: str) -> list[Saved | Refused]:
    """All marks in one transaction where they allow it, else one by one: a mark that is refused takes none with it."""
    try:
        scores = [_score(house, mark, rater) for mark in marks]
        known = {score.id for score in house.store.scores(sorted({mark.trajectory for mark in marks}))}
        house.store.add_scores(scores)
    except (DataError, HTTPException):
        return [_saved_or_refused(house, mark, rater) for mark in marks]
    return [Saved(id=score.id, known=score.id in known) for score in scores]


def _saved_or_refused(house: House, mark: ScoreIn, rater: str) -> Saved | Refused:
    try:
        return _saved(house, mark, rater)
    except DataError as error:
        return Refused(detail=str(error))
    except HTTPException as error:
        return Refused(detail=str(error.detail))


def _score(house: House, mark: ScoreIn, rater: str) -> Score:
    return score_of(mark, *house.criteria(taskset_of(house.store, mark.trajectory)), rater)


def score_of(mark: ScoreIn, criteria: Sequence[Criterion], missing: str, rater: str) -> Score:
    """The mark as a record; DataError where the team's criteria do not allow it."""
    criterion = next((criterion for criterion in criteria if criterion.key == mark.criterion), None)
    if criterion is None:
        known = ", ".join(criterion.key for criterion in criteria) or missing
        raise DataError(f"there is no criterion '{mark.criterion}' in force here. Reload the page; in force: {known}.")
    if (criterion.level == "step") != (mark.step is not None):
        where = "single steps" if criterion.level == "step" else "the whole run"
        raise DataError(f"criterion '{criterion.name}' is about {where}. Mark {where} by it.")
    if mark.status and mark.value is not None:
        raise DataError(f"criterion '{criterion.name}': '{mark.status}' has no value. Send the one or the other.")
    low, high = criterion.scale
    if mark.value is not None and not low <= mark.value <= high:
        raise DataError(f"criterion '{criterion.name}' runs from {low:g} to {high:g}; {mark.value:g} lies outside. Choose a value between.")
    unknown = [chip for chip in mark.chips if chip not in criterion.chips]
    if unknown:
        raise DataError(f"criterion '{criterion.name}' has no chip {unknown[0][:40]!a}. Reload the page; it has {list(criterion.chips)}.")
    return Score(
        trajectory=mark.trajectory,
        criterion=criterion.key,
        step=mark.step,
        status=ScoreStatus(mark.status or ("not_applicable" if mark.value is None else "value")),
        value=mark.value,
        rater=rater,
        rater_kind="human",
        note=mark.note,
        chips=tuple(chip for chip in criterion.chips if chip in mark.chips),
        id=digest(["score", rater, mark.key]),
    )


def _exporting(app: FastAPI, house: House) -> None:
    @app.get("/api/export/{what}.{form}")
    def export(person: Asking, what: Literal["scores", "preferences"], form: Literal["jsonl", "csv"], taskset: Name = None) -> Response:
        """All ratings, or a taskset's, as a file."""
        lines = export_lines(house.store, what, form, taskset or None, person)
        kind = "text/csv; charset=utf-8" if form == "csv" else "application/x-ndjson"
        return StreamingResponse(lines, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{what}.{form}"'})


def export_lines(
    store: Store, what: Literal["scores", "preferences"], form: Literal["jsonl", "csv"], taskset: str | None, person: Person
) -> Iterator[str]:
    """The lines of an exported file."""
    if what == "scores":
        scores = hidden.shown_scores(store, person, store.scores(taskset=taskset))
        return score_table(scores) if form == "csv" else rating_lines(scores)
    every: Iterable[Preference] = (p for name in ([taskset] if taskset else store.choices().taskset) for p in store.preferences(name))
    preferences = hidden.shown_preferences(store, person, every)
    return preference_table(preferences) if form == "csv" else rating_lines(preferences)
