"""Checks: the team's functions in criteria.py become scores.

A check that breaks is a score with status "error" and the reason as its note, never an exception: one bad run must not stop a thousand.
"""

from collections.abc import Collection, Iterable, Mapping

from agentalign.environments.check import answer_problem
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool, TeamCodeError
from agentalign.records.criterion import Criterion, Score, ScoreStatus
from agentalign.records.trajectory import Trajectory

MAX_NOTE = 4000
"""Characters of a traceback that a score keeps: its end, where the reason stands."""


def score_trajectories(
    taskset: Taskset,
    trajectories: Iterable[Trajectory],
    tasks_by_id: Mapping[str, Task] | None = None,
    *,
    criteria: Collection[str] | None = None,
    pool: Pool,
) -> list[Score]:
    """Run the checks of a taskset on runs.

    Args:
        tasks_by_id: tasks that runs may name; the taskset's own where left out. A run without a known task is checked with task None.
        criteria: names of criteria; all that have a check where left out. TasksetError for an unknown name.
        pool: where the team's functions run.

    Returns:
        One score per run and criterion, or one per step that a step-level check answered.
    """
    chosen = [taskset.criterion(name) for name in criteria] if criteria is not None else list(taskset.criteria)
    checks = [criterion for criterion in chosen if criterion.kind == "check"]
    tasks = {task.id: task for task in taskset.tasks()} if tasks_by_id is None else tasks_by_id
    scores: list[Score] = []
    for trajectory in trajectories:
        task = tasks.get(trajectory.task_id or "")
        for criterion in checks:
            scores += _check(criterion, trajectory, task, pool)
    return scores


def _check(criterion: Criterion, trajectory: Trajectory, task: Task | None, pool: Pool) -> list[Score]:
    try:
        answer = pool.check(criterion.check, trajectory, task)
    except TeamCodeError as error:
        return [_score(criterion, trajectory, error=str(error)[-MAX_NOTE:])]
    problem = answer_problem(criterion, trajectory, answer)
    if problem:
        return [_score(criterion, trajectory, error=f"check '{criterion.check}' {problem}")]
    if isinstance(answer, dict) and answer:
        return [_score(criterion, trajectory, value=value, step=step) for step, value in sorted(answer.items())]
    return [_score(criterion, trajectory, value=None if answer is None or isinstance(answer, dict) else float(answer))]


def _score(criterion: Criterion, trajectory: Trajectory, *, value: float | None = None, step: int | None = None, error: str = "") -> Score:
    status = ScoreStatus.ERROR if error else ScoreStatus.NOT_APPLICABLE if value is None else ScoreStatus.VALUE
    return Score(
        trajectory=trajectory.id,
        criterion=criterion.key,
        step=step,
        status=status,
        value=value,
        rater="check",
        rater_kind="check",
        note=error,
    )
