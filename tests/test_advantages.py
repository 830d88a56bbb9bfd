"""Rewards to advantages, by hand."""

import numpy as np

from agentalign.training.advantages import discounted_returns, kl_shaped_rewards, sibling_values, turn_gae


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


def test_at_the_first_turn_siblings_are_the_baseline_and_a_lone_run_keeps_the_critics():
    values = [np.array([v]) for v in (0.9, 0.1, 0.2, 0.3)]
    returns = [np.array([r]) for r in (1.0, 0.0, 0.5, 0.7)]
    found = sibling_values(values, returns, [["a"], ["a"], ["a"], ["b"]])
    np.testing.assert_allclose(np.concatenate(found), [0.25, 0.75, 0.5, 0.3])


def test_only_runs_that_took_the_same_way_say_what_a_later_state_is_worth():
    """Three runs look up alike; two then act (won), one refuses (lost): the last reply is neither praised nor blamed."""
    returns = [np.full(3, worth) for worth in (1.0, 1.0, 0.0)]
    states = [["ask", "found", "acted"], ["ask", "found", "acted"], ["ask", "found", "refused"]]
    acted, _, refused = sibling_values([np.zeros(3)] * 3, returns, states, prior_weight=0.0)
    np.testing.assert_allclose(acted, [0.5, 0.5, 1.0])
    np.testing.assert_allclose(refused, [1.0, 1.0, 1.0], err_msg="nobody else refused: what was expected before holds on")
    advantages = [
        turn_gae(np.array([0.0, 0.0, r[-1]]), v, gamma=1.0, lam=1.0) for r, v in zip(returns, (acted, acted, refused), strict=True)
    ]
    np.testing.assert_allclose(advantages, [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [-1.0, -1.0, -1.0]])
    np.testing.assert_allclose(np.sum(advantages, axis=0)[:2], 0.0, err_msg="the same words in the same state push nowhere together")


def test_the_critic_counts_for_as_many_runs_as_its_weight_says():
    states = [["s", "t"], ["s", "t"]]
    first, _ = sibling_values([np.array([0.2, 0.6])] * 2, [np.ones(2), np.ones(2)], states, prior_weight=1.0)
    np.testing.assert_allclose(first, [1.0, (1.4 + 1.0) / 2], err_msg="0.6, moved up by the 0.8 that the first state was off")


def test_a_task_that_every_sample_wins_pushes_nowhere_however_wrong_the_critic_is():
    found = sibling_values([np.array([0.2, 0.2])] * 3, [np.ones(2)] * 3, [["a", "b"]] * 3)
    np.testing.assert_allclose(turn_gae(np.array([0.0, 1.0]), found[0], gamma=1.0, lam=0.95), [0.0, 0.0], atol=1e-12)
