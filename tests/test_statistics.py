"""Statistics against hand-computed numbers, scipy, and their own promise of coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentalign.errors import DataError
from agentalign.evaluation.statistics import Difference, mcnemar, paired_bootstrap, pass_k, rate, rates_by, sign_flips, won_lost


def test_pass_k_by_hand():
    # One task with 3 of 4: C(3,2)/C(4,2) = 3/6. One with 1 of 4: 0. One with 4 of 4: 1.
    assert pass_k([(3, 4), (1, 4), (4, 4)], 2) == pytest.approx(0.5)
    assert pass_k([(3, 4)], 1) == pytest.approx(0.75)
    assert pass_k([(3, 4)], 4) == 0.0


def test_pass_k_is_unbiased():
    rng = np.random.default_rng(0)
    successes = rng.binomial(6, 0.7, size=20_000)
    assert pass_k([(int(c), 6) for c in successes], 3) == pytest.approx(0.7**3, abs=0.005)


def test_pass_k_refuses_too_few_runs():
    with pytest.raises(DataError, match="2 runs only"):
        pass_k([(3, 4), (1, 2)], 3)
    with pytest.raises(DataError):
        pass_k([], 1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_rate_lies_in_its_interval(values):
    got = rate(values)
    assert 0 <= got.low <= got.mean + 1e-12
    assert got.mean - 1e-12 <= got.high <= 1
    assert got.n == len(values)


def test_rates_by_group():
    values = {"refund-1": 1.0, "refund-2": 0.0, "cancel-1": 1.0}
    got = rates_by(values, lambda task: task.split("-")[0])
    assert list(got) == ["cancel", "refund"]
    assert (got["refund"].mean, got["refund"].n) == (0.5, 2)


def test_the_bootstrap_agrees_with_the_normal_interval_for_many_tasks():
    rng = np.random.default_rng(1)
    before = {str(i): float(v) for i, v in enumerate(rng.random(800) < 0.6)}
    after = {task: float(value or rng.random() < 0.2) for task, value in before.items()}
    got = paired_bootstrap([before], [after], seed=0)
    steps = np.array([after[task] - before[task] for task in before])
    half = 1.96 * steps.std() / math.sqrt(len(steps))
    assert got.delta == pytest.approx(steps.mean())
    assert (got.low, got.high) == pytest.approx((steps.mean() - half, steps.mean() + half), abs=0.004)
    assert (got.n, got.seeds, got.verdict) == (800, 1, "better")


def test_the_bootstrap_repeats_with_its_seed_and_pairs_only_shared_tasks():
    before, after = {"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 1.0, "b": 1.0, "d": 0.0}
    got = paired_bootstrap([before], [after], seed=3)
    assert got == paired_bootstrap([before], [after], seed=3)
    assert (got.delta, got.n) == (0.5, 2)
    assert (got.low, got.high, got.verdict) == (0.0, 1.0, "not shown")
    with pytest.raises(DataError, match="share no task"):
        paired_bootstrap([{"a": 1.0}], [{"b": 1.0}])
    with pytest.raises(DataError, match="cannot be paired"):
        paired_bootstrap([before], [after, after])


def test_pairing_removes_what_both_sides_share():
    rng = np.random.default_rng(2)
    hardness = rng.random(200)
    before = {str(i): float(h) for i, h in enumerate(hardness)}
    after = {task: value + 0.05 for task, value in before.items()}
    got = paired_bootstrap([before], [after])
    assert (got.delta, got.low, got.high) == pytest.approx((0.05, 0.05, 0.05))


def test_seeds_that_disagree_widen_the_interval():
    tasks = [str(i) for i in range(300)]
    before = [dict.fromkeys(tasks, 0.5)] * 3
    agree = [dict.fromkeys(tasks, 0.6)] * 3
    disagree = [dict.fromkeys(tasks, value) for value in (0.5, 0.6, 0.7)]
    same, spread = paired_bootstrap(before, agree), paired_bootstrap(before, disagree)
    assert same.delta == pytest.approx(spread.delta) == pytest.approx(0.1)
    assert same.high - same.low == pytest.approx(0, abs=1e-9)
    assert spread.high - spread.low > 0.1
    assert spread.seeds == 3


def test_with_equal_seeds_two_levels_are_one():
    rng = np.random.default_rng(4)
    before = {str(i): float(v) for i, v in enumerate(rng.random(150) < 0.5)}
    after = {task: float(rng.random() < 0.7) for task in before}
    one, three = paired_bootstrap([before], [after]), paired_bootstrap([before] * 3, [after] * 3)
    assert (one.low, one.high) == pytest.approx((three.low, three.high), abs=0.012)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered, trials, truth = 0, 200, 0.06
    for trial in range(trials):
        change = rng.choice([1.0, -1.0, 0.0], p=[0.11, 0.05, 0.84], size=120)
        before = {str(i): 0.0 for i in range(120)}
        after = {str(i): float(step) for i, step in enumerate(change)}
        got = paired_bootstrap([before], [after], seed=trial, resamples=1000)
        covered += got.low <= truth <= got.high
    assert 0.89 <= covered / trials <= 0.99


def test_mcnemar_by_hand_and_without_any_change():
    # 8 won, 2 lost: 2 x (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024.
    assert mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert mcnemar(2, 8) == mcnemar(8, 2)
    assert mcnemar(0, 0) == 1.0


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_tail(won, lost):
    n = won + lost
    tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1)) / 2**n
    assert mcnemar(won, lost) == pytest.approx(min(1.0, 2 * tail))


def test_won_and_lost_count_shared_tasks():
    assert won_lost({"a": 0.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 0.5, "c": 1.0, "d": 1.0}) == (1, 1)


def test_a_verdict_needs_the_whole_interval_on_one_side():
    for low, high, verdict in ((0.01, 0.1, "better"), (-0.2, -0.01, "worse"), (0.0, 0.1, "not shown"), (-0.1, 0.1, "not shown")):
        assert Difference(delta=(low + high) / 2, low=low, high=high, n=10, p=0.01).verdict == verdict
        assert Difference(delta=(low + high) / 2, low=low, high=high, n=10, p=0.06).verdict == "not shown"


@pytest.mark.parametrize("n", [30, 360])
def test_no_verdict_stands_beside_a_p_of_chance(n: int) -> None:
    for won in range(13):
        for lost in range(13):
            after = [1.0] * won + [-1.0] * lost + [0.0] * (n - won - lost)
            got = paired_bootstrap([{str(i): 0.0 for i in range(n)}], [{str(i): value for i, value in enumerate(after)}], resamples=1000)
            assert got.p == mcnemar(won, lost)
            assert got.verdict == "not shown" or got.p < 0.05, (won, lost)


def test_signs_are_drawn_where_changes_differ_in_size() -> None:
    rng = np.random.default_rng(6)
    even = rng.normal(size=40)
    assert sign_flips(even - even.mean()) > 0.9
    assert sign_flips(even + 1.0) < 0.001
    assert sign_flips(np.array([1.0] * 8 + [-0.1] * 8)) < 0.05, "eight large ones outweigh eight small ones"
    assert sign_flips(np.zeros(5)) == 1.0
