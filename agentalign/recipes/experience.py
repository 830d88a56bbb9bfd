"""Runs as PPO learns from them: tokens, old log-probabilities, advantages and returns per turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentalign.config.ppo import PPOConfig
from agentalign.recipes.data import Part, fixed_logprobs, read_parts, whole
from agentalign.training.advantages import Floats, discounted_returns, kl_shaped_rewards, sibling_values, turn_gae
from agentalign.training.losses import kl_k3, ppo_policy_loss, ppo_value_loss, sft_loss
from agentalign.training.model import Model
from agentalign.training.render import Rendered
from agentalign.training.step import LossTerms, MicroBatch, Term
from agentalign.training.tree import TreeBatch, build_tree, pack

POLICY, REFERENCE, REWARD, CRITIC = "policy", "reference", "reward", "value"


@dataclass(frozen=True)
class Experience:
    """One run, ready to learn from."""

    run: Rendered
    part: Part
    reward: float
    """What the run was worth, in [0, 1]."""
    old_logprobs: Tensor
    """(M,) under the policy that sampled it, at temperature 1 and computed on the training path."""
    reference_logprobs: Tensor
    """(M,)."""
    values: Floats
    """(K,) the critic before this iteration's update."""
    advantages: Floats
    """(K,) in units of the reward: unit variance would give an iteration with little to learn as much say as any other."""
    returns: Floats
    """(K,) the critic's targets."""


@dataclass(frozen=True)
class PolicyRows:
    """Per occurrence: old and reference log-probabilities, advantage; which tokens are learned from and which replayed."""

    acted: Tensor
    """(M,) bool: True for tokens of this iteration's runs, False for replayed ones."""
    old: Tensor
    reference: Tensor
    advantages: Tensor


@dataclass(frozen=True)
class ValueRows:
    """Per turn."""

    old: Tensor
    returns: Tensor


def gather(model: Model, runs: Sequence[Rendered], rewards: Sequence[float], groups: Sequence[str], config: PPOConfig) -> list[Experience]:
    """Score the tokens under old policy and reference, the states under the critic, and make advantages of them.

    Args:
        groups: (N,) task of each run: the other runs of it correct the critic.
    """
    if not runs:
        return []
    parts = [whole(run) for run in runs]
    old = fixed_logprobs(model, POLICY, parts, max_tokens=config.micro_batch_tokens)
    reference = fixed_logprobs(model, REFERENCE, parts, max_tokens=config.micro_batch_tokens)
    values = turn_values(model, parts, config)
    shaped = [
        kl_shaped_rewards(reward, _per_turn(part, a - b), beta=config.kl_beta)
        for reward, part, a, b in zip(rewards, parts, old, reference, strict=True)
    ]
    returns = [discounted_returns(one, gamma=config.gamma) for one in shaped]
    states = [[(group, turn.context) for turn in part.turns] for group, part in zip(groups, parts, strict=True)]
    known = sibling_values(values, returns, states)
    advantages = [turn_gae(reward, value, gamma=config.gamma, lam=config.lam) for reward, value in zip(shaped, known, strict=True)]
    return [Experience(*one) for one in zip(runs, parts, rewards, old, reference, values, advantages, returns, strict=True)]


def lesson(run: Rendered, reward: float, config: PPOConfig) -> Experience:
    """A stored run for the critic alone: what it was worth, seen from each turn; no policy figures."""
    part = whole(run)
    rewards = kl_shaped_rewards(reward, [0.0] * len(part.turns), beta=0.0)
    returns = discounted_returns(rewards, gamma=config.gamma)
    nothing = torch.zeros(0)
    return Experience(run, part, reward, nothing, nothing, returns, np.zeros_like(returns), returns)


def _per_turn(part: Part, values: Tensor) -> list[float]:
    sizes = [len(turn.completion) for turn in part.turns]
    if sum(sizes) != len(values):
        # A template that rewrites history may let two turns share a node; then the run's total is spread by size.
        return [float(values.sum()) * size / sum(sizes) for size in sizes]
    return [float(chunk.sum()) for chunk in torch.split(values, sizes)]


