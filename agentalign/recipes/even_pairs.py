"""Both sides of every judgement, in what DPO compares and in what it holds on to.

Four pairs that say "act" ended all asking back, and so did even comparisons whose anchors did not: of the better runs that were imitated
beside them, four of five acted.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.pairs import Group, balance, rarest

if TYPE_CHECKING:
    from agentalign.recipes.dpo import Pair

logger = logging.getLogger("agentalign")


def even_pairs(pairs: Sequence["Pair"], runs: Mapping[str, Trajectory], tasks: Mapping[str, Task], seed: int) -> list["Pair"]:
    """As many pairs of every side of each judgement.

    Ten pairs "act, do not ask" against six of the opposite ended all asking back in twenty steps.

    Raises:
        DataError: nothing is left.
    """
    everything, branches = range(len(pairs)), _branches(tasks)
    places = balance(everything, _group_of(pairs, runs, tasks), len(pairs), name_of=str, ratio=1.0, seed=seed, branches=branches)
    if not places:
        raise DataError(
            f"all {len(pairs)} pairs left are of judgements of which another side has none, which would teach to act always alike. "
            "Sample or compare runs of the other sides, or lower min_reference_prob if their pairs were dropped for it."
        )
    logger.info("pairs: %d of %d are learned from: as many of every side of a judgement as of its rarest", len(places), len(pairs))
    return [pairs[index] for index in places]


def even_anchors(pairs: Sequence["Pair"], runs: Mapping[str, Trajectory], tasks: Mapping[str, Task], seed: int) -> list["Pair"]:
    """The same pairs, whose better runs are held on to equally often on every side of a judgement."""
    group_of = _group_of(pairs, runs, tasks)
    held: dict[Group, list[int]] = {group: [] for group in _branches(tasks)}
    for index, pair in enumerate(pairs):
        if pair.anchor is not None:
            held.setdefault(group_of(index), []).append(index)
    fewest = rarest(held)
    if none := sorted({family for (family, branch), places in held.items() if branch and places and not fewest[family]}):
        text = "another side of %s has no better run that is good: nothing but replay holds it in place. Correct or sample that side"
        logger.warning(text, ", ".join(none))
    loose: set[int] = set()
    for (family, branch), places in sorted(held.items()):
        if branch:
            random.Random(f"{seed}/{(family, branch)}").shuffle(places)
            loose.update(places[fewest[family] :])
    if loose:
        logger.info("pairs: the better runs of %d are not held on to, or one side of a judgement would be imitated more often", len(loose))
    return [replace(pair, anchor=None) if index in loose else pair for index, pair in enumerate(pairs)]


def _group_of(pairs: Sequence["Pair"], runs: Mapping[str, Trajectory], tasks: Mapping[str, Task]) -> Callable[[int], Group]:
    def group_of(index: int) -> Group:
        better = runs[pairs[index].trajectories[0]]
        task = tasks.get(better.task_id or "")
        return better.family, task.branch if task else ""

    return group_of


def _branches(tasks: Mapping[str, Task]) -> set[Group]:
    return {(task.family, task.branch) for task in tasks.values() if task.branch and task.split == "train"}
