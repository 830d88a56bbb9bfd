"""Trainings for the pages: what the store says of them, what their folders hold, and whether a process is at work.

The folder is the truth. A record says "running" from the moment a training began, and still does after a kill; so a training runs if
its record says so *and* the process that its folder names is alive. Else it was interrupted, and the same command goes on with it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, JsonValue

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError
from agentalign.recipes.process import LAUNCH_FILE, LOCK_FILE, read_process
from agentalign.records.adapter import Training
from agentalign.records.preference import Preference, in_force
from agentalign.store.filters import RunFilter
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.metrics import PLAN_FILE
from agentalign.ui.curves import Row

State = Literal["starting", "running", "done", "failed", "stopped", "interrupted"]
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "output.log"
"""What a process that was started from the page said."""
NOT_BEGUN = "not begun yet; what it learns from is written down"
"""What the record of a training says that was started from the page, until its process says more."""
ENDED_BEFORE = "ended before it began; its words say why"
VOTES_SECONDS = 30.0
"""How long comparisons are not read again for a page that looks every two seconds."""
LAST_STEPS = 20
"""What is left to do is estimated from the seconds of so many steps."""


class TrainingRow(BaseModel):
    """One training in the list."""

    id: str
    recipe: str
    taskset: str
    state: State
    step: int
    total: int | None
    """None until the training has counted its steps."""
    seconds_left: float | None
    adapter: str
    note: str
    created: str


class EvaluationView(BaseModel):
    """One look of the dev gate, or of another evaluation while training."""

    step: int
    score: float
    success: float | None
    runs: int
    """How many of its runs are kept."""
    policy: str
    """Who made them, as the list of runs filters by; empty where none are kept."""


class SettingView(BaseModel):
    """One setting of the training."""

    name: str
    value: str


class TrainingView(BaseModel):
    """One training, for its page."""

    row: TrainingRow
    settings: list[SettingView]
    items: int | None
    """How many ids its data snapshot holds; None where it has none yet."""
    data_digest: str
    seed: int
    stages: list[str]
    """Stages that its adapter holds."""
    evaluations: list[EvaluationView]
    log: str
    """The end of what its process said, where it was started here."""


def row_of(project: Project, training: Training, rows: Sequence[Row]) -> TrainingRow:
    """A training's line in the list."""
    folder = project.trainings / training.id
    step = max((_int(row["step"]) for row in rows), default=0)
    total = _total(folder)
    state = state_of(folder, training)
    recent = [float(spent) for row in rows for spent in (row.get("seconds"),) if isinstance(spent, int | float)][-LAST_STEPS:]
    going = state == "running" and total is not None and recent
    return TrainingRow(
        id=training.id,
        recipe=training.recipe,
        taskset=training.taskset,
        state=state,
        step=step,
        total=total,
        seconds_left=sum(recent) / len(recent) * max(0, (total or 0) - step) if going else None,
        adapter=training.adapter,
        note=ENDED_BEFORE if state == "stopped" and training.note == NOT_BEGUN and (folder / LAUNCH_FILE).exists() else training.note,
        created=training.created,
    )


def state_of(folder: Path, training: Training) -> State:
    """What a training is up to."""
    at_work, launched = read_process(folder / LOCK_FILE), read_process(folder / LAUNCH_FILE)
    if training.status == "running" and at_work is not None:
        return "running"
    # A launched process that has opened the folder already is on its way out, and its record says why.
    if training.status != "done" and launched is not None and launched != at_work:
        return "starting"
    return "interrupted" if training.status == "running" else training.status


def view_of(project: Project, store: Store, training: Training, rows: Sequence[Row]) -> TrainingView:
    """A training's page."""
    folder = project.trainings / training.id
    settings = json.loads(training.config)
    return TrainingView(
        row=row_of(project, training, rows),
        settings=[SettingView(name=name, value=_shown(value)) for name, value in settings.items()],
        items=_items(folder),
        data_digest=training.data_digest,
        seed=training.seed,
        stages=_stages(project, training.adapter),
        evaluations=evaluations(store, training, rows),
        log=log_end(folder),
    )


