"""How far a served policy lies from the trained one: the divergence over the whole vocabulary, at every token of given turns.

Here both sides are in this process, so nothing need be bounded as it must be of a server's few likeliest tokens (`top_tokens`).
Surprise: a policy lies some way from itself. In one batch and alone it rounds differently; below that floor no distance means anything.
"""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch

from agentalign.training.model import Model
from agentalign.training.top_tokens import turn_logprobs
from agentalign.training.tree import TurnLike

TOKENS = 64
"""Tokens of each turn that are compared."""
FLOOR_TURNS = 4
"""Turns that are computed a second time, alone, for the floor."""


class Distance(NamedTuple):
    """What was found, in nats per token."""

    kl: float
    """Mean of KL(trained || served)."""
    worst: float
    """The largest at any token."""
    floor: float
    """Mean of KL(trained || trained) on the first turns, all in one batch against each alone."""
    tokens: int


class _Cut(NamedTuple):
    context: Sequence[int]
    completion: Sequence[int]


def policy_distance(trained: Model, adapter: str | None, served: Model, served_adapter: str | None, turns: Sequence[TurnLike]) -> Distance:
    """How far `served` under its adapter lies from `trained` under its own along these turns; None names a bare base.

    Args:
        turns: one at least, none with an empty completion.
    """
    cut = [_Cut(turn.context, turn.completion[:TOKENS]) for turn in turns]
    # In one batch the turns' common beginnings are computed once: for agents that is most of them.
    own, other = turn_logprobs(trained, adapter, cut, together=True), turn_logprobs(served, served_adapter, cut, together=True)
    alone = turn_logprobs(trained, adapter, cut[:FLOOR_TURNS], together=False)
    away, floor = [], []
    for (_, p), (_, q) in zip(own, other, strict=True):
        away.append(_divergences(p, q.to(p.device)))
        floor += [_divergences(p, again) for _, again in islice(alone, 1)]
    distances = torch.cat(away)
    return Distance(float(distances.mean()), float(distances.max()), float(torch.cat(floor).mean()), len(distances))


def _divergences(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(M, V) and (M, V) log-probabilities to (M,) nats, never below 0 by rounding."""
    return (p.exp() * (p - q)).sum(dim=-1).clamp_min(0.0)
