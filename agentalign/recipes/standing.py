"""Where the policy stands that PPO starts from: what its own runs were worth, per kind of task, when the training began.

Runs of other policies do not say it: what DPO broke, its parent's runs call settled, and what it mended, open (measured: a family that DPO
had taken from 100 to 53 % came 4 times among 120 tasks, one that it had taken to 100 % 26 times among 144). So PPO first acts out a few
tasks of every kind that its start was hardly seen at.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agentalign.environments.task import Task
from agentalign.recipes.begun import kept
from agentalign.recipes.workspace import Workspace
from agentalign.records.criterion import Criterion, Score, checks_decide, overall_by_run
from agentalign.records.trajectory import Trajectory
from agentalign.rollouts.rollout import Job
from agentalign.store.filters import RunFilter
from agentalign.training import ranks
from agentalign.training.batches import epoch_order

LOOKS = 6
"""Runs of its own that a policy should have of every kind of task."""
OPEN = 0.03
"""Weight of a kind of task whose outcome is settled: it is still acted out now and then, so that forgetting shows."""
WON = 0.6
"""Overall value from which a run counts as won when tasks are weighed."""
UNKNOWN = 0.25 + OPEN
"""Weight of a kind of task without a scored run."""

Act = Callable[[Sequence[Job]], tuple[Sequence[Trajectory], Sequence[Score]]]
"""Acts jobs out, keeps the runs, and returns them with what the checks say."""


class Past(NamedTuple):
    """What the start's own runs say of a kind of task."""

    mean: float
    """Overall value, by the checks alone: what people said of a few of them is not there for the runs to come."""
    weight: float
    """p (1 - p) + a little, p the share that went well: where runs both won and lost there is most to learn."""


def kind_of(task: Task) -> str:
    """Family and branch: what a success rate is estimated over."""
    return f"{task.family}/{task.branch}"


def standing(work: Workspace, start: str, act: Act, file: Path, *, most: int, seed: int) -> dict[str, Past]:
    """Per kind of train task what the start's runs were worth, as it was when the training began: a rating saved since changes no task.

    Args:
        start: the adapter, as its stored runs name it: "order_desk@2".
        act: acts out what it was not seen at, in the first process alone.
        file: where the result is written down at the beginning.
        most: runs that may be made; with more kinds than that, some stay unknown.
        seed: draws their tasks.
    """
    found = ranks.first(lambda: kept(file, lambda: _looked(work, start, act, most, seed)))
    return {kind: Past(*figures) for kind, figures in found.items()}


def to_look_at(work: Workspace, start: str, *, most: int, seed: int) -> tuple[dict[str, list[float]], list[Job]]:
    """What the start's stored runs were worth by kind, and the jobs that it was not seen at; see `standing`."""
    tasks = work.taskset.tasks("train")
    named = {task.id for task in tasks}
    own = [run for run in work.store.trajectories(RunFilter(taskset=work.taskset.name, policy=start)) if run.task_id in named]
    worth = _by_kind(work, own, work.store.scores([run.id for run in own]))
    if not checks_decide(work.taskset.criteria):
        return worth, []
    return worth, missing_jobs(tasks, {kind: len(values) for kind, values in worth.items()}, most=most, seed=seed)


def _looked(work: Workspace, start: str, act: Act, most: int, seed: int) -> dict[str, Past]:
    worth, jobs = to_look_at(work, start, most=most, seed=seed)
    for kind, values in (_by_kind(work, *act(jobs)) if jobs else {}).items():
        worth.setdefault(kind, []).extend(values)
    return {kind: Past(float(np.mean(values)), openness([value >= WON for value in values])) for kind, values in worth.items()}


def missing_jobs(tasks: Sequence[Task], seen: Mapping[str, int], *, most: int, seed: int) -> list[Job]:
    """Jobs after which every kind was seen LOOKS times, every kind's first before any kind's second.

    Args:
        seen: runs that are there already, by kind.
        most: jobs.
    """
    kinds: dict[str, list[Task]] = {}
    for index in epoch_order(len(tasks), seed=seed, epoch=0):
        kinds.setdefault(kind_of(tasks[index]), []).append(tasks[index])
    jobs = []
    for number in range(LOOKS):
        for kind, some in kinds.items():
            if number + seen.get(kind, 0) < LOOKS:
                jobs.append(Job(some[number % len(some)], number // len(some)))
    return jobs[:most]


def openness(won: Sequence[bool]) -> float:
    """How open an outcome is, p being the share of runs that won: p (1 - p) + OPEN.

    A few runs that all went well do not prove that all do: p is drawn to one half, as by one run more (Jeffreys' prior).
    """
    share = (sum(won) + 0.5) / (len(won) + 1)
    return share * (1 - share) + OPEN


def by_checks(criteria: Sequence[Criterion], scores: Sequence[Score]) -> dict[str, float]:
    """Overall value by run id, by the checks' scores alone; only runs where it is known."""
    values = overall_by_run(criteria, (score for score in scores if score.rater_kind == "check"))
    return {run: value for run, value in values.items() if value is not None}


def _by_kind(work: Workspace, runs: Sequence[Trajectory], scores: Sequence[Score]) -> dict[str, list[float]]:
    tasks = work.tasks()
    values = by_checks(work.taskset.criteria, scores)
    worth: dict[str, list[float]] = {}
    for run in runs:
        task = tasks.get(run.task_id or "")
        if task and run.id in values:
            worth.setdefault(kind_of(task), []).append(values[run.id])
    return worth
