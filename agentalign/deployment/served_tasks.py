"""Is the agent behind a server as good as the one that was evaluated? A few held-out tasks acted out there, and paired with the evaluation.

Log-probs say that the weights are the same; tasks say that the whole is: prompt, calls, stop tokens, limits. Surprise: few tasks see only
large harm. So the interval is told with the verdict, and what it does not rule out is for the reader to judge.
"""

from collections.abc import Sequence

from agentalign.config.project import Project
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.evaluation.compare import Comparison, compare
from agentalign.evaluation.evaluate import MOST_UNUSABLE, Evaluation, summarise
from agentalign.evaluation.run_eval import stored_evaluations
from agentalign.evaluation.statistics import FEWEST
from agentalign.records.adapter import GateCheck
from agentalign.records.trajectory import StopReason
from agentalign.rollouts.bundle import Bundle
from agentalign.rollouts.collect import spread
from agentalign.rollouts.policy import EndpointPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.scoring.score import score_trajectories

TASKS = "tasks through the server"


def tasks_through_server(project: Project, bundle: Bundle, url: str, model: str, api_key: str, tasks: int) -> GateCheck:
    """Act on so many tasks of the version's own evaluation, always the same ones; the runs are not stored.

    It fails where success, or a criterion, is lower beyond chance than in that evaluation, or where a run broke.
    """
    card = bundle.card
    taskset = load_taskset(find_taskset(card.taskset, project.tasks), project.tasks)
    before = _evaluation(project, card.ref, taskset)
    if before is None:
        said = f"{card.ref} has no evaluation at temperature 0 by the taskset as it is now. Run `agentalign eval {card.ref}` first."
        return GateCheck(name=TASKS, passed=False, measured=False, detail=said)
    known = {task.id: task for task in taskset.tasks(before.split)}
    chosen = spread([known[result.task] for result in before.tasks if result.task in known], tasks)
    policy = EndpointPolicy(url, model, api_key=api_key, temperature=0.0)
    with WorkerPool(taskset) as pool:
        runs = [result.trajectory for result in rollout(taskset, policy, [Job(task) for task in chosen], pool=pool)]
        scores = score_trajectories(taskset, runs, known, pool=pool)
    broken = [run for run in runs if run.stop_reason == StopReason.ERROR]
    if broken or not runs:
        reason = (broken[0].error.strip().splitlines() or ["no reason was kept"])[-1][:200] if broken else "no task is left to act on."
        return GateCheck(name=TASKS, passed=False, detail=f"{len(broken)} of {len(runs)} runs broke off, the first with: {reason}")
    after = summarise(
        policy.name, before.split, taskset.criteria, runs, scores, known, settings=before.settings, taskset_digest=before.taskset_digest
    )
    if after.unusable > MOST_UNUSABLE:
        return GateCheck(name=TASKS, passed=False, detail=" ".join(after.trouble))
    return verdict(before, compare(before, after), len(runs))


def _evaluation(project: Project, ref: str, taskset: Taskset) -> Evaluation | None:
    """The largest one that a server's greedy answers can be held against."""
    for split in ("test", "dev"):
        for found in stored_evaluations(project, ref, taskset.name, split):
            greedy = found.settings.get("temperature") == 0 and found.settings.get("samples") == 1
            if greedy and found.taskset_digest == taskset.digest(split):
                return found
    return None


def verdict(before: Evaluation, found: Comparison, count: int) -> GateCheck:
    """Failed where success, or a criterion, is worse beyond chance; criteria of too few tasks to tell are named."""
    differences = {"success": found.everything.success, **found.criteria}
    worse = [name for name, one in differences.items() if one.verdict == "worse"]
    few = [f"{name} ({one.n})" for name, one in differences.items() if one.n < FEWEST]
    told: Sequence[str] = worse or ["success"]
    figures = ", ".join(f"{name} {one.delta:+.1%} [{one.low:+.1%}, {one.high:+.1%}]" for name in told for one in [differences[name]])
    text = f"{figures} against its evaluation on the same {count} tasks of {before.split}"
    text += f": {'worse' if worse else 'not worse'} beyond chance"
    if few:
        text += f"; below {FEWEST} tasks, so no claim is made of: {', '.join(few)}"
    figures_of = {name: one.delta for name, one in differences.items()} | {"tasks": float(found.everything.success.n)}
    return GateCheck(name=TASKS, passed=not worse, detail=text, figures=figures_of)
