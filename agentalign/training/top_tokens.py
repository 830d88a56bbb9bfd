"""What a model finds likely at each position of an answer, and how far two such lists lie apart.

A list holds the likeliest few tokens; the others are one lump. So the divergence is a lower bound of the true one, and needs no more
than a server gives. Surprise: a token that the other side did not list is not left out but takes the smallest value that the other side
listed, the most it can have: else two lists without a common token would seem equal.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from agentalign.records.golden import TopTokens
from agentalign.training.model import Model
from agentalign.training.tree import TurnLike, build_tree, pack
from agentalign.training.tree_check import check_tree

TOP = 10
"""Tokens kept per position."""
TOGETHER_TOKENS = 8192
"""Most distinct tokens in one forward."""


@dataclass(frozen=True)
class _Run:
    turns: tuple[TurnLike, ...]


def top_tokens(model: Model, adapter: str | None, turns: Sequence[TurnLike], *, together: bool) -> list[tuple[TopTokens, ...]]:
    """Per turn and completion token the likeliest ids, on the path that training computes; arguments as in `turn_logprobs`."""
    found = {index: _tops(logprobs) for index, logprobs in turn_logprobs(model, adapter, turns, together=together)}
    return [found[i] for i in range(len(turns))]


def turn_logprobs(model: Model, adapter: str | None, turns: Sequence[TurnLike], *, together: bool) -> Iterator[tuple[int, torch.Tensor]]:
    """Each turn's number with the log-probabilities of every token along its completion, (M, V), fp32.

    Args:
        adapter: None for the bare base.
        together: all turns in one batch with shared prefixes, or each alone. Equal weights, other roundings.
    """
    runs = [_Run((turn,)) for turn in turns]
    groups = (
        pack(range(len(runs)), max_tokens=TOGETHER_TOKENS, runs_of=lambda i: [runs[i]]) if together else [[i] for i in range(len(runs))]
    )
    for members in groups:
        with model.using(adapter), torch.no_grad():
            tree = build_tree([runs[i] for i in members]).to(model.device)
            check_tree(model, tree)
            hidden = model.hidden(tree)
            rows = hidden[tree.parents[tree.labels]][tree.occurrences]  # (M, H)
        # Given out one by one and outside the context: two of these may be read side by side, of one model even.
        for place, index in enumerate(members):
            with torch.no_grad():
                logits = (rows[tree.occurrence_run == place].to(model.head_weight.dtype) @ model.head_weight.t()).float()
                logprobs = torch.log_softmax(logits, dim=-1)
            yield index, logprobs


def _tops(logprobs: torch.Tensor) -> tuple[TopTokens, ...]:
    """(M, V) log-probabilities to the likeliest ids per row."""
    values, ids = logprobs.topk(min(TOP, logprobs.shape[-1]), dim=-1)
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple(tuple((int(i), round(float(v), 6)) for i, v in zip(*row, strict=True)) for row in rows)


def divergence(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """KL(first || second) in nats over the first's listed tokens and the lump of all others; a lower bound of the whole."""
    if not first or not second:
        return math.inf
    least = min(second.values())
    known, p_rest, q_rest = 0.0, 1.0, 1.0
    for token, logprob in first.items():
        other = second.get(token, least)
        known += math.exp(logprob) * (logprob - other)
        p_rest -= math.exp(logprob)
        q_rest -= math.exp(other)
    p_rest, q_rest = max(p_rest, 0.0), max(q_rest, 1e-9)
    rest = p_rest * (math.log(p_rest) - math.log(q_rest)) if p_rest > 1e-9 else 0.0
    return max(0.0, known + rest)


def apart(first: Sequence[TopTokens], second: Sequence[TopTokens]) -> float:
    """Mean divergence over the positions that both have; infinite where there is none."""
    pairs = list(zip(first, second, strict=False))
    return sum(divergence(dict(p), dict(q)) for p, q in pairs) / len(pairs) if pairs else math.inf
