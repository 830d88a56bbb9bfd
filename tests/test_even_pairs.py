"""DPO compares, and holds on to, both sides of every judgement."""

from collections import Counter

import pytest

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.recipes.data import Part, Turn
from agentalign.recipes.dpo import Pair
from agentalign.recipes.even_pairs import even_anchors, even_pairs
from tests.test_pairs import run


def judged(*sides, held=True):
    """Pairs of refund tasks, one per side named, with their runs and tasks; sides "open" and "closed" are known."""
    tasks = {
        f"t-{side}-{i}": Task(id=f"t-{side}-{i}", split="train", family="refund", data={"branch": side})
        for side in ("open", "closed")
        for i in range(len(sides))
    }
    runs, pairs = {}, []
    for number, side in enumerate(sides):
        task = f"t-{side}-{sides[:number].count(side)}"
        found = [run(f"{word} {number}", task=task, sample=i, family="refund") for i, word in enumerate(("better", "worse"))]
        runs |= {one.id: one for one in found}
        part = Part((Turn((number,), (1,)),))
        pairs.append(Pair(part, part, 1.0, (found[0].id, found[1].id), found[0].id if held else None, "scores"))
    return pairs, runs, tasks


def test_pairs_of_one_side_of_a_judgement_are_not_trained_on_wherever_they_came_from(caplog):
    pairs, runs, tasks = judged("open", "closed", "open", "closed", "closed")
    kept = even_pairs(pairs, runs, tasks, 0)
    assert Counter(tasks[runs[one.trajectories[0]].task_id].branch for one in kept) == {"open": 2, "closed": 2}
    assert [one for one in pairs if one in kept] == kept
    pairs, runs, tasks = judged("open", "open")
    with pytest.raises(DataError, match="all 2 pairs left are of judgements of which another side has none"):
        even_pairs(pairs, runs, tasks, 0)
    assert "2 pairs of refund/open are left out" in caplog.text
    assert even_pairs(pairs, runs, {}, 0) == pairs, "imported runs have no task that could say its side"


def test_what_is_held_on_to_is_even_and_what_is_compared_stays():
    pairs, runs, tasks = judged("open", "closed", "open", "open", "closed", "open")
    evened = even_anchors(pairs, runs, tasks, 0)
    assert [(one.trajectories, one.strength) for one in evened] == [(one.trajectories, one.strength) for one in pairs]
    sides = Counter(tasks[runs[one.anchor].task_id].branch for one in evened if one.anchor)
    assert sides == {"open": 2, "closed": 2}
    assert even_anchors(pairs, runs, tasks, 0) == evened
    chosen = {seed: tuple(one.anchor for one in even_anchors(pairs, runs, tasks, seed)) for seed in range(8)}
    assert len(set(chosen.values())) > 1, "which ones is drawn by the seed"


def test_one_side_alone_is_not_held_on_to_and_what_has_no_sides_is(caplog):
    pairs, runs, tasks = judged("open", "open")
    assert [one.anchor for one in even_anchors(pairs, runs, tasks, 0)] == [None, None]
    assert "another side of refund has no better run that is good" in caplog.text
    assert even_anchors(pairs, runs, {}, 0) == pairs
    loose, runs, tasks = judged("open", "closed", held=False)
    assert even_anchors(loose, runs, tasks, 0) == loose
