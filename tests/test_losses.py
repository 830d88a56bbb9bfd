"""Every loss against a number computed by hand."""

import math

import pytest
import torch

from agentalign.training.losses import (
    dpo_loss,
    ipo_loss,
    kl_k3,
    kto_loss,
    nll_loss,
    ppo_policy_loss,
    ppo_value_loss,
    reward_pair_loss,
    reward_regression_loss,
    sft_loss,
)


def close(got, expected):
    torch.testing.assert_close(torch.as_tensor(got), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_sft_and_nll_are_negative_logprobs():
    close(sft_loss(torch.tensor([-0.5, -2.0])), [0.5, 2.0])
    close(nll_loss(torch.tensor([-3.0])), [3.0])


def test_dpo_starts_at_log_two():
    losses, metrics = dpo_loss(torch.zeros(3), torch.zeros(3), beta=0.1)
    close(losses, [math.log(2)] * 3)
    close(metrics["rewards/accuracies"], [0.0] * 3)


def test_dpo_by_hand_with_strength_and_smoothing():
    losses, metrics = dpo_loss(torch.tensor([1.0]), torch.tensor([-2.0]), beta=0.5, strength=torch.tensor([2.0]), label_smoothing=0.1)
    margin = 0.5 * 3.0
    expected = 2.0 * (-0.9 * math.log(sigmoid(margin)) - 0.1 * math.log(sigmoid(-margin)))
    close(losses, [expected])
    close(metrics["rewards/margins"], [1.5])
    close(metrics["rewards/chosen"], [0.5])


def test_ipo_is_zero_at_its_target_margin():
    losses, _ = ipo_loss(torch.tensor([1.25, 0.0]), torch.tensor([0.25, 0.0]), beta=0.5)
    close(losses, [0.0, 1.0])
    losses, metrics = ipo_loss(torch.tensor([1.0]), torch.tensor([-2.0]), beta=0.5, strength=torch.tensor([2.0]), label_smoothing=0.1)
    close(losses, [2.0 * (0.9 * (3.0 - 1.0) ** 2 + 0.1 * (3.0 + 1.0) ** 2)])
    close(metrics["rewards/margins"], [1.5])


def test_kto_by_hand():
    losses, _ = kto_loss(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), torch.tensor(0.5), beta=1.0, undesirable_weight=0.5)
    close(losses, [1 - sigmoid(1.5), 0.5 * (1 - sigmoid(-1.5))])


def test_reward_pair_loss_by_hand_with_centering():
    losses, metrics = reward_pair_loss(torch.tensor([1.0]), torch.tensor([0.5]), strength=torch.tensor([3.0]), centering=0.1)
    close(losses, [-3 * math.log(sigmoid(0.5)) + 0.1 * 2.25])
    close(metrics["accuracy"], [1.0])


def test_reward_regression_is_squared_error():
    close(reward_regression_loss(torch.tensor([0.2]), torch.tensor([0.7])), [0.25])


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "expected"),
    [
        (0.0, 2.0, -2.0),  # on policy: minus the advantage
        (math.log(2.0), 1.0, -1.28),  # gain clipped above
        (math.log(0.5), 1.0, -0.5),  # a loss of a good token is not clipped
        (math.log(0.5), -1.0, 0.8),  # gain of a bad token's fall clipped below
        (math.log(2.0), -1.0, 2.0),  # a bad token's rise is not clipped ...
        (math.log(8.0), -1.0, 3.0),  # ... but bounded by the dual clip
    ],
)
def test_ppo_policy_loss_by_hand(log_ratio, advantage, expected):
    losses, _ = ppo_policy_loss(
        torch.tensor([log_ratio]), torch.zeros(1), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28, dual_clip=3.0
    )
    close(losses, [expected])


def test_ppo_value_loss_takes_the_larger_of_clipped_and_unclipped():
    losses, _ = ppo_value_loss(torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), clip=0.2)
    close(losses, [0.5 * 0.64, 0.5 * 0.81])


def test_kl_k3_is_zero_for_equal_policies_and_positive_otherwise():
    close(kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0])), [0.0])
    close(kl_k3(torch.tensor([-1.0]), torch.tensor([-2.0])), [math.exp(-1) + 0.0])
