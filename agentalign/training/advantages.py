"""From rewards to advantages, turn by turn.

A turn is the action: its reward is what the run earned there minus beta times the divergence from the reference over its tokens;
GAE runs over the few turns of a run and every token of a turn shares its advantage. Tool results carry neither reward nor advantage.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kl_shaped_rewards(final_reward: float, kl_per_turn: Sequence[float], *, beta: float) -> Floats:
    """(K,) reward per turn: -beta x the turn's summed (log policy - log reference), plus the run's reward at the last turn.

    Args:
        final_reward: what the run is worth.
        kl_per_turn: (K,) k1 estimates in nats, summed over the turn's sampled tokens.
    """
    rewards = -beta * np.asarray(kl_per_turn, dtype=np.float64)
    rewards[-1] += final_reward
    return rewards


def turn_gae(rewards: Floats, values: Floats, *, gamma: float, lam: float) -> Floats:
    """Generalised advantage estimation over turns (Schulman et al. 2016, eq. 16, arXiv:1506.02438).

    Args:
        rewards: (K,) per turn.
        values: (K,) V at the state before each turn; the state after the last turn is worth 0.

    Returns:
        (K,) advantages.
    """
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    advantages = np.zeros_like(deltas)
    running = 0.0
    for k in range(len(deltas) - 1, -1, -1):
        running = deltas[k] + gamma * lam * running
        advantages[k] = running
    return advantages


def discounted_returns(rewards: Floats, *, gamma: float) -> Floats:
    """(K,) return from each turn on: the critic's target (lambda = 1, VC-PPO arXiv:2503.01491)."""
    returns = np.zeros_like(rewards)
    running = 0.0
    for k in range(len(rewards) - 1, -1, -1):
        running = rewards[k] + gamma * running
        returns[k] = running
    return returns


def leave_one_out(rewards: Floats) -> Floats:
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740): (G,) rewards of one task -> each minus the mean of the others."""
    count = len(rewards)
    if count < 2:
        return np.zeros_like(rewards)
    centred: Floats = rewards - (rewards.sum() - rewards) / (count - 1)
    return centred


def sibling_offsets(surprises: Floats, groups: Sequence[str]) -> Floats:
    """What the critic missed about a task, by the other runs of it.

    Added to all values of a run it is a control variate: it depends on the run's siblings alone, so the gradient stays unbiased
    (as in RLOO), and a task that every sample wins, or none, pushes nowhere however wrong the critic is about it.

    Args:
        surprises: (N,) return of each run minus the critic's value at its first state.
        groups: (N,) task of each run.

    Returns:
        (N,) mean surprise of the run's siblings; 0 where it has none.
    """
    offsets = np.zeros_like(surprises)
    names = np.asarray(groups)
    for group in set(groups):
        members = np.flatnonzero(names == group)
        if len(members) > 1:
            offsets[members] = surprises[members] - leave_one_out(surprises[members])
    return offsets


def whiten(values: Floats, weights: Floats, *, shift: bool = True) -> Floats:
    """Zero mean (unless `shift` is False) and unit variance under weights, e.g. the number of tokens behind each value."""
    mean = np.average(values, weights=weights)
    deviation = np.sqrt(np.average((values - mean) ** 2, weights=weights) + 1e-8)
    whitened: Floats = (values - (mean if shift else 0.0)) / deviation
    return whitened
