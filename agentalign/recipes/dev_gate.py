"""The dev gate: during a training, the policy acts on tasks it never trains on, and the checks say how well.

Training metrics cannot replace it: pair accuracy rose to 0.9 while a policy lost half of its skill. It acts greedily, from a merged
bf16 copy where there is room for one, on the same tasks each time. Whoever makes the gate may keep the runs, so that people can read what
the figures are about.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from agentalign.config.training import Gated
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import DataError
from agentalign.evaluation.evaluate import Evaluation, Group, TaskResult, summarise
from agentalign.recipes.acted import ActedBefore
from agentalign.recipes.workspace import Workspace
from agentalign.records.criterion import SUCCESS, Score, ScoreStatus, checks_decide
from agentalign.rollouts.collect import spread
from agentalign.rollouts.policy import LocalPolicy
from agentalign.rollouts.rollout import Job, RolloutResult, rollout
from agentalign.scoring.score import score_trajectories
from agentalign.training import ranks
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.model import Model
from agentalign.training.step import Evaluated

logger = logging.getLogger("agentalign")
Keep = Callable[[Sequence[RolloutResult], Sequence[Score]], None]
"""Takes an evaluation's runs and their scores."""
ENOUGH = 40
"""Dev tasks from which on a gate is there without being asked for: by fewer, a fall of a tenth cannot be told from chance."""
FELL = 0.75
"""A criterion below this share of its first value is said: a policy may stop asking, or keep less to the policy, and succeed as often."""


class DevGate:
    """Callable for `engine.train`: score on dev."""

    def __init__(
        self,
        model: Model,
        adapter: str,
        taskset: Taskset,
        pool: Pool,
        *,
        n_tasks: int,
        name: str = "",
        keep: Keep | None = None,
        before: ActedBefore | None = None,
    ) -> None:
        """Raises DataError as `require_gateable` does.

        Args:
            name: of the training; its dev runs after step 20 are made by "name/dev-20".
            keep: takes the runs of every evaluation.
            before: where runs that these weights made of these tasks already are found, and noted; with `keep` alone.
        """
        self.model, self.adapter, self.taskset, self.pool, self.name, self.keep = model, adapter, taskset, pool, name, keep
        self.before = before
        require_gateable(taskset)
        self.tasks = spread(taskset.tasks("dev"), n_tasks)

    def __call__(self, step: int, first: Mapping[str, float]) -> Evaluated:
        """The score after this many steps, by the first process for all."""
        return ranks.first(lambda: self._evaluated(step, first))

    def _evaluated(self, step: int, first: Mapping[str, float]) -> Evaluated:
        """The team's overall value is what counts; what families and criteria lost since the first evaluation counts against it.

        Without that a gain in one family pays for the collapse of another, or for never asking again. A family, a side of a judgement or
        a criterion may lose one task (or a quarter of fewer than four): a dev split has a handful of each, and one that flips is no
        collapse (a policy whose overall value, rules kept and questions asked all rose was rolled back for four such single tasks). Of
        the criteria the worst loss alone: each has its noise. Ties are broken by success, which alone counts where no overall value is
        known. A run that could not be scored, because a check broke, is worth nothing: left out, it would be worth what the others are.
        """
        began = time.monotonic()
        maker = f"{self.name or self.adapter}/dev-{step}"
        evaluation, broken = self._acted_out(maker)
        found = evaluation.everything
        overall = found.overall.mean if found.overall else 0.0
        families, sides = _rates("family", evaluation.families), _rates("branch", evaluation.branches)
        criteria = {f"criterion/{name}": (rate.n, rate.mean) for name, rate in found.criteria.items()}
        logger.info("dev after step %d: success %.3f, overall %.3f (%.0f s)", step, found.success.mean, overall, time.monotonic() - began)
        held = _held(families, sides)
        _say_fallen(step, {name: mean for name, (_, mean) in (criteria | held).items()}, first)
        lost = sum(_losses(held, first)) / found.n
        others = {name: value for name, value in criteria.items() if name != f"criterion/{SUCCESS}"}
        worst = max(_losses(others, first), default=0.0) / found.n
        worth = [_worth(task) for task in evaluation.tasks if task.task not in broken]
        made = len(evaluation.tasks) + evaluation.unscored
        if len(worth) < made:
            text = "dev after step %d: %d runs could not be scored whole and count as worth nothing here; look at them. %s"
            logger.warning(text, step, made - len(worth), " ".join(evaluation.trouble))
        elif evaluation.trouble:
            logger.warning("dev after step %d: %s", step, " ".join(evaluation.trouble))
        value = sum(worth) / made
        figures = {"lost in families": lost, "lost in a criterion": worst, "success": found.success.mean, "overall": overall}
        figures["tokens"] = evaluation.cost.sampled_tokens or 0.0
        means = {name: mean for name, (_, mean) in (families | sides | criteria).items()}
        return Evaluated(value - lost - worst + 0.01 * found.success.mean, figures | means)

    def _acted_out(self, maker: str) -> tuple[Evaluation, frozenset[str]]:
        about = self.model, self.adapter, self.taskset, self.tasks
        results = self.before.find(*about, maker) if self.before else []
        if results:
            return checked(results, self.taskset, self.tasks, self.pool, maker=maker, keep=self.keep)
        results = act_out(*about, self.pool, maker=maker)
        made = checked(results, self.taskset, self.tasks, self.pool, maker=maker, keep=self.keep)
        if self.before:
            self.before.note(*about, [result.trajectory.id for result in results])
        return made