def evaluations(store: Store, training: Training, rows: Sequence[Row]) -> list[EvaluationView]:
    """Evaluations of a training, each with the runs that were kept of it."""
    found: dict[int, EvaluationView] = {}
    for row in rows:
        score = row.get("eval/score")
        if not isinstance(score, int | float):
            continue
        step, success = _int(row["step"]), row.get("eval/success")
        policy = dev_policy(training.id, step)
        runs = store.count(RunFilter(taskset=training.taskset, policy=policy))
        known = float(success) if isinstance(success, int | float) else None
        found[step] = EvaluationView(step=step, score=score, success=known, runs=runs, policy=policy if runs else "")
    return [found[step] for step in sorted(found)]


def dev_policy(training: str, step: int) -> str:
    """What the dev gate's runs after a step say made them."""
    return f"{training}/dev-{step}"


def votes(store: Store, training: Training, compared: Sequence[Preference]) -> list[tuple[int, float]]:
    """(step, 1, 0 or 0.5): what people held of dev runs of later steps against dev runs of the start, blind."""
    whole = [one for one in compared if one.left is not None and one.items[0].step is None]
    ids = {item.trajectory for one in whole for item in one.items}
    mine = {row.id: row.policy for row in store.runs(RunFilter(ids=tuple(ids), training=training.id, split="dev"), limit=len(ids)).rows}
    found = []
    for preference in whole:
        steps = [_dev_step(training.id, mine.get(item.trajectory, "")) for item in preference.items[:2]]
        if None in steps or 0 not in steps or steps == [0, 0]:
            continue
        later = 0 if steps[0] != 0 else 1
        found.append((steps[later] or 0, float(later == 0) if preference.decided else 0.5))
    return found


class Votes:
    """What people held of dev runs, by training, kept for a while: to find it, every comparison of the taskset is read."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, list[tuple[int, float]]]] = {}

    def of(self, store: Store, training: Training) -> list[tuple[int, float]]:
        """See `votes`; of comparisons that people stand by."""
        if not store.count(RunFilter(taskset=training.taskset, policy=dev_policy(training.id, 0))):
            return []  # every vote that counts is on a run of the start
        told = self._kept.get(training.id)
        if told is None or time.monotonic() - told[0] > VOTES_SECONDS:
            human = [word for word in in_force(store.preferences(training.taskset, "overall", "human")) if word.is_answer]
            told = self._kept[training.id] = time.monotonic(), votes(store, training, human) if human else []
        return told[1]


def _dev_step(training: str, policy: str) -> int | None:
    prefix = dev_policy(training, 0)[:-1]
    step = policy.removeprefix(prefix)
    return int(step) if policy.startswith(prefix) and step.isdigit() else None


def log_end(folder: Path, most: int = 4000) -> str:
    """The end of a training's log; empty where it has none."""
    try:
        with (folder / LOG_FILE).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - most))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _total(folder: Path) -> int | None:
    plan = _json(folder / PLAN_FILE)
    total = plan.get("total_steps") if isinstance(plan, dict) else None
    return _int(total) if isinstance(total, int | float) else None


def _items(folder: Path) -> int | None:
    ids = _json(folder / DATA_FILE)
    return len(ids) if isinstance(ids, list) else None


def _json(path: Path) -> JsonValue | None:
    try:
        value: JsonValue = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # not written yet, or being written
        return None
    return value


def _stages(project: Project, adapter: str) -> list[str]:
    if not adapter:
        return []
    try:
        name, _, version = adapter.partition("@")
        return sorted(stage for stage, held in Registry(project.adapters).stages(name).items() if str(held) == version)
    except AgentAlignError:  # the adapter's folder was deleted or moved since
        return []


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, Mapping):
        return json.dumps(value)
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _int(value: JsonValue) -> int:
    return int(value) if isinstance(value, int | float) else 0
