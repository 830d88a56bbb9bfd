"""Alarms fire on what they are about, and on nothing else."""

import pytest

from agentalign.evaluation.alarms import DRIFT, FELL, KL_MOST, ROWS, SKIPS, VOTES, Vote, alarms


def names(rows, votes=()):
    return [alarm.name for alarm in alarms(rows, votes)]


def steps(name, values, start=1):
    return [{"step": start + i, name: value} for i, value in enumerate(values)]


def test_a_training_that_learns_raises_no_alarm():
    rows = [{"step": i, "loss": 1 / i, "kl": 0.01 * i, "reward/mean": 0.5 + 0.001 * i, "tokens_per_run": 100 + i % 7} for i in range(1, 60)]
    rows += [{"step": 0, "eval/success": 0.5, "eval/tokens": 90}, {"step": 59, "eval/success": 0.7, "eval/tokens": 95}]
    assert alarms(rows) == []
    assert alarms([]) == []
    assert alarms(rows[:1]) == []


def test_kl_runs_away_by_its_size_or_by_its_pace():
    assert names(steps("kl", [0.1, 0.2, 0.1, 0.2, 0.1, 0.9])) == [], "from next to nothing everything is a multiple"
    (fast,) = alarms(steps("kl", [0.5, 0.5, 0.5, 0.5, 0.6, 4.0]))
    assert (fast.name, fast.level, fast.step) == ("KL runaway", "warn", 6)
    (first,) = alarms(steps("kl", [0.0, 4.0]))
    assert "4.0 nats per run, and was 0.00 on average up to then" in first.text
    (far,) = alarms(steps("kl", [KL_MOST, KL_MOST + 1]))
    assert (far.name, far.level) == ("KL runaway", "bad")


def test_reward_that_rises_while_dev_success_falls_is_told():
    rows = steps("reward/gain", [0.0, 0.0, 0.1, 0.2, 0.3, 0.3])
    dev = [{"step": 0, "eval/success": 0.80}, {"step": 3, "eval/success": 0.85}]
    (alarm,) = alarms([*rows, *dev, {"step": 6, "eval/success": 0.85 - FELL - 0.01}])
    assert (alarm.name, alarm.level, alarm.step) == ("reward up, dev down", "bad", 6)
    assert "0.85 (step 3)" in alarm.text, "it is compared with the best there was"
    assert names([*rows, *dev, {"step": 6, "eval/success": 0.85 - FELL}]) == [], "that much is a task or two"
    falling = steps("reward/gain", [0.3, 0.2, 0.1, 0.0])
    assert names([*falling, *dev, {"step": 6, "eval/success": 0.5}]) == [], "reward and dev fall together: bad, and no gaming"


def test_reward_that_rises_while_people_prefer_the_start_is_told():
    rows = steps("rewards/margins", [0.0, 0.1, 0.2, 0.3])
    lost = [Vote(4, 0.0)] * VOTES
    (alarm,) = alarms(rows, lost)
    assert (alarm.name, alarm.level, alarm.step) == ("reward up, people down", "bad", 4)
    assert "won 0 of 8" in alarm.text
    assert names(rows, lost[1:]) == [], "too few votes say nothing"
    assert names(rows, [Vote(4, 0.0)] * 5 + [Vote(4, 1.0)] * 4) == [], "a split vote is no loss"


def test_answers_that_grow_or_shrink_are_told():
    base = [100.0] * 3
    for factor, way in ((DRIFT + 0.1, "longer"), (1 / (DRIFT + 0.1), "shorter")):
        (alarm,) = alarms(steps("eval/tokens", [*base, *base, *(100 * factor for _ in range(3))]))
        assert (alarm.name, alarm.level) == ("length drift", "warn")
        assert way in alarm.text
    assert names(steps("eval/tokens", [0.0, 0.0])) == []


def test_skipped_steps_are_counted_and_several_are_bad():
    fine = [{"step": i, "loss": 1 / i} for i in range(1, 20)]
    one = [*fine, {"step": 20, "skipped": 1.0, "not_finite": ["loss"]}]
    (alarm,) = alarms(one)
    assert (alarm.name, alarm.level, alarm.step) == ("not finite", "warn", 20)
    many = [*fine, *({"step": 20 + i, "skipped": 1.0} for i in range(SKIPS))]
    assert [(a.name, a.level) for a in alarms(many)] == [("not finite", "bad")]


@pytest.mark.parametrize(
    ("values", "told"), [([1.0] * ROWS, True), ([1.0] * (ROWS - 1), False), ([1 - i / 100 for i in range(ROWS)], False)]
)
def test_a_loss_that_does_not_fall_is_told_after_a_while(values, told):
    assert names(steps("loss", values)) == (["loss flat"] if told else [])


def test_a_policy_gradients_loss_is_no_measure():
    assert names([{"step": i, "loss": 1.0, "loss/policy": 1.0} for i in range(1, 60)]) == []


def test_bad_comes_before_warn_and_odd_rows_do_no_harm():
    rows = [
        *steps("kl", [1.0, 20.0]),
        *steps("eval/tokens", [10.0, 90.0]),
        {"step": "x", "kl": None},
        {"kl": "far"},
        {"step": 3, "kl": True},
    ]
    assert names(rows)[:2] == ["KL runaway", "length drift"]
