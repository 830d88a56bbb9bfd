"""Rewards to advantages, by hand."""

import numpy as np

from agentalign.training.advantages import discounted_returns, kl_shaped_rewards, leave_one_out, turn_gae, whiten


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
