"""Runs made and kept: which tasks, who acts, and into the store as they come.

Runs are stored as they come, in the order of the jobs: what is interrupted loses the runs under way and those that wait for one of them.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from agentalign.config.project import Project
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import TasksetError
from agentalign.records.trajectory import Trajectory
from agentalign.rollouts.bundle import adapter_policy, base_policy
from agentalign.rollouts.policy import EndpointPolicy, ExpertPolicy, Policy
from agentalign.rollouts.rollout import Job, RolloutResult, rollout
from agentalign.store.adding import AddReport
from agentalign.store.store import Store
from agentalign.training.quantize import Quantization

STORED_AT_ONCE = 16


class Collected(NamedTuple):
    """What was made."""

    runs: tuple[Trajectory, ...]
    stored: int
    known: int
    """Equal to a run that the same policy made of the same task with the same seed: nothing new to store."""
    sampled_tokens: dict[str, int]
    """Trajectory id -> tokens the policy wrote; only where it counts them."""
    forgotten: int = 0
    """Equal to a run that was forgotten: they are not kept again."""

    def stop_reasons(self) -> dict[str, int]:
        """How many runs ended for which reason."""
        return dict(sorted(Counter(run.stop_reason.value for run in self.runs).items()))


def choose_jobs(
    taskset: Taskset, split: str | None = None, tag: str | None = None, *, limit: int | None = None, samples: int = 1
) -> list[Job]:
    """Jobs for the tasks of a split that carry a tag, each sampled so often; `limit` takes that many tasks, drawn by chance."""
    tasks = [task for task in taskset.tasks(split) if tag is None or tag in task.tags]
    if not tasks:
        wanted = " ".join(word for word in (f"in split '{split}'" if split else "", f"with tag '{tag}'" if tag else "") if word)
        splits = ", ".join(dict.fromkeys(task.split for task in taskset.tasks())) or "none"
        raise TasksetError(f"taskset '{taskset.name}' has no tasks {wanted}. Its splits: {splits}.")
    return [Job(task, sample) for task in spread(tasks, limit) for sample in range(samples)]


def choose_policy(
    project: Project,
    pool: Pool,
    *,
    adapter: str | None = None,
    policy: Literal["expert", "base"] | None = None,
    endpoint: str | None = None,
    model: str = "",
    api_key: str = "none",
    base: str = "smollm2-135m",
    quantization: Quantization = "nf4",
    temperature: float = 0.0,
    seed: int = 0,
) -> Policy:
    """Who acts: exactly one of an adapter, the expert or the bare base, or a model behind a server."""
    if adapter is not None:
        return adapter_policy(project, adapter, temperature=temperature, seed=seed)
    if endpoint is not None:
        return EndpointPolicy(endpoint, model, api_key=api_key, temperature=temperature, seed=seed)
    if policy == "expert":
        return ExpertPolicy(pool)
    return base_policy(project, base, quantization, temperature=temperature, seed=seed)


def spread(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    """At most `limit` tasks, drawn by chance but always the same: a stride would fall in step with a generator's branches."""
    # Generators write family after family: the first hundred tasks would be of one kind.
    if limit is None or limit >= len(tasks):
        return list(tasks)
    return [tasks[index] for index in sorted(random.Random(0).sample(range(len(tasks)), limit))]


def collect(
    store: Store,
    taskset: Taskset,
    policy: Policy,
    jobs: Sequence[Job],
    *,
    pool: Pool,
    seed: int = 0,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Make the runs and store them with their tokens."""
    kind: Literal["expert", "rollout"] = "expert" if isinstance(policy, ExpertPolicy) else "rollout"
    waiting: list[RolloutResult] = []
    runs: list[Trajectory] = []
    sampled: dict[str, int] = {}
    reports: list[AddReport] = []
    try:
        for result in rollout(taskset, policy, jobs, seed=seed, origin_kind=kind, pool=pool, batch=batch, progress=progress):
            runs.append(result.trajectory)
            waiting.append(result)
            if result.tokens:
                sampled[result.trajectory.id] = sum(len(turn.completion) for turn in result.tokens.turns)
            if len(waiting) >= STORED_AT_ONCE:
                reports.append(_store(store, waiting))
    finally:
        reports.append(_store(store, waiting))
    stored, forgotten = sum(one.stored for one in reports), sum(one.forgotten for one in reports)
    return Collected(tuple(runs), stored, len(runs) - stored - forgotten, sampled, forgotten)


def _store(store: Store, waiting: list[RolloutResult]) -> AddReport:
    report = store.add([result.trajectory for result in waiting], [result.tokens for result in waiting if result.tokens])
    waiting.clear()
    return report
