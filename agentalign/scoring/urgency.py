"""Which run is worth a person's time most: a number in [0, 1] for each, the order in which a queue hands them out.

The largest of three reasons counts: people disagree about it; the reward model cannot tell it from another run of its task; hardly any
run of its kind (task family and maker) was rated. Surprise: how good a run is plays no part.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from agentalign.records.criterion import NO_ANSWER, Criterion, Score, ScoreStatus
from agentalign.store.filters import RunFilter
from agentalign.store.store import RunRow, Store

FEW = 10
"""A kind with so many rated runs is no longer wanting."""


def urgency(store: Store, ids: Sequence[str], criteria: Mapping[str, Sequence[Criterion]]) -> dict[str, float]:
    """The urgency of stored runs by id; `criteria` by taskset."""
    found = store.runs(RunFilter(ids=tuple(ids)), limit=max(1, len(ids))).rows
    scores: dict[str, list[Score]] = {}
    for score in store.scores(list(ids)):
        scores.setdefault(score.trajectory, []).append(score)
    doubt = uncertainties(found, {id: reward(said) for id, said in scores.items()})
    wanting = coverage(found, {id for id, said in scores.items() if any(s.status not in NO_ANSWER for s in newest(said))})
    apart = {row.id: disagreement(scores.get(row.id, []), criteria.get(row.taskset, ())) for row in found}
    return {row.id: max(apart[row.id], doubt.get(row.id, 0.0), 0.5 * wanting[row.id]) for row in found}


def newest(scores: Sequence[Score]) -> list[Score]:
    """What people say now: each one's last word on each question. `scores` are in the order they were stored."""
    found: dict[tuple[str, int | None, str], Score] = {}
    for score in scores:
        if score.rater_kind == "human":
            found[(score.criterion, score.step, score.rater)] = score
    return list(found.values())


def disagreement(scores: Sequence[Score], criteria: Sequence[Criterion]) -> float:
    """The largest mean distance between two people's newest answers to one question, as a share of its scale; 0 with fewer than two."""
    scales = {criterion.key: criterion for criterion in criteria}
    answers: dict[tuple[str, int | None], list[float]] = {}
    for score in newest(scores):
        if score.status == ScoreStatus.VALUE and score.value is not None and score.criterion in scales:
            answers.setdefault((score.criterion, score.step), []).append(scales[score.criterion].unit_value(score.value))
    distances = [[abs(a - b) for a, b in combinations(values, 2)] for values in answers.values() if len(values) > 1]
    return max((sum(found) / len(found) for found in distances), default=0.0)


def reward(scores: Sequence[Score]) -> float | None:
    """What the reward model said last about the whole run. `scores` are in the order they were stored."""
    said = [s for s in scores if s.rater_kind == "reward_model" and s.step is None and s.value is not None]
    return said[-1].value if said else None


def uncertainties(rows: Sequence[RunRow], rewards: Mapping[str, float | None]) -> dict[str, float]:
    """How close a run is to its nearest neighbour of the same task, by the reward model: 1 where it calls them even."""
    tasks: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in rows:
        value = rewards.get(row.id)
        if value is not None and row.task_id is not None:
            tasks.setdefault((row.taskset, row.task_id), []).append((value, row.id))
    found: dict[str, float] = {}
    for group in tasks.values():
        group.sort()
        for (low, one), (high, other) in pairwise(group):
            # 1 - |2 sigmoid(d) - 1|: the chance, twice, that the worse one is the better one (Bradley-Terry).
            even = 1.0 - math.tanh((high - low) / 2)
            found[one], found[other] = max(found.get(one, 0.0), even), max(found.get(other, 0.0), even)
    return found


def coverage(rows: Sequence[RunRow], rated: set[str]) -> dict[str, float]:
    """How much ratings of a run's kind are wanted: 1 where there are none, 0 from `FEW` on."""
    kinds = Counter((row.taskset, row.family, row.policy) for row in rows if row.id in rated)
    return {row.id: max(0.0, 1.0 - kinds[(row.taskset, row.family, row.policy)] / FEW) for row in rows}