def turn_values(model: Model, parts: Sequence[Part], config: PPOConfig) -> list[Floats]:
    """(K,) critic's value at the state before each turn."""

    def read(tree: TreeBatch) -> list[Floats]:
        values = model.apply_head(CRITIC, model.hidden(tree)[tree.turn_state]).squeeze(1).double()
        return [values[tree.turn_run == run].cpu().numpy() for run in range(tree.n_runs)]

    return read_parts(model, CRITIC, parts, read, max_tokens=config.micro_batch_tokens)


def policy_batches(runs: Sequence[Experience], replay: Sequence[Rendered], max_tokens: int) -> list[MicroBatch]:
    """This step's runs and replayed expert runs, packed together."""
    items: list[Experience | Rendered] = [*runs, *replay]
    return [_policy_micro(members) for members in pack(items, max_tokens=max_tokens, runs_of=lambda item: [_part(item)])]


def _part(item: Experience | Rendered) -> Part:
    return item.part if isinstance(item, Experience) else whole(item.own)


def _policy_micro(members: Sequence[Experience | Rendered]) -> MicroBatch:
    tree = build_tree([_part(member) for member in members])
    acted = torch.tensor([isinstance(member, Experience) for member in members])[tree.occurrence_run]
    old, reference, advantages = (torch.zeros(len(tree.occurrences)) for _ in range(3))
    for place, member in enumerate(members):
        if isinstance(member, Experience):
            mine = tree.occurrence_run == place
            first = int(torch.nonzero(tree.turn_run == place)[0])
            old[mine], reference[mine] = member.old_logprobs, member.reference_logprobs
            advantages[mine] = torch.tensor(member.advantages, dtype=torch.float32)[tree.occurrence_turn[mine] - first]
    counts = {name: float(count) for name, count in (("policy", int(acted.sum())), ("nll", int((~acted).sum()))) if count}
    ids = tuple(m.run.trajectory if isinstance(m, Experience) else m.trajectory for m in members)
    return MicroBatch(tree, counts, PolicyRows(acted, old, reference, advantages), ids)


def policy_loss(model: Model, micro: MicroBatch, config: PPOConfig, share: float) -> LossTerms:
    """Clipped surrogate per token the policy sampled, and negative log-likelihood per token of replayed runs.

    Args:
        share: of the sampled tokens those that are learned from; 1 where all are, 0 where none says anything. The others have advantages
            of next to nothing and would have stood in the mean: without it an iteration with little to learn would move the policy as
            far as any other, and away from the anchor.
    """
    rows: PolicyRows = micro.data
    logprobs = model.token_logprobs(micro.tree)
    acted = rows.acted.to(logprobs.device)
    terms: dict[str, Term] = {}
    metrics: dict[str, Tensor] = {}
    if "policy" in micro.counts:
        mine, old = logprobs[acted], rows.old.to(logprobs)[acted]
        losses, metrics = ppo_policy_loss(
            mine, old, rows.advantages.to(logprobs)[acted], clip_low=config.clip_low, clip_high=config.clip_high
        )
        terms["policy"] = Term(losses, share)
        metrics["kl_k3"] = kl_k3(mine.detach(), rows.reference.to(logprobs)[acted])
    if "nll" in micro.counts:
        terms["nll"] = Term(sft_loss(logprobs[~acted]), config.nll_coefficient)
    return LossTerms(terms, metrics)


def critic_batches(runs: Sequence[Experience], max_tokens: int) -> list[MicroBatch]:
    """The same runs, for the critic."""
    found = []
    for members in pack(runs, max_tokens=max_tokens, runs_of=lambda item: [item.part]):
        tree = build_tree([member.part for member in members])
        old, returns = (
            torch.tensor(np.concatenate([getattr(m, name) for m in members]), dtype=torch.float32) for name in ("values", "returns")
        )
        found.append(MicroBatch(tree, {"value": float(tree.n_turns)}, ValueRows(old, returns), tuple(m.run.trajectory for m in members)))
    return found


def value_loss(model: Model, micro: MicroBatch) -> LossTerms:
    """Clipped squared error per turn."""
    rows: ValueRows = micro.data
    values = model.apply_head(CRITIC, model.hidden(micro.tree)[micro.tree.turn_state]).squeeze(1)
    losses, metrics = ppo_value_loss(values, rows.old.to(values), rows.returns.to(values))
    return LossTerms({"value": Term(losses)}, metrics)
