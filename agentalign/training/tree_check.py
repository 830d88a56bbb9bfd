"""The self-check before anything is computed by trees: an architecture that only looks like one that we know must not be trained wrongly.

Two paths of a tree are scored by themselves, by transformers' own attention, and compared with what the tree says of them. Surprise: the
first step is not the first to use a tree. What a reference or an old policy said is read before it, and kept for later trainings.
"""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from agentalign.training import ranks
from agentalign.training.attention import leaf_paths
from agentalign.training.logprobs import token_logprobs
from agentalign.training.memory import halved, smaller_may_fit
from agentalign.training.model import Model
from agentalign.training.step import Pass, larger_budget
from agentalign.training.tree import RunLike, TreeBatch, build_tree, pack

logger = logging.getLogger("agentalign")
TOLERANCE = {torch.float32: 1e-2, torch.float16: 0.3, torch.bfloat16: 0.7}
"""Largest difference of one token's log-prob, in nats, that rounding explains. In 16 bits a wrong attention can stay below it on every
token of a small model; what is off everywhere by little is found by the mean, and what is off by less than rounding in fp32 alone."""
MEAN_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""The same of their mean. Drawn weights of an 8B shape, which make much of a rounding, were off by 0.035 in the median in bf16."""


def check_trees(model: Model, trees: Sequence[TreeBatch]) -> None:
    """What a training looks at before a backward: the first tree that branches, once; until there is one, the first of all."""
    if model.tree_capable and model.paths_checked < 2:
        tree = _branching(trees)
        if not model.paths_checked or len(leaf_paths(tree)) > 1:
            check_tree(model, tree.to(model.device))


def advise(model: Model, passes: Sequence[Pass], max_tokens: int) -> bool:
    """Say where micro-batches are too small for what their runs share; always True: it was looked at, and once is enough."""
    if model.tree_capable and (advice := larger_budget(passes, max_tokens)):
        logger.warning(advice)
    return True


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
                check_tree(model, _branching(build_tree(some) for some in batches(budget)).to(model.device))
            break
        except (RuntimeError, MemoryError) as error:
            smaller_may_fit(error)
        budget = halved(budget, lambda tokens: len(batches(tokens)))
    if not all(ranks.gathered(model.tree_capable)) and model.tree_capable:
        model.give_up_trees()


def _branching(trees: Iterable[TreeBatch]) -> TreeBatch:
    """The first tree that branches; the first one where none does. No more are made than are looked at."""
    made = iter(trees)
    first = next(made)
    return first if len(leaf_paths(first)) > 1 else next((tree for tree in made if len(leaf_paths(tree)) > 1), first)


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
        off = torch.cat([_differences(model, batch, path.to(model.device), in_tree) for path in (paths[0], paths[-1])])
    finally:
        model.network.set_attn_implementation(attention)
    worst, mean = (float(off.max()), float(off.mean())) if len(off) else (0.0, 0.0)
    # Not "more than": a difference that is no number is no agreement.
    if not (worst <= TOLERANCE[model.dtype] and mean <= MEAN_TOLERANCE[model.dtype]):
        text = "%s scores a path otherwise in a tree than alone (by %.3g nats, %.3g in the mean): no prefix is shared from here on"
        logger.warning(text, model.base.name, worst, mean)
        model.give_up_trees()
    model.paths_checked = min(2, len(paths))
    return worst


def _differences(model: Model, batch: TreeBatch, path: Tensor, in_tree: Tensor) -> Tensor:
    """(labels of the path,) absolute, in nats."""
    labels = torch.isin(batch.labels, path)
    if not labels.any():
        return torch.empty(0, device=model.device)
    places = torch.zeros(batch.n_tokens, dtype=torch.long, device=model.device)
    places[path] = torch.arange(len(path), device=model.device)
    targets = batch.labels[labels]
    with model.precision():
        states = model.backbone(input_ids=batch.tokens[path][None], use_cache=False).last_hidden_state[0]
    alone = token_logprobs(states[places[targets] - 1], model.head_weight, batch.tokens[targets])
    inside = in_tree[labels]
    return (alone - inside).abs().masked_fill(alone.isnan() & inside.isnan(), 0.0)  # what is no number either way is not the tree's fault
