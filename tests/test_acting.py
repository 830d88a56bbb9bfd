"""What PPO learns from: tasks that went differently from run to run."""

from agentalign.recipes.acting import unsettled


def test_tasks_that_every_run_won_or_lost_alike_are_not_learned_from():
    rewards, groups = [1.0, 0.0, 1.0, 0.95, 0.3], ["open", "open", "won", "won", "alone"]
    assert unsettled(rewards, groups) == [0, 1]
    assert unsettled(rewards, groups, alone=True) == [0, 1, 4]
    assert unsettled(rewards, groups, at_least=3) == [0, 1, 2, 3, 4], "too few to share among the mini-batches: all is kept"
    assert unsettled([1.0, 1.0, 0.0, 0.0], ["won", "won", "lost", "lost"]) == [0, 1, 2, 3], "with nothing open all is kept"
