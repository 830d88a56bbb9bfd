"""Routes of the training screen: what trains or has trained, its curves and its alarms."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.config.load import describe
from agentalign.environments.taskset import list_tasksets
from agentalign.errors import DataError
from agentalign.records.adapter import RecipeName, Training
from agentalign.ui import launch, trainings
from agentalign.ui.api import House, Rater, ascii_json
from agentalign.ui.auth import require_lead
from agentalign.ui.curves import Curve, MetricsFiles, Row, curve, names

TrainingId = Annotated[str, InPath(pattern=r"^[^/\\]{1,200}-[0-9a-f]{12}$")]
MOST_NAMES = 40
Lead = Annotated[str, Depends(require_lead)]


class TrainingsView(BaseModel):
    """The list."""

    rows: list[trainings.TrainingRow]


class AlarmView(BaseModel):
    """One thing to look at."""

    name: str
    level: str
    step: int
    text: str


class CurvesView(BaseModel):
    """Curves of a training, thinned."""

    row: trainings.TrainingRow
    rows: int
    """How many rows metrics.jsonl has: give it back as `seen`, and unchanged curves are not sent again."""
    unchanged: bool
    names: list[str]
    """Every metric there is."""
    curves: dict[str, Curve]
    evaluations: list[trainings.EvaluationView]
    alarms: list[AlarmView]


class PlanIn(BaseModel):
    """Settings of a training, as text; each is read as a flag of the command line would be."""

    model_config = ConfigDict(extra="forbid")

    recipe: RecipeName
    settings: dict[Annotated[str, Field(max_length=60)], Annotated[str, Field(max_length=1000)]]


class PlanView(BaseModel):
    """A dry run."""

    plan: str
    state: str
    reason: str = ""
    figures: dict[str, Any] = {}


class StartIn(BaseModel):
    """Which dry run to start."""

    model_config = ConfigDict(extra="forbid")

    plan: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""
    files, votes = MetricsFiles(), trainings.Votes()
    _changing(app, house)

    @app.get("/api/trainings/form")
    def form(_lead: Lead) -> Response:
        """What a new training can be told."""
        recipes = {name: [setting._asdict() for setting in describe(config)] for name, config in launch.CONFIGS.items()}
        tasksets = [found.name for found in list_tasksets(house.project.tasks)]
        return ascii_json({"recipes": recipes, "tasksets": tasksets, "presets": launch.presets(house.project)})

    @app.get("/api/trainings", response_model=TrainingsView)
    def listed(_rater: Rater) -> Response:
        """Every training, newest first."""
        found = house.store.trainings()[::-1]
        return ascii_json(TrainingsView(rows=[trainings.row_of(house.project, one, rows_of(house, files, one)) for one in found]))

    @app.get("/api/trainings/{id}", response_model=trainings.TrainingView)
    def training(_rater: Rater, id: TrainingId) -> Response:
        """One training."""
        found = stored_training(house, id)
        return ascii_json(trainings.view_of(house.project, house.store, found, rows_of(house, files, found)))

    @app.get("/api/trainings/{id}/curves", response_model=CurvesView)
    def curves(
        _rater: Rater, id: TrainingId, name: Annotated[tuple[str, ...], Query(max_length=MOST_NAMES)] = (), seen: int = -1
    ) -> Response:
        """Its curves of these metrics, and what is wrong with it."""
        return ascii_json(curves_view(house, files, votes, stored_training(house, id), name, seen))


def _changing(app: FastAPI, house: House) -> None:
    plans = launch.Plans(house.project)

    @app.post("/api/trainings/plans", response_model=PlanView)
    def plan(_lead: Lead, wanted: PlanIn) -> Response:
        """Begin a dry run."""
        return ascii_json(PlanView(plan=plans.begin(wanted.recipe, wanted.settings), state="working"))

    @app.get("/api/trainings/plans/{token}", response_model=PlanView)
    def planned(_lead: Lead, token: str) -> Response:
        """What a dry run has come to; the ids themselves stay here."""
        found = plans.get(token)
        figures = {name: value for name, value in found.figures.items() if name not in ("data", "labels")}
        return ascii_json(PlanView(plan=token, state=found.state, reason=found.reason, figures=figures))

    @app.post("/api/trainings")
    def start(_lead: Lead, wanted: StartIn) -> Response:
        """Start what was planned."""
        return ascii_json({"id": launch.start(house.project, house.store, plans.get(wanted.plan)).id})

    @app.post("/api/trainings/{id}/stop")
    def stop(_lead: Lead, id: TrainingId) -> Response:
        """Have it save and end."""
        launch.stop(house.project, stored_training(house, id))
        return ascii_json({"asked": True})

    @app.post("/api/trainings/{id}/resume")
    def resume(_lead: Lead, id: TrainingId) -> Response:
        """Go on with it."""
        launch.resume(house.project, stored_training(house, id))
        return ascii_json({"started": True})


def stored_training(house: House, id: str) -> Training:
    """The training, or 404."""
    try:
        return house.store.training(id)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def rows_of(house: House, files: MetricsFiles, training: Training) -> Sequence[Row]:
    """Rows of its metrics.jsonl."""
    return files.rows(house.project.trainings / training.id / trainings.METRICS_FILE)


def curves_view(
    house: House, files: MetricsFiles, votes: trainings.Votes, training: Training, wanted: Sequence[str], seen: int
) -> CurvesView:
    """What the page draws."""
    from agentalign.evaluation.alarms import Vote, alarms  # its statistics take a second to import

    rows = rows_of(house, files, training)
    row = trainings.row_of(house.project, training, rows)
    if len(rows) == seen:
        return CurvesView(row=row, rows=seen, unchanged=True, names=[], curves={}, evaluations=[], alarms=[])
    return CurvesView(
        row=row,
        rows=len(rows),
        unchanged=False,
        names=names(rows),
        curves={name: curve(rows, name) for name in wanted},
        evaluations=trainings.evaluations(house.store, training, rows),
        alarms=[AlarmView(**alarm._asdict()) for alarm in alarms(rows, [Vote(*vote) for vote in votes.of(house.store, training)])],
    )
