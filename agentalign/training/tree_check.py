"""The self-check before anything is computed by trees: an architecture that only looks like one that we know must not be trained wrongly.

Two paths of a tree are scored by themselves, by transformers' own attention, and compared with what the tree says of them. Surprise: the
first step is not the first to use a tree. What a reference or an old policy said is read before it, and kept for later trainings.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from agentalign.training import ranks
from agentalign.training.attention import leaf_paths
from agentalign.training.logprobs import token_logprobs
from agentalign.training.memory import halved, is_out_of_memory
from agentalign.training.model import Model
from agentalign.training.step import Pass, larger_budget
from agentalign.training.tree import RunLike, TreeBatch, build_tree, pack

logger = logging.getLogger("agentalign")
TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.3, torch.bfloat16: 0.7}
"""Largest difference of a token's log-prob, in nats, that rounding explains. A wrong attention is off by several."""


def check_first(model: Model, batch: TreeBatch, passes: Sequence[Pass], max_tokens: int) -> None:
    """What a training looks at once, before its first backward: that trees are right, and that its micro-batches let them share."""
    check_tree(model, batch)
    if model.tree_capable and (advice := larger_budget(passes, max_tokens)):
        logger.warning(advice)


def settle_trees(model: Model, adapter: str, runs: Sequence[RunLike], *, max_tokens: int) -> None:
    """Find trees right on some of these runs, or give them up in every process. To be called by all processes, with the same runs.

    What is looked at depends on the runs alone, never on what is known of them already: a training that is taken up again must decide
    as it did. Where one run alone does not fit into memory nothing is found out; whoever computes it says so.
    """

    def batches(budget: int) -> list[list[RunLike]]:
        return pack(runs, max_tokens=budget, runs_of=lambda run: [run])

    budget: int | None = max_tokens
    while budget and runs and model.tree_capable and model.paths_checked < 2:
        try:
            with model.using(adapter):
                check_tree(model, _branching(batches(budget)).to(model.device))
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        budget = halved(budget, lambda tokens: len(batches(tokens)))
    if not all(ranks.gathered(model.tree_capable)) and model.tree_capable:
        model.give_up_trees()


def _branching(batches: Sequence[Sequence[RunLike]]) -> TreeBatch:
    """The first tree that branches; the first one where none does."""
    trees = (build_tree(some) for some in batches)
    return next((tree for tree in trees if len(leaf_paths(tree)) > 1), None) or build_tree(batches[0])


@torch.no_grad()
def check_tree(model: Model, batch: TreeBatch) -> float:
    """Compare, and give up trees on this model, loudly, where they differ. To be called inside `model.using`.

    Returns:
        The largest difference in nats; 0.0 where trees are not used anyway, or were found right on as many paths.
    """
    paths = leaf_paths(batch)
    if not model.tree_capable or model.paths_checked >= min(2, len(paths)):
        return 0.0
    in_tree = model.label_logprobs(batch, model.hidden(batch))
    attention = model.network.config._attn_implementation
    model.network.set_attn_implementation(model.plain_attention)
    try:
        worst = max(_difference(model, batch, path.to(model.device), in_tree) for path in (paths[0], paths[-1]))
    finally:
        model.network.set_attn_implementation(attention)
    if worst > TOLERANCE[model.dtype]:
        text = "%s scores a path otherwise in a tree than alone (by %.3g nats): from here on no prefix is shared, which is slower"
        logger.warning(text, model.base.name, worst)
        model.give_up_trees()
    model.paths_checked = min(2, len(paths))
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
