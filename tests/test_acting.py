"""Which tasks PPO acts out: open ones, both sides of a judgement alike, and each twice."""

from collections import Counter

from agentalign.environments.task import Task
from agentalign.recipes.acting import Past, agenda, draw_weights, unsettled


def task(number, family, branch=""):
    return Task(id=f"t{number}", split="train", family=family, data={"branch": branch} if branch else {})


def test_a_side_that_always_goes_well_is_drawn_as_often_as_the_one_that_does_not():
    tasks = [task(0, "unnamed", "one"), task(1, "unnamed", "several"), task(2, "lookup"), task(3, "never seen")]
    past = {"unnamed/one": Past(0.5, 0.28), "unnamed/several": Past(1.0, 0.03), "lookup/": Past(1.0, 0.03)}
    one, several, lookup, unknown = draw_weights(tasks, past)
    assert one == several
    assert lookup < one < unknown


def test_the_second_half_of_the_iterations_acts_the_same_tasks_out_again():
    found = agenda([1.0] * 40, iterations=6, per_iteration=4, seed=0)
    assert found[:3] == found[3:]
    assert len({index for tasks in found[:3] for index in tasks}) == 12
    assert found == agenda([1.0] * 40, iterations=6, per_iteration=4, seed=0)
    assert found != agenda([1.0] * 40, iterations=6, per_iteration=4, seed=1)
    assert [len(tasks) for tasks in agenda([1.0] * 40, iterations=5, per_iteration=4, seed=0)] == [4] * 5


def test_open_tasks_come_more_often_and_few_tasks_are_gone_round():
    counts = Counter(index % 2 for seed in range(50) for index in agenda([0.3, 0.03] * 20, iterations=1, per_iteration=8, seed=seed)[0])
    assert counts[0] > 3 * counts[1]
    assert [sorted(tasks) for tasks in agenda([1.0] * 3, iterations=4, per_iteration=8, seed=0)] == [[0, 1, 2]] * 4


def test_tasks_that_every_run_won_or_lost_alike_are_not_learned_from():
    rewards, groups = [1.0, 0.0, 1.0, 0.95, 0.3], ["open", "open", "won", "won", "alone"]
    assert unsettled(rewards, groups) == [0, 1]
    assert unsettled(rewards, groups, alone=True) == [0, 1, 4]
    assert unsettled(rewards, groups, at_least=3) == [0, 1, 2, 3, 4], "too few to share among the mini-batches: all is kept"
    assert unsettled([1.0, 1.0, 0.0, 0.0], ["won", "won", "lost", "lost"]) == [0, 1, 2, 3], "with nothing open all is kept"
