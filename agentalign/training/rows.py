"""Separate rows for models that no tree fits: every root-to-leaf path by itself, right-padded, beside rows of about its length.

Exact for any architecture, and it shares nothing. The surprise: a token that several rows hold is the same function of the same
prefix in each, so one of them may speak for all, and the gradient is still the sum over its branches.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from agentalign.training import ranks
from agentalign.training.attention import leaf_paths
from agentalign.training.tree import TreeBatch

CLOSE = 0.8
"""A row joins the rows of a forward when it is at least this share of the longest: at most a fifth of any row is padding."""


def row_hidden(backbone: nn.Module, batch: TreeBatch, *, pad_id: int) -> Tensor:
    """(T, H) last hidden states, one row per tree token.

    In one forward whatever their lengths where the base is in shards: each process has to make as many as the others.
    """
    device = batch.tokens.device
    spoken_for = torch.zeros(batch.n_tokens, dtype=torch.bool)
    found, places = [], []
    all_paths = leaf_paths(batch)
    for paths in [all_paths] if ranks.sharded() else buckets(all_paths):
        rows = torch.full((len(paths), max(map(len, paths))), pad_id, device=device)
        valid = torch.zeros_like(rows)
        for i, path in enumerate(paths):
            rows[i, : len(path)], valid[i, : len(path)] = batch.tokens[path], 1
        states = backbone(input_ids=rows, attention_mask=valid, use_cache=False).last_hidden_state
        for row, path in zip(states, paths, strict=True):
            new = path[~spoken_for[path]]
            spoken_for[new] = True
            found.append(row[batch.positions[new]])
            places.append(new)
    return torch.cat(found)[torch.cat(places).argsort().to(device)]


def buckets(paths: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The paths by falling length, those of about one length together."""
    together: list[Tensor] = []
    for path in sorted(paths, key=len, reverse=True):
        if together and len(path) < CLOSE * len(together[0]):
            yield together
            together = []
        together.append(path)
    if together:
        yield together
