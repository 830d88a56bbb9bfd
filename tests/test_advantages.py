"""Rewards to advantages, by hand."""

import numpy as np

from agentalign.training.advantages import discounted_returns, kl_shaped_rewards, leave_one_out, sibling_offsets, turn_gae, whiten


def test_divergence_is_paid_where_it_happens_and_the_reward_comes_last():
    np.testing.assert_allclose(kl_shaped_rewards(1.0, [0.5, -0.2, 1.0], beta=0.1), [-0.05, 0.02, 0.9])


def test_gae_by_hand():
    advantages = turn_gae(np.array([0.0, 1.0]), np.array([0.5, 0.6]), gamma=0.9, lam=0.5)
    last = 1.0 - 0.6
    first = 0.0 + 0.9 * 0.6 - 0.5 + 0.9 * 0.5 * last
    np.testing.assert_allclose(advantages, [first, last])


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = np.array([0.1, 0.0, 1.0]), np.array([0.3, 0.2, 0.7])
    np.testing.assert_allclose(turn_gae(rewards, values, gamma=1.0, lam=1.0), discounted_returns(rewards, gamma=1.0) - values)


def test_leave_one_out_sums_to_zero_and_one_sample_has_no_baseline():
    np.testing.assert_allclose(leave_one_out(np.array([1.0, 0.0, 0.5])), [0.75, -0.75, 0.0])
    np.testing.assert_allclose(leave_one_out(np.array([1.0])), [0.0])


def test_whitening_is_weighted():
    values, weights = np.array([1.0, 5.0]), np.array([3.0, 1.0])
    white = whiten(values, weights)
    assert abs(np.average(white, weights=weights)) < 1e-9
    np.testing.assert_allclose(np.average(white**2, weights=weights), 1.0, rtol=1e-6)


def test_siblings_say_what_the_critic_missed_and_a_lone_run_has_no_say():
    offsets = sibling_offsets(np.array([0.4, 0.1, 0.7, 0.3]), ["a", "b", "a", "a"])
    np.testing.assert_allclose(offsets, [0.5, 0.0, 0.35, 0.55])


def test_a_task_that_every_sample_wins_pushes_nowhere_however_wrong_the_critic_is():
    rewards, values = np.array([0.0, 1.0]), np.array([0.2, 0.2])
    offsets = sibling_offsets(np.full(3, 1.0 - values[0]), ["a"] * 3)
    np.testing.assert_allclose(turn_gae(rewards, values + offsets[0], gamma=1.0, lam=0.95), [0.0, 0.0], atol=1e-12)
