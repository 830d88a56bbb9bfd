"""Which tasks PPO acts out: open ones, the sides of a judgement together, and each twice."""

from collections import Counter

import pytest

from agentalign.environments.task import Task
from agentalign.recipes.agenda import agenda, draw_weights
from agentalign.recipes.standing import Past

NO_SIDES = [("lookup", "")]


def task(number, family, branch=""):
    return Task(id=f"t{number}", split="train", family=family, data={"branch": branch} if branch else {})


def test_a_side_that_always_goes_well_is_drawn_as_often_as_the_one_that_does_not():
    tasks = [task(0, "unnamed", "one"), task(1, "unnamed", "several"), task(2, "lookup"), task(3, "never seen")]
    past = {"unnamed/one": Past(0.5, 0.28), "unnamed/several": Past(1.0, 0.03), "lookup/": Past(1.0, 0.03)}
    one, several, lookup, unknown = draw_weights(tasks, past)
    assert one == several
    assert lookup < one < unknown


def test_the_second_half_of_the_iterations_acts_the_same_tasks_out_again():
    def of(iterations, seed):
        return agenda([1.0] * 40, NO_SIDES * 40, iterations=iterations, per_iteration=4, seed=seed)

    found = of(6, 0)
    assert found[:3] == found[3:]
    assert len({index for tasks in found[:3] for index in tasks}) == 12
    assert found == of(6, 0)
    assert found != of(6, 1)
    assert [len(tasks) for tasks in of(5, 0)] == [4] * 5


def test_open_tasks_come_more_often_and_few_tasks_are_gone_round():
    draws = [agenda([0.3, 0.03] * 20, NO_SIDES * 40, iterations=1, per_iteration=8, seed=seed)[0] for seed in range(50)]
    counts = Counter(index % 2 for drawn in draws for index in drawn)
    assert counts[0] > 3 * counts[1]
    assert [sorted(tasks) for tasks in agenda([1.0] * 3, NO_SIDES * 3, iterations=4, per_iteration=8, seed=0)] == [[0, 1, 2]] * 4
    assert {index for tasks in agenda([1.0] * 7, NO_SIDES * 7, iterations=6, per_iteration=5, seed=0) for index in tasks} == set(range(7))


@pytest.mark.parametrize("seed", range(8))
def test_every_iteration_has_as_many_tasks_of_one_side_of_a_judgement_as_of_the_other(seed):
    sides = [("refund", "open"), ("refund", "closed"), ("unnamed", "one"), ("unnamed", "several"), ("lookup", "")] * 12
    found = agenda([0.25] * 60, sides, iterations=8, per_iteration=12, seed=seed)
    for tasks in found:
        counts = Counter(sides[index] for index in tasks)
        assert counts["refund", "open"] == counts["refund", "closed"]
        assert counts["unnamed", "one"] == counts["unnamed", "several"]
    refunds = [sum(sides[index][0] == "refund" for index in tasks) for tasks in found]
    assert max(refunds) - min(refunds) <= 2, "and a family is spread over the iterations"


@pytest.mark.parametrize("seed", range(8))
def test_fewer_tasks_than_places_are_gone_round_by_whole_judgements(seed):
    sides = [("refund", "open"), ("refund", "closed"), ("lookup", "")] * 10
    found = agenda([0.25] * 30, sides, iterations=8, per_iteration=16, seed=seed)
    for tasks in found:
        counts = Counter(sides[index] for index in tasks)
        assert len(set(tasks)) == len(tasks) == 16
        assert counts["refund", "open"] == counts["refund", "closed"] > 0
        assert counts["lookup", ""] > 0
    times = Counter(index for tasks in found[:4] for index in tasks)
    assert set(times) == set(range(30))
    assert max(times.values()) - min(times.values()) <= 1, "64 places for 30 tasks: each two or three times"


def test_a_judgement_that_is_torn_for_lack_of_places_shows_its_sides_in_turn():
    found = agenda([0.25] * 2, [("refund", "open"), ("refund", "closed")], iterations=8, per_iteration=1, seed=0)
    assert found[:4] in (((0,), (1,), (0,), (1,)), ((1,), (0,), (1,), (0,)))


def test_a_side_of_which_there_is_more_is_drawn_alone_only_when_nothing_else_is_left():
    sides = [("unnamed", "one")] * 20 + [("unnamed", "several")] * 4 + [("lookup", "")] * 40
    drawn = [agenda([0.25] * 64, sides, iterations=2, per_iteration=16, seed=seed)[0] for seed in range(40)]
    counts = Counter(sides[index] for tasks in drawn for index in tasks)
    assert counts["unnamed", "several"] > 0.5 * counts["unnamed", "one"], "of 20 and 4 tasks"
    everything = agenda([0.25] * 64, sides, iterations=2, per_iteration=64, seed=0)[0]
    assert sorted(everything) == list(range(64))


def test_an_odd_number_of_places_is_filled_to_the_last():
    sides = [("refund", "open"), ("refund", "closed")] * 10
    found = agenda([0.25] * 20, sides, iterations=6, per_iteration=5, seed=0)
    assert len({index for tasks in found[:3] for index in tasks}) == 15
    assert [len(tasks) for tasks in agenda([0.25] * 20, sides, iterations=1, per_iteration=1, seed=0)] == [1]
