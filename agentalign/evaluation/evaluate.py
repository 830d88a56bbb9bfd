"""How good an adapter is on a split: one record made from its runs and their scores.

Headline figures are over the families that training could see; families that exist in the test split only stand beside them, never
inside. Everything is per task (samples of one task are averaged), on each criterion's scale mapped to [0, 1] with 1 the best.
Surprise: a run whose success cannot be known (a check broke) is not a failure; it is left out and counted in `unscored`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.evaluation.statistics import Rate, pass_k, rate
from agentalign.records.adapter import EvaluationSummary
from agentalign.records.base import Record, now
from agentalign.records.criterion import SUCCESS, Criterion, Score, ScoreStatus, overall, unit_values
from agentalign.records.trajectory import StopReason, Trajectory

MOST_UNUSABLE = 0.05
"""Share of runs that broke or could not be scored beyond which an evaluation passes no gate: easy tasks may be all that is left of it."""

_SUCCEEDS_AT = 0.5


class TaskResult(Record):
    """One task: the means over its scored runs. Kept so that evaluations can be paired later."""

    task: str
    family: str = ""
    branch: str = ""
    unseen: bool = False
    runs: int
    """Scored runs."""
    successes: int
    success: float
    """Share of the runs that succeeded."""
    overall: float | None = None
    """None where no run has an overall value."""
    gate_failed: float | None = None
    """Share of the runs that failed a gate; None where no gate was answered."""
    criteria: dict[str, float] = {}
    """Mean value in [0, 1] per criterion; a criterion that applied to no run is left out."""


class Group(Record):
    """Figures over a set of tasks."""

    name: str
    n: int
    """Tasks."""
    success: Rate
    overall: Rate | None = None
    gate_failed: Rate | None = None
    criteria: dict[str, Rate] = {}
    """In the order of criteria.yaml; `n` says to how many tasks it applied."""


class Cost(Record):
    """What the runs took, means per run."""

    turns: float
    calls: float
    """Tool calls."""
    seconds: float | None = None
    """None where no run recorded its time."""
    sampled_tokens: float | None = None
    """None where token counts were not given."""


class Evaluation(Record):
    """An adapter on a split, whole: figures, groups, and the tasks behind them."""

    adapter: str
    """"name@version", or "base"."""
    taskset: str
    split: str
    success_means: str
    """What counted as success, as a sentence."""
    criteria: tuple[str, ...]
    """The criteria versions in force, "name@version"."""
    unscored: int
    """Runs whose success could not be known; in no figure."""
    unusable_runs: int | None = None
    """Runs that broke, or whose success or worth (a veto's check, say) could not be known; None in evaluations from before it was kept."""
    seen: Group | None
    """Families that training could see; None where the split has none."""
    unseen: Group | None
    """Families of this split only; None where there are none."""
    everything: Group
    pass_k: dict[int, float] = {}
    """Over all tasks: chance that k runs of a task all succeed, k up to the fewest runs a task has. Empty for single runs."""
    families: tuple[Group, ...] = ()
    branches: tuple[Group, ...] = ()
    """Named "family/branch", for families whose tasks go two ways."""
    stop_reasons: dict[str, int]
    """Runs per reason they ended, unscored ones included."""
    trouble: tuple[str, ...] = ()
    """Sentences on runs that broke and runs that could not be scored, each with the first reason; empty where all went well."""
    cost: Cost
    tasks: tuple[TaskResult, ...]
    settings: dict[str, str | int | float] = {}
    """How the runs were made (temperature, seed, samples), for the report."""
    taskset_digest: str = ""
    """What the taskset was like (`Taskset.digest`); empty in evaluations from before it was kept."""
    content: str = ""
    """The adapter's content hash, the digest of a bare base's files; empty in evaluations from before it was kept."""
    computed_on: str = ""
    """What the policy was computed on: "cpu in bfloat16"; empty where a server computes, and in evaluations from before it was kept."""
    created: str

    @property
    def headline(self) -> Group:
        """The seen families where there are any, else everything."""
        return self.seen or self.everything

    @property
    def unusable(self) -> float:
        """Share of the runs that broke, or whose success or worth is not known: they say something of environment and checks alone."""
        counted = self.stop_reasons.get(StopReason.ERROR.value, 0) + self.unscored if self.unusable_runs is None else self.unusable_runs
        return counted / max(1, sum(self.stop_reasons.values()))


def summarise(
    adapter: str,
    split: str,
    criteria: Sequence[Criterion],
    runs: Sequence[Trajectory],
    scores: Iterable[Score],
    tasks: Mapping[str, Task],
    *,
    sampled_tokens: Mapping[str, int] | None = None,
    settings: Mapping[str, str | int | float] | None = None,
    taskset_digest: str = "",
    content: str = "",
    computed_on: str = "",
) -> Evaluation:
    """Figures of one adapter on one split.

    Args:
        runs: all of one taskset; runs that broke count too, by what their checks say.
        scores: of these runs; others are ignored.
        tasks: by id; a task that is not here (imported runs) has no branch and is not unseen.
        sampled_tokens: per trajectory id.
    """
    if not runs:
        raise DataError(f"There are no runs of {adapter} on split '{split}' to evaluate. Make some with `agentalign rollout`.")
    by_run = _scores_of(runs, scores)
    results, unscored = _task_results(criteria, runs, by_run, tasks)
    trouble = _trouble(runs, by_run, unscored)
    if not results:
        raise DataError(
            f"None of the {len(runs)} runs of {adapter} on split '{split}' has a known success (no scores, or checks that broke). "
            f"{' '.join([*trouble, ''])}Score them with `agentalign score` and read its errors."
        )
    names = [criterion.name for criterion in criteria]
    seen, unseen = [r for r in results if not r.unseen], [r for r in results if r.unseen]
    return Evaluation(
        adapter=adapter,
        taskset=runs[0].taskset,
        split=split,
        success_means=_success_means(criteria),
        criteria=tuple(criterion.key for criterion in criteria),
        unscored=len(unscored),
        unusable_runs=sum(run.id in unscored or _is_unusable(criteria, run, by_run[run.id]) for run in runs),
        seen=_group("seen families", seen, names) if seen else None,
        unseen=_group("unseen families", unseen, names) if unseen else None,
        everything=_group("all tasks", results, names),
        pass_k=_pass_k(results),
        families=_groups(results, names, lambda result: result.family),
        branches=_groups(results, names, lambda result: f"{result.family}/{result.branch}" if result.branch else ""),
        stop_reasons=dict(sorted(Counter(run.stop_reason.value for run in runs).items())),
        trouble=trouble,
        cost=_cost(runs, sampled_tokens or {}),
        tasks=tuple(results),
        settings=dict(settings or {}),
        taskset_digest=taskset_digest,
        content=content,
        computed_on=computed_on,
        created=now(),
    )


def _scores_of(runs: Sequence[Trajectory], scores: Iterable[Score]) -> dict[str, list[Score]]:
    by_run: dict[str, list[Score]] = {run.id: [] for run in runs}
    for score in scores:
        if score.trajectory in by_run:
            by_run[score.trajectory].append(score)
    return by_run


def summary_of(evaluation: Evaluation) -> EvaluationSummary:
    """Its headline figures, as they are kept beside the version that it is about."""
    head = evaluation.headline
    versions = {key.split("@")[0]: key for key in evaluation.criteria}
    return EvaluationSummary(
        content=evaluation.content, taskset=evaluation.taskset, split=evaluation.split, settings=evaluation.settings, tasks=head.n,
        success=(head.success.mean, head.success.low, head.success.high),
        criteria={versions.get(name, name): rate.mean for name, rate in head.criteria.items()}, time=evaluation.created,
    )  # fmt: skip


def _task_results(
    criteria: Sequence[Criterion],
    runs: Sequence[Trajectory],
    scores: Mapping[str, Sequence[Score]],
    tasks: Mapping[str, Task],
) -> tuple[list[TaskResult], set[str]]:
    """Figures per task, and the ids of the runs whose success is not known."""
    groups: dict[str, list[Trajectory]] = {}
    for run in runs:
        groups.setdefault(run.task_id if run.task_id is not None else run.same_task_key(), []).append(run)
    results: list[TaskResult] = []
    unscored: set[str] = set()
    for key, members in sorted(groups.items()):
        values = [(unit_values(criteria, scores[run.id]), overall(criteria, scores[run.id])) for run in members]
        said = [(units, whole, _succeeded(criteria, units, whole)) for units, whole in values]
        known = [(units, whole, success) for units, whole, success in said if success is not None]
        unscored |= {run.id for run, (_, _, success) in zip(members, said, strict=True) if success is None}
        if not known:
            continue
        task = tasks.get(key)
        successes = sum(success for _, _, success in known)
        results.append(
            TaskResult(
                task=key,
                family=members[0].family,
                branch=task.branch if task else "",
                unseen=task.unseen if task else False,
                runs=len(known),
                successes=successes,
                success=successes / len(known),
                overall=_mean([whole for _, whole, _ in known]),
                gate_failed=_mean([_gate_failed(criteria, units) for units, _, _ in known]),
                criteria={c.name: value for c in criteria if (value := _mean([units.get(c.name) for units, _, _ in known])) is not None},
            )
        )
    return results, unscored


def _is_unusable(criteria: Sequence[Criterion], run: Trajectory, scores: Sequence[Score]) -> bool:
    """The run broke, or a check did and what is left does not say what the run is worth: where another gate failed it does."""
    if run.stop_reason == StopReason.ERROR:
        return True
    return any(score.status == ScoreStatus.ERROR for score in scores) and overall(criteria, scores) is None


def _trouble(runs: Sequence[Trajectory], scores: Mapping[str, Sequence[Score]], unscored: set[str]) -> tuple[str, ...]:
    broken = [run for run in runs if run.stop_reason == StopReason.ERROR]
    failed = [score for run in runs for score in scores[run.id] if score.status == ScoreStatus.ERROR]
    why = [score.note for score in failed if score.trajectory in unscored]
    others = [score for score in failed if score.trajectory not in unscored]
    said = []
    if broken:
        said.append(f"{len(broken)} of {len(runs)} runs broke; the first, {broken[0].id[:12]}: {_last_line(broken[0].error)}.")
    if unscored:
        first = _last_line(why[0]) if why else "it has no score"
        said.append(
            f"The success of {len(unscored)} of {len(runs)} runs could not be known, so they are in no figure; the first reason: {first}."
        )
    if others:
        where = " in runs whose success is known" if unscored else ""
        said.append(f"{len(others)} checks broke{where}; the first, {others[0].criterion}: {_last_line(others[0].note)}.")
    return tuple(said)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was kept"])[-1].strip()[:200].rstrip(".")


def _succeeded(criteria: Sequence[Criterion], units: Mapping[str, float], whole: float | None) -> bool | None:
    value = units.get(SUCCESS) if any(criterion.name == SUCCESS for criterion in criteria) else whole
    return None if value is None else value >= _SUCCEEDS_AT


def _success_means(criteria: Sequence[Criterion]) -> str:
    for criterion in criteria:
        if criterion.name == SUCCESS:
            return f"criterion {criterion.key} is at least half fulfilled"
    return f"overall value of at least {_SUCCEEDS_AT:g} (the taskset has no criterion named {SUCCESS})"


def _gate_failed(criteria: Sequence[Criterion], units: Mapping[str, float]) -> float | None:
    answered = [units[c.name] < c.gate_at for c in criteria if c.gate and c.name in units]
    return float(any(answered)) if answered else None


def _group(name: str, results: Sequence[TaskResult], criteria: Sequence[str]) -> Group:
    by_name = {c: [result.criteria[c] for result in results if c in result.criteria] for c in criteria}
    return Group(
        name=name,
        n=len(results),
        success=rate([result.success for result in results]),
        overall=_rate([result.overall for result in results]),
        gate_failed=_rate([result.gate_failed for result in results]),
        criteria={c: rate(values) for c, values in by_name.items() if values},
    )


def _groups(results: Sequence[TaskResult], criteria: Sequence[str], name_of: Callable[[TaskResult], str]) -> tuple[Group, ...]:
    members: dict[str, list[TaskResult]] = {}
    for result in results:
        if name := name_of(result):
            members.setdefault(name, []).append(result)
    return tuple(_group(name, members[name], criteria) for name in sorted(members))


def _pass_k(results: Sequence[TaskResult]) -> dict[int, float]:
    fewest = min(result.runs for result in results)
    counts = [(result.successes, result.runs) for result in results]
    return {k: pass_k(counts, k) for k in range(1, fewest + 1)} if fewest > 1 else {}


def _cost(runs: Sequence[Trajectory], sampled_tokens: Mapping[str, int]) -> Cost:
    return Cost(
        turns=sum(len(run.steps) for run in runs) / len(runs),
        calls=sum(len(message.tool_calls) for run in runs for message in run.messages) / len(runs),
        seconds=_mean([run.seconds for run in runs]),
        sampled_tokens=_mean([float(sampled_tokens[run.id]) for run in runs if run.id in sampled_tokens]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rate(values: Sequence[float | None]) -> Rate | None:
    known = [value for value in values if value is not None]
    return rate(known) if known else None
