"""The dev gate: during a training, the policy acts on tasks it never trains on, and the checks say how well.

Training metrics cannot replace it: pair accuracy rose to 0.9 while a policy lost half of its skill. It acts greedily, from a merged
bf16 copy, on the same tasks each time; runs are not stored.
"""

import logging
import time
from collections.abc import Mapping

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import DataError
from agentalign.evaluation.evaluate import SUCCESS, Evaluation, summarise
from agentalign.rollouts.collect import spread
from agentalign.rollouts.policy import LocalPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.scoring.score import score_trajectories
from agentalign.training import ranks
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.step import Evaluated

logger = logging.getLogger("agentalign")
FELL = 0.75
"""A criterion below this share of its first value is said: a policy may stop asking, or keep less to the policy, and succeed as often."""


class DevGate:
    """Callable for `engine.train`: score on dev."""

    def __init__(self, model: Model, adapter: str, taskset: Taskset, pool: Pool, *, n_tasks: int) -> None:
        """Raises DataError where the taskset cannot be acted out or has no dev tasks."""
        self.model, self.adapter, self.taskset, self.pool = model, adapter, taskset, pool
        self.tasks = spread(taskset.tasks("dev"), n_tasks)
        if not self.tasks or not taskset.has_environment:
            raise DataError(
                f"taskset '{taskset.name}' has no dev tasks that can be acted out; set eval_every_steps: 0, and watch the adapter yourself."
            )

    def __call__(self, step: int, first: Mapping[str, float]) -> Evaluated:
        """The score after this many steps, by the first process for all."""
        return ranks.first(lambda: self._evaluated(step, first))

    def _evaluated(self, step: int, first: Mapping[str, float]) -> Evaluated:
        """Success is what counts; what families lost since the first evaluation counts against it once more, and so does the worst loss
        among the other criteria.

        Without that a gain in one family pays for the collapse of another, or for never asking again. Not the losses of all criteria
        together: each has its noise. Ties are broken by the mean overall value.
        """
        began = time.monotonic()
        evaluation = act_out(self.model, self.adapter, self.taskset, self.tasks, self.pool)
        found = evaluation.everything
        overall = found.overall.mean if found.overall else 0.0
        families = {f"family/{group.name}": group.success.mean for group in evaluation.families}
        criteria = {f"criterion/{name}": rate.mean for name, rate in found.criteria.items()}
        logger.info("dev after step %d: success %.3f, overall %.3f (%.0f s)", step, found.success.mean, overall, time.monotonic() - began)
        for name, value in criteria.items():
            if value < FELL * first.get(name, 0.0):
                text = "dev after step %d: %s fell from %.2f to %.2f, which success need not show; look at these runs before you promote"
                logger.warning(text, step, name, first[name], value)
        lost = sum(g.n * max(0.0, first.get(f"family/{g.name}", 0.0) - g.success.mean) for g in evaluation.families) / found.n
        fell = [r.n * max(0.0, first.get(f"criterion/{name}", 0.0) - r.mean) for name, r in found.criteria.items() if name != SUCCESS]
        worst = max(fell, default=0.0) / found.n
        return Evaluated(
            found.success.mean - lost - worst + 0.01 * overall,
            {"lost in families": lost, "lost in a criterion": worst, "success": found.success.mean, "overall": overall}
            | families
            | criteria,
        )


def act_out(model: Model, adapter: str | None, taskset: Taskset, tasks: list[Task], pool: Pool) -> Evaluation:
    """Greedy runs of these tasks by an adapter in memory, scored."""
    generator = Generator(model.merged_copy(adapter), model.dialect.stop_ids, model.dialect.pad_id)
    policy = LocalPolicy(generator, model.dialect, name=adapter or "base", temperature=0.0, seed=0)
    results = list(rollout(taskset, policy, [Job(task, 0) for task in tasks], seed=0, pool=pool))
    runs = [result.trajectory for result in results]
    scores = score_trajectories(taskset, runs, pool=pool)
    return summarise(adapter or "base", tasks[0].split, taskset.criteria, runs, scores, {task.id: task for task in tasks})
