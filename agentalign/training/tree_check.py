"""The first step's self-check: an architecture that only looks like one that we know must not be trained wrongly.

Two paths of a tree are scored by themselves, by transformers' own attention, and compared with what the tree says of them.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from agentalign.training.attention import leaf_paths
from agentalign.training.logprobs import token_logprobs
from agentalign.training.model import Model
from agentalign.training.step import Pass, larger_budget
from agentalign.training.tree import TreeBatch

logger = logging.getLogger("agentalign")
TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.3, torch.bfloat16: 0.7}
"""Largest difference of a token's log-prob, in nats, that rounding explains. A wrong attention is off by several."""


def check_first(model: Model, batch: TreeBatch, passes: Sequence[Pass], max_tokens: int) -> None:
    """What a training looks at once, before its first backward: that trees are right, and that its micro-batches let them share."""
    check_tree(model, batch)
    if model.tree_capable and (advice := larger_budget(passes, max_tokens)):
        logger.warning(advice)


@torch.no_grad()
def check_tree(model: Model, batch: TreeBatch) -> float:
    """Compare, and give up trees on this model, loudly, where they differ. To be called inside `model.using`.

    Returns:
        The largest difference in nats; 0.0 where trees are not used anyway.
    """
    if not model.tree_capable:
        return 0.0
    in_tree, paths = model.label_logprobs(batch, model.hidden(batch)), leaf_paths(batch)
    attention = model.network.config._attn_implementation
    model.network.set_attn_implementation("sdpa")
    try:
        worst = max(_difference(model, batch, path.to(model.device), in_tree) for path in (paths[0], paths[-1]))
    finally:
        model.network.set_attn_implementation(attention)
    if worst > TOLERANCE[model.dtype]:
        text = "%s scores a path otherwise in a tree than alone (by %.3g nats): this training goes on without shared prefixes, more slowly"
        logger.warning(text, model.base.name, worst)
        model.give_up_trees()
    return worst


def _difference(model: Model, batch: TreeBatch, path: Tensor, in_tree: Tensor) -> float:
    labels = torch.isin(batch.labels, path)
    if not labels.any():
        return 0.0
    places = torch.zeros(batch.n_tokens, dtype=torch.long, device=model.device)
    places[path] = torch.arange(len(path), device=model.device)
    targets = batch.labels[labels]
    with model.precision():
        states = model.backbone(input_ids=batch.tokens[path][None], use_cache=False).last_hidden_state[0]
    alone = token_logprobs(states[places[targets] - 1], model.head_weight, batch.tokens[targets])
    return float((alone - in_tree[labels]).abs().max())
