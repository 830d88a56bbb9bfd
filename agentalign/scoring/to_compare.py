"""Which runs can be compared: two of one task that are not word for word the same; and which pairs of them are worth a queue's places.

Of a task's pairs those by two different makers come first, and no run is shown again before every run was shown. Surprise: an imported
run that names no task is told apart by how it begins, so each of those has to be read whole; only the newest are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from random import Random

from agentalign.errors import DataError
from agentalign.records.criterion import Criterion
from agentalign.records.preference import pair_id
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.urgency import urgency
from agentalign.store.filters import RunFilter
from agentalign.store.store import RunRow, Store

Pair = tuple[RunRow, RunRow]

NEWEST_UNNAMED = 300
"""Of runs that name no task so many of the newest are looked at."""

PER_TASK = 40
"""So many of a task's newest runs take part: pairs grow with the square."""


def comparable(store: Store, wanted: RunFilter, newest: int) -> list[list[Pair]]:
    """The pairs of each task, among so many of the newest runs that match. Corrected steps are left out: nothing was acted out after."""
    listed = store.runs(wanted, limit=newest).rows
    corrections = RunFilter(ids=tuple(row.id for row in listed if row.origin_kind == "correction"))
    partial = {run.id for run in store.trajectories(corrections) if run.is_corrected_step} if corrections.ids else set()
    rows = [row for row in listed if row.id not in partial and row.origin_kind != "proposal"]
    unnamed = _keys_of_unnamed(store, [row.id for row in rows if row.task_id is None][:NEWEST_UNNAMED])
    tasks: dict[tuple[str, str], list[RunRow]] = {}
    for row in rows:
        task = "task/" + row.task_id if row.task_id is not None else unnamed.get(row.id)
        if task is not None:
            tasks.setdefault((row.taskset, task), []).append(row)
    return [found for group in tasks.values() if (found := _different(group[:PER_TASK]))]


def refuse_incomparable(first: Trajectory, second: Trajectory) -> None:
    """DataError where nobody could say which of two runs that somebody chose is better."""
    if first.taskset != second.taskset or first.same_task_key() != second.same_task_key():
        raise DataError("these two runs are not of one task, so neither can be better at it. Choose two runs of the same task.")
    if first.is_one_step or second.is_one_step:
        raise DataError("one of these is a single step, after which nothing was acted out, and no whole run. Choose two whole runs.")
    if first.content_digest == second.content_digest:
        raise DataError("these two runs are word for word the same, so there is nothing to compare. Choose two that differ.")


def choose(groups: Sequence[Sequence[Pair]], per_task: int, seed: int = 0) -> list[Pair]:
    """Up to `per_task` pairs of each task; which ones among equals, the seed decides."""
    chosen: list[Pair] = []
    for group in groups:
        left = sorted(group, key=lambda pair: (pair[0].id, pair[1].id))
        Random(f"{seed}/{left[0][0].id}").shuffle(left)
        used: Counter[str] = Counter()
        while left and sum(used.values()) < 2 * per_task:
            best = min(left, key=lambda pair: (used[pair[0].id] + used[pair[1].id], pair[0].policy == pair[1].policy))
            left.remove(best)
            used.update((best[0].id, best[1].id))
            chosen.append(best)
    return chosen


def queue_pairs(
    store: Store, wanted: RunFilter, criteria: Mapping[str, Sequence[Criterion]], *, per_task: int, overlap: int, newest: int
) -> tuple[int, int]:
    """Put up to `per_task` pairs of each task into the queue, urgent ones first; returns (how many are new, how many were there).

    Among so many of the newest runs that match. `criteria` is by taskset; DataError where nothing can be compared.
    """
    pairs = [(one.id, two.id) for one, two in choose(comparable(store, wanted, newest), per_task)]
    if not pairs:
        raise DataError("among these no two runs of one task differ, so nothing can be compared. Make more: `agentalign rollout --n 4`.")
    return put_pairs(store, pairs, criteria, overlap=overlap)


def put_pairs(
    store: Store, pairs: Sequence[tuple[str, str]], criteria: Mapping[str, Sequence[Criterion]], *, overlap: int
) -> tuple[int, int]:
    """Put these pairs into the queue, each as urgent as the more urgent of its runs; returns (how many are new, how many were there)."""
    urgent = urgency(store, sorted({id for pair in pairs for id in pair}), criteria)
    return store.pairs.add(pairs, overlap=overlap, priority={pair_id(*pair): max(urgent[id] for id in pair) for pair in pairs})


def _keys_of_unnamed(store: Store, ids: Sequence[str]) -> dict[str, str]:
    return {run.id: run.same_task_key() for run in store.trajectories(RunFilter(ids=tuple(ids)))} if ids else {}


def _different(rows: Sequence[RunRow]) -> list[Pair]:
    return [(a, b) for a, b in combinations(rows, 2) if a.content_digest != b.content_digest]
