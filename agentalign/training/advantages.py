"""From rewards to advantages, turn by turn.

A turn is the action: its reward is what the run earned there minus beta times the divergence from the reference over its tokens;
GAE runs over the few turns of a run and every token of a turn shares its advantage. Tool results carry neither reward nor advantage.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

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


def sibling_values(
    values: Sequence[Floats], returns: Sequence[Floats], states: Sequence[Sequence[Hashable]], *, prior_weight: float = 1.0
) -> list[Floats]:
    """The critic's values, corrected at every state by what the other runs that came through it were worth.

    Runs of one task share their history up to the turn where they part, so the tree of a group is a Monte-Carlo estimate of its states
    (as VinePPO's, arXiv:2410.01679, without sampling more). After a lookup that all made, the other runs say what is to be expected;
    after the call that decides, only those that called the same do, and the words of the last reply are not praised or blamed for
    it. A run never takes part in its own values: with lambda = 1 they are baselines, and the gradient stays unbiased; at the first turn
    this is RLOO (arXiv:2402.14740).

    Args:
        values: per run (K,) the critic's value at the state before each turn.
        returns: per run (K,) what came from there on.
        states: per run K names, equal where two runs are in the same state.
        prior_weight: how many other runs the critic counts for, after the first turn.

    Returns:
        Per run (K,). A state that no other run came through keeps the critic's value, moved as far as the state before it was.
    """
    total: Counter[Hashable] = Counter()
    sums: dict[Hashable, float] = defaultdict(float)
    for run, names in zip(returns, states, strict=True):
        for worth, name in zip(run, names, strict=True):
            total[name] += 1
            sums[name] += float(worth)
    found = []
    for critic, run, names in zip(values, returns, states, strict=True):
        corrected = np.zeros_like(critic)
        moved = 0.0
        for k, name in enumerate(names):
            others, weight = total[name] - 1, prior_weight if k else 0.0
            corrected[k] = critic[k] + moved
            if others:
                corrected[k] = (weight * corrected[k] + sums[name] - run[k]) / (weight + others)
            moved = corrected[k] - critic[k]
        found.append(corrected)
    return found
