"""From an adapter's name to an evaluation: rollouts on a split, their scores, the figures, and a report on disk.

The report's folder is the evaluation's place: a gate, a later comparison or a person finds it there. Every plan has a folder of its
own, so that a quick look at twenty tasks never stands where all of them were measured.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import JsonValue, ValidationError

from agentalign.config.project import Project
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset, require_name
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError, RegistryError, UsageError
from agentalign.evaluation.compare import Comparison, compare
from agentalign.evaluation.evaluate import Evaluation, summarise, summary_of
from agentalign.evaluation.report import ReportPaths, write_report
from agentalign.records.base import digest
from agentalign.rollouts.bundle import adapter_policy, base_policy
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.scoring.score import score_trajectories
from agentalign.scoring.stored import answered_anew
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import prepare_base

logger = logging.getLogger("agentalign")
BASE = "base"
"""Instead of an adapter's name: the bare base model."""


class EvalPlan(NamedTuple):
    """How runs are made; equal plans can be compared."""

    split: str = "test"
    samples: int = 1
    """Runs per task; more than one gives pass^k."""
    limit: int | None = None
    """Tasks, drawn by chance but always the same ones; None for all."""
    temperature: float = 0.0
    seed: int = 0
    base: str = "smollm2-135m"
    """Which base model "base" is."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """How that base is rounded."""

    def settings(self, adapter: str) -> dict[str, str | int | float]:
        """As the evaluation records them."""
        base = {"base": self.base, "quantization": self.quantization} if adapter == BASE else {}
        return {"samples": self.samples, "tasks": self.limit or "all", "temperature": self.temperature, "seed": self.seed, **base}


class Evaluated(NamedTuple):
    """What an evaluation found and wrote."""

    evaluation: Evaluation
    against: Evaluation | None
    comparison: Comparison | None
    report: ReportPaths


def evaluate(
    project: Project,
    store: Store,
    ref: str,
    *,
    against: str | None = None,
    taskset: str | None = None,
    plan: EvalPlan = EvalPlan(),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluated:
    """Evaluate an adapter, and the one to compare it with unless that was evaluated in the same way before, by the taskset as it is now,
    on the kind of processor that is at hand.

    Args:
        ref: an adapter, or "base".
        against: another adapter, or "base".
        taskset: default: the adapter's own.
    """
    if plan.samples > 1 and plan.temperature == 0:
        raise UsageError(f"{plan.samples} samples at temperature 0 would all be the same run. Give a temperature, such as 0.8.")
    names = [_named(project, name) for name in (ref, against) if name is not None]
    tasks = load_taskset(taskset or find_taskset(_taskset_of(project, names), project.tasks), project.tasks)
    evaluation = _evaluate_one(project, store, names[0], tasks, plan, progress)
    before = None
    if len(names) == 2:
        before = stored_evaluation(project, names[1], tasks.name, plan.split, plan=plan)
        if before is not None and not still_holds(project, before, tasks):
            logger.info("%s was evaluated before taskset %s or its own files were changed; evaluated again", names[1], tasks.name)
            before = None
        elif before is not None and before.computed_on not in ("", evaluation.computed_on):
            logger.info("%s was evaluated on another processor, %s; evaluated again", names[1], before.computed_on)
            before = None
        if before is None:
            before = _evaluate_one(project, store, names[1], tasks, plan, progress)
            write_report(_folder(project, names[1], tasks.name, plan), before)
            _keep(project, before)
    report = write_report(_folder(project, names[0], tasks.name, plan), evaluation, before)
    _keep(project, evaluation)
    return Evaluated(evaluation, before, compare(before, evaluation) if before else None, report)


def stored_evaluation(project: Project, adapter: str, taskset: str, split: str, *, plan: EvalPlan | None = None) -> Evaluation | None:
    """The evaluation of "name@version" (or "base") on a split by this plan, or by the largest where none is given."""
    found = stored_evaluations(project, adapter, taskset, split)
    alike = found if plan is None else [one for one in found if one.settings == plan.settings(adapter)]
    return alike[0] if alike else None


def stored_evaluations(project: Project, adapter: str, taskset: str, split: str) -> list[Evaluation]:
    """The newest evaluation by each plan: over all tasks first, then over the most; of equals the newest first.

    What was measured on other files that had this adapter's number is left out.
    """
    home = _home(project, adapter, taskset, split)
    # An evaluation from before plans had folders lies in `home` itself.
    reports = [path for path in (home / "report.json", *home.glob("*/report.json")) if path.is_file()]
    measured = [_read(path, adapter) for path in reports]
    # A base's evaluations are of several bases, each by its own plan: `still_holds` compares those.
    content = content_of(project, adapter) if adapter != BASE and any(one.content for one in measured) else ""
    known = (one for one in measured if adapter == BASE or one.content in ("", content))
    by_age = sorted(known, key=lambda one: one.created)
    newest = {frozenset(one.settings.items()): one for one in by_age}
    return sorted(newest.values(), key=lambda one: (one.settings.get("tasks") == "all", len(one.tasks), one.created), reverse=True)


def content_of(project: Project, adapter: str, base: str = EvalPlan().base) -> str:
    """What evaluations of "name@version" keep: its content hash; for "base" the digest of the files of the base of that name."""
    return prepare_base(base, project.cache).digest if adapter == BASE else Registry(project.adapters).content(adapter)


def still_holds(project: Project, evaluation: Evaluation, taskset: Taskset) -> bool:
    """True where acting it all out again would ask the same: evaluations that do not say so are not trusted."""
    base = str(evaluation.settings.get("base", EvalPlan().base))
    asked = evaluation.taskset_digest, evaluation.content
    return asked == (taskset.digest(evaluation.split), content_of(project, evaluation.adapter, base))


def _keep(project: Project, evaluation: Evaluation) -> None:
    """Its figures beside the version too: they go where the adapter goes, the report stays in this project."""
    if evaluation.adapter == BASE:
        return
    registry = Registry(project.adapters)
    try:
        registry.keep(evaluation.adapter, summary_of(evaluation))
    except RegistryError as error:  # the report is written: a registry that cannot be written to loses no evaluation
        logger.warning("no summary of the evaluation is kept beside %s: %s", evaluation.adapter, error)


def _read(path: Path, adapter: str) -> Evaluation:
    try:
        return Evaluation.model_validate(json.loads(path.read_text(encoding="utf-8"))["evaluation"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        raise DataError(f"{path}: not a report that can be read. Delete it and evaluate again: `agentalign eval {adapter}`.") from None


def _evaluate_one(
    project: Project, store: Store, adapter: str, taskset: Taskset, plan: EvalPlan, progress: Callable[[int, int], None] | None
) -> Evaluation:
    jobs = choose_jobs(taskset, plan.split, limit=plan.limit, samples=plan.samples)
    # Before it takes an hour: an edit meanwhile must not be taken for what was measured.
    asked, content = taskset.digest(plan.split), content_of(project, adapter, plan.base)
    if adapter == BASE:
        policy = base_policy(project, plan.base, plan.quantization, temperature=plan.temperature, seed=plan.seed)
    else:
        policy = adapter_policy(project, adapter, temperature=plan.temperature, seed=plan.seed)
    with WorkerPool(taskset) as pool:
        made = collect(store, taskset, policy, jobs, pool=pool, seed=plan.seed, progress=progress)
        tasks = {task.id: task for task in taskset.tasks()}
        scores = score_trajectories(taskset, made.runs, tasks, pool=pool)
    store.add_scores(answered_anew(store, scores))
    return summarise(
        adapter, plan.split, taskset.criteria, made.runs, scores, tasks, sampled_tokens=made.sampled_tokens,
        settings=plan.settings(adapter), taskset_digest=asked, content=content, computed_on=policy.computed_on,
    )  # fmt: skip


def _named(project: Project, ref: str) -> str:
    return BASE if ref == BASE else Registry(project.adapters).resolve(ref)[0].ref


def _taskset_of(project: Project, names: list[str]) -> str:
    for name in names:
        if name != BASE:
            return Registry(project.adapters).resolve(name)[0].taskset
    raise UsageError("the bare base belongs to no taskset. Name one with --taskset.")


def _home(project: Project, adapter: str, taskset: str, split: str) -> Path:
    return project.state / "evaluations" / require_name(taskset) / f"{adapter}-{split}"


def _folder(project: Project, adapter: str, taskset: str, plan: EvalPlan) -> Path:
    settings: dict[str, JsonValue] = {**plan.settings(adapter)}
    return _home(project, adapter, taskset, plan.split) / f"{settings['tasks']}-{digest(settings)[:8]}"