def require_gateable(taskset: Taskset) -> None:
    """DataError where the taskset cannot be acted out, has no dev tasks, or no check says what a run is worth."""
    if not taskset.has_environment or not taskset.tasks("dev"):
        raise DataError(f"{_nothing_to_act(taskset)}; set eval_every_steps: 0, and watch the adapter yourself.")
    if not checks_decide(taskset.criteria):
        raise DataError(
            f"{_checks_say_nothing(taskset)}. Set eval_every_steps: 0 and watch the adapter yourself, or let a check answer it."
        )


def _nothing_to_act(taskset: Taskset) -> str:
    return f"taskset '{taskset.name}' has no dev tasks that can be acted out"


def _checks_say_nothing(taskset: Taskset) -> str:
    return (
        f"the checks of taskset '{taskset.name}' alone do not say what a dev run is worth: none has a weight (gates only forbid), "
        f"or {SUCCESS} is for people to tell"
    )


def require_gate(config: Gated, taskset: Taskset) -> None:
    """DataError where a config asks for a gate that the taskset cannot have: before anything is loaded, and in dry runs too."""
    if config.eval_every_steps:
        require_gateable(taskset)


def dev_gate(model: Model, adapter: str, work: Workspace, pool: Pool, config: Gated, training: str) -> DevGate | None:
    """The gate of a config, its runs kept in the store; None where it asks for none, or leaves it open and the taskset cannot tell."""
    if config.eval_every_steps == 0:
        return None
    if config.eval_every_steps is None and (why := _too_little(work.taskset)):
        logger.warning("no dev gate watches this training: %s. Look at the adapter yourself before you promote it", why)
        return None
    before = ActedBefore(work.store, work.project.cache / "dev_runs", work.world) if work.world else None
    return DevGate(model, adapter, work.taskset, pool, n_tasks=config.eval_tasks, name=training, keep=work.keep, before=before)


def _too_little(taskset: Taskset) -> str:
    """Why a taskset has no gate unless it is asked for; empty where it has one."""
    dev = len(taskset.tasks("dev"))
    if not taskset.has_environment or not dev:
        return _nothing_to_act(taskset)
    if not checks_decide(taskset.criteria):
        return _checks_say_nothing(taskset)
    return f"taskset '{taskset.name}' has {dev} dev tasks, and by fewer than {ENOUGH} little can be told" if dev < ENOUGH else ""


def _worth(task: TaskResult) -> float:
    return task.success if task.overall is None else task.overall


def _say_fallen(step: int, now: Mapping[str, float], first: Mapping[str, float]) -> None:
    for name in first:
        if name.startswith("criterion/") and name not in now:
            logger.warning("dev after step %d: %s applies to no run any more, which costs nothing here; look at these runs", step, name)
    for name, value in now.items():
        if value < FELL * first.get(name, 0.0):
            text = "dev after step %d: %s fell from %.2f to %.2f, which success need not show; look at these runs before you promote"
            logger.warning(text, step, name, first[name], value)


def _rates(what: str, groups: Sequence[Group]) -> dict[str, tuple[int, float]]:
    return {f"{what}/{group.name}": (group.n, group.success.mean) for group in groups}


def _held(families: Mapping[str, tuple[int, float]], sides: Mapping[str, tuple[int, float]]) -> dict[str, tuple[int, float]]:
    """What must not fall: families, and in place of a judgement its sides: one may fall as the other rises, and the family show nothing."""
    judgements = {f"family/{name.removeprefix('branch/').rpartition('/')[0]}" for name in sides}
    return {name: rate for name, rate in families.items() if name not in judgements} | dict(sides)


def _losses(now: Mapping[str, tuple[int, float]], first: Mapping[str, float]) -> list[float]:
    """Tasks that each name lost since the first evaluation, beyond one, or a quarter of its few; names to (tasks, mean)."""
    return [max(0.0, n * (first.get(name, 0.0) - mean) - min(1.0, n / 4)) for name, (n, mean) in now.items()]


def act_out(model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task], pool: Pool, *, maker: str) -> list[RolloutResult]:
    """Greedy runs of these tasks by an adapter in memory; `maker` is what they say made them."""
    policy = LocalPolicy(adapter_generator(model, adapter), model.dialect, name=maker, temperature=0.0, seed=0)
    return list(rollout(taskset, policy, [Job(task, 0) for task in tasks], seed=0, pool=pool))


def checked(
    results: Sequence[RolloutResult], taskset: Taskset, tasks: Sequence[Task], pool: Pool, *, maker: str, keep: Keep | None = None
) -> tuple[Evaluation, frozenset[str]]:
    """What the checks say of runs, and the tasks of whose runs a check broke; `keep` takes the runs and their scores."""
    runs = [result.trajectory for result in results]
    scores = score_trajectories(taskset, runs, pool=pool)
    if keep is not None:
        keep(results, scores)
    written = {tokens.trajectory: sum(len(turn.completion) for turn in tokens.turns) for _, tokens in results if tokens}
    named = {task.id: task for task in tasks}
    faulty = {score.trajectory for score in scores if score.status == ScoreStatus.ERROR}
    broken = frozenset(run.task_id or "" for run in runs if run.id in faulty)
    return summarise(maker, tasks[0].split, taskset.criteria, runs, scores, named, sampled_tokens=written), broken
