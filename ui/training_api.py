"""Routes of the training screen: what trains or has trained, its curves and its alarms."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query
from fastapi import Path as InPath
from pydantic import BaseModel
from starlette.responses import Response

from agentalign.errors import DataError
from agentalign.records.adapter import Training
from agentalign.ui import trainings
from agentalign.ui.api import House, Rater, ascii_json
from agentalign.ui.curves import Curve, MetricsFiles, Row, curve, names

TrainingId = Annotated[str, InPath(pattern=r"^[^/\\]{1,200}-[0-9a-f]{12}$")]
MOST_NAMES = 40


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


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""
    files = MetricsFiles()

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
        return ascii_json(curves_view(house, files, stored_training(house, id), name, seen))


def stored_training(house: House, id: str) -> Training:
    """The training, or 404."""
    try:
        return house.store.training(id)
    except DataError as error:
        raise HTTPException(404, str(error)) from None


def rows_of(house: House, files: MetricsFiles, training: Training) -> Sequence[Row]:
    """Rows of its metrics.jsonl."""
    return files.rows(house.project.trainings / training.id / trainings.METRICS_FILE)


def curves_view(house: House, files: MetricsFiles, training: Training, wanted: Sequence[str], seen: int) -> CurvesView:
    """What the page draws."""
    from agentalign.evaluation.alarms import Vote, alarms  # its statistics take a second to import

    rows = rows_of(house, files, training)
    row = trainings.row_of(house.project, training, rows)
    if len(rows) == seen:
        return CurvesView(row=row, rows=seen, unchanged=True, names=[], curves={}, evaluations=[], alarms=[])
    human = house.store.preferences(training.taskset, source="human")
    votes = [Vote(*vote) for vote in trainings.votes(house.store, training, human)] if human else []
    return CurvesView(
        row=row,
        rows=len(rows),
        unchanged=False,
        names=names(rows),
        curves={name: curve(rows, name) for name in wanted},
        evaluations=trainings.evaluations(house.store, training, rows),
        alarms=[AlarmView(**alarm._asdict()) for alarm in alarms(rows, votes)],
    )
