"""Is one adapter better than another? Two evaluations, or two per training seed, paired by task.

A total hides "cancel +8, refund -13", so every family has its own difference, and families unseen in training stand apart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from agentalign.errors import DataError
from agentalign.evaluation.evaluate import Evaluation, TaskResult
from agentalign.evaluation.statistics import Difference, mcnemar, paired_bootstrap, won_lost
from agentalign.records.base import Record


class GroupComparison(Record):
    """Two evaluations on the same tasks of one group."""

    name: str
    before: float
    after: float
    success: Difference
    won: int
    """Tasks that got better (by the mean over seeds)."""
    lost: int
    p: float
    """Exact McNemar (sign) test over the tasks that changed."""


class Comparison(Record):
    """Whether `after` is better than `before`, paired by task."""

    before: str
    after: str
    taskset: str
    split: str
    seen: GroupComparison | None
    unseen: GroupComparison | None
    everything: GroupComparison
    families: tuple[GroupComparison, ...]
    overall: Difference | None = None
    """Over the headline tasks that have one on both sides."""
    criteria: dict[str, Difference] = {}
    """Over the headline tasks; only criteria of equal version on both sides."""
    unpaired: int
    """Tasks that only one side has; in no figure."""
    notes: tuple[str, ...] = ()
    """Sentences on what else differs between the sides than the adapter."""

    @property
    def headline(self) -> GroupComparison:
        """The seen families where there are any, else everything."""
        return self.seen or self.everything


class _Sides(NamedTuple):
    before: list[dict[str, TaskResult]]
    """Per training seed the results of the tasks that every side has."""
    after: list[dict[str, TaskResult]]
    seed: int


def compare(before: Evaluation, after: Evaluation, *, seed: int = 0) -> Comparison:
    """Paired by task: differences with bootstrap intervals, tasks won and lost."""
    return compare_seeds([before], [after], seed=seed)


def compare_seeds(before: Sequence[Evaluation], after: Sequence[Evaluation], *, seed: int = 0) -> Comparison:
    """The same over several trainings that differ in their seed: before and after in the same order of seeds."""
    evaluations = [*before, *after]
    shared, unpaired = _shared_tasks(evaluations)
    tables = [{result.task: result for result in one.tasks if result.task in shared} for one in evaluations]
    sides = _Sides(tables[: len(before)], tables[len(before) :], seed)
    everything = _group(sides, "all tasks", lambda result: True)
    if everything is None:
        raise DataError("The two sides share no task, so nothing can be paired. Evaluate both on the same split of the same taskset.")
    seen = _group(sides, "seen families", lambda result: not result.unseen)
    names = sorted({result.family for result in tables[0].values() if result.family})
    families = [_group(sides, name, lambda result, name=name: result.family == name) for name in names]  # type: ignore[misc]
    in_headline = _keep(sides, lambda result: seen is None or not result.unseen)
    same_version = set.intersection(*(set(one.criteria) for one in evaluations))
    criteria = [key.split("@")[0] for key in evaluations[0].criteria if key in same_version]
    differences = {name: _difference(in_headline, lambda result, name=name: result.criteria.get(name)) for name in criteria}  # type: ignore[misc]
    return Comparison(
        before=", ".join(dict.fromkeys(one.adapter for one in before)),
        after=", ".join(dict.fromkeys(one.adapter for one in after)),
        taskset=evaluations[0].taskset,
        split=evaluations[0].split,
        seen=seen,
        unseen=_group(sides, "unseen families", lambda result: result.unseen),
        everything=everything,
        families=tuple(family for family in families if family is not None),
        overall=_difference(in_headline, lambda result: result.overall),
        criteria={name: difference for name, difference in differences.items() if difference is not None},
        unpaired=unpaired,
        notes=_other_processor(before, after),
    )


def _other_processor(before: Sequence[Evaluation], after: Sequence[Evaluation]) -> tuple[str, ...]:
    """Where two tokens are close, rounding decides: one adapter's evaluations on a CPU and a GPU were 1.7 points apart (RESULTS.md)."""
    kinds = [sorted({one.computed_on for one in side} - {""}) for side in (before, after)]
    if not all(kinds) or kinds[0] == kinds[1]:
        return ()
    here, there = (" and ".join(kind) for kind in kinds)
    return (
        f"The runs before were computed on {here} and those after on {there}: the same weights can differ there by a point or two. "
        "Evaluate both on one of them.",
    )


def _shared_tasks(evaluations: Sequence[Evaluation]) -> tuple[set[str], int]:
    """Tasks that all have, and how many only some have."""
    if not evaluations or len({(one.taskset, one.split) for one in evaluations}) > 1:
        what = ", ".join(sorted({f"{one.taskset}/{one.split}" for one in evaluations})) or "nothing"
        raise DataError(f"Evaluations of {what} cannot be compared. Evaluate both sides on the same split of the same taskset.")
    if len({one.success_means for one in evaluations}) > 1:
        raise DataError(
            "Success meant different things in these evaluations. Score and evaluate both sides with the criteria in force now."
        )
    if len({one.taskset_digest for one in evaluations} - {""}) > 1:
        raise DataError(
            f"Taskset {evaluations[0].taskset} was changed between these evaluations (its tasks, prompt, limits, tools or checks), so a "
            "difference would be of that too. Evaluate both sides now."
        )
    tasks = [{result.task for result in one.tasks} for one in evaluations]
    shared = set.intersection(*tasks)
    return shared, len(set.union(*tasks)) - len(shared)


def _keep(sides: _Sides, wanted: Callable[[TaskResult], bool]) -> _Sides:
    def kept(tables: list[dict[str, TaskResult]]) -> list[dict[str, TaskResult]]:
        return [{task: result for task, result in table.items() if wanted(result)} for table in tables]

    return _Sides(kept(sides.before), kept(sides.after), sides.seed)


def _group(sides: _Sides, name: str, wanted: Callable[[TaskResult], bool]) -> GroupComparison | None:
    success = _difference(_keep(sides, wanted), lambda result: result.success)
    if success is None:
        return None
    first, second = (_over_seeds(tables) for tables in _keep(sides, wanted)[:2])
    won, lost = won_lost(first, second)
    before, after = (sum(values.values()) / len(values) for values in (first, second))
    return GroupComparison(name=name, before=before, after=after, success=success, won=won, lost=lost, p=mcnemar(won, lost))


def _difference(sides: _Sides, value_of: Callable[[TaskResult], float | None]) -> Difference | None:
    """None where no task has a value on every side."""

    def values(tables: list[dict[str, TaskResult]]) -> list[dict[str, float]]:
        return [{task: value for task, result in table.items() if (value := value_of(result)) is not None} for table in tables]

    before, after = values(sides.before), values(sides.after)
    if not set.intersection(*(set(one) for one in (*before, *after))):
        return None
    return paired_bootstrap(before, after, seed=sides.seed)


def _over_seeds(tables: Sequence[Mapping[str, TaskResult]]) -> dict[str, float]:
    return {task: sum(table[task].success for table in tables) / len(tables) for task in tables[0]}
