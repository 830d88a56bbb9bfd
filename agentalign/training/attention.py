"""Tree attention: a token sees exactly its ancestors and itself.

On a CPU `cpu_attention` computes it, on a GPU `cuda_attention`; here stands the form that works anywhere. Per segment, queries are
its own rows, keys and values are its ancestors' rows and its own, which lie in order of depth; so plain causal attention with the
layer's own sliding window is right by construction. Registered under `TREE_ATTENTION` in transformers' AttentionInterface: a name
without a mask function makes the model pass `attention_mask=None` and hand extra keyword arguments down to us. Surprise: one 4-D mask
for the whole batch would be silently wrong on sliding-window models, and no mask at all can make recurrent or convolutional layers
tree-shaped; those models take padded rows instead (`tree_capable`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig

from agentalign.errors import ModelError
from agentalign.training.cpu_attention import CpuTreeAttention
from agentalign.training.cuda_attention import FlashKernel, FlashTreeAttention, flash_works
from agentalign.training.tree import Segment, TreeBatch

TREE_ATTENTION = "agentalign_tree"
TREE_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class TreeRefusedError(ModelError):
    """A layer that tree attention does not compute. `Model.hidden` answers it: padded rows from there on."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    agentalign_tree: TreeBatch,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers.

    Args:
        query: (1, heads, T, d).
        key, value: (1, kv heads, T, d).
        attention_mask: always None here.
        scaling: factor on the scores.
        agentalign_tree: the batch whose T rows these are.
        dropout: must be 0; trees are exact only without it.
        sliding_window: the layer's window in tokens, itself included; None for full attention.

    Returns:
        (1, T, heads, d), None.
    """
    if attention_mask is not None or dropout:
        raise ModelError("tree attention takes neither a mask nor attention dropout; set attention_dropout to 0 in the base's config.")
    odd = [name for name in ("softcap", "s_aux", "position_bias") if extra.get(name) is not None]
    if odd:
        raise TreeRefusedError(f"{type(module).__name__} attends with {odd[0]}, which tree attention does not compute")
    if query.device.type == "cpu":
        mixed: Tensor = CpuTreeAttention.apply(query[0], key[0], value[0], agentalign_tree, scaling, sliding_window)  # type: ignore[no-untyped-call]
        return mixed[None], None
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (side.to(torch.get_autocast_dtype(query.device.type)) for side in (query, key, value))
    deep = sliding_window is not None and sliding_window < agentalign_tree.deepest
    if not deep and flash_works(query.device, query.dtype, query.shape[3]):
        sides = (side[0].transpose(0, 1) for side in (query, key, value))
        flash: Tensor = FlashTreeAttention.apply(*sides, agentalign_tree, scaling, FlashKernel())  # type: ignore[no-untyped-call]
        return flash[None], None
    return _sdpa_tree_attention(query, key, value, agentalign_tree, scaling, sliding_window), None


def _sdpa_tree_attention(query: Tensor, key: Tensor, value: Tensor, tree: TreeBatch, scaling: float, window: int | None) -> Tensor:
    outputs = []
    for segment in tree.segments:
        rows, spans = slice(segment.start, segment.end), (*segment.ancestors, (segment.start, segment.end))
        keys, values = (torch.cat([side[:, :, a:b] for a, b in spans], dim=2) for side in (key, value))
        mask = _mask(tree, segment, rows, window, query)
        plain = mask is None
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, rows], keys, values, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _mask(tree: TreeBatch, segment: Segment, rows: slice, window: int | None, like: Tensor) -> Tensor | None:
    """(rows, keys) of 0 and -inf; None where torch's own (top-left aligned) causal flag says the same: a root that fits the window."""
    first = segment.depth + rows.start - segment.start
    size = rows.stop - rows.start
    if first == 0 and (window is None or size <= window):
        return None
    name = (rows.start, window, like.dtype)
    found = tree.masks.get(name)
    if found is None:
        queries = torch.arange(first, first + size, device=like.device)[:, None]
        keys = torch.arange(first + size, device=like.device)[None, :]
        visible = keys <= queries
        if window is not None:
            visible &= queries - keys < window
        found = torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))
        tree.masks[name] = found
    return found


def tree_capable(config: PretrainedConfig) -> bool:
    """True where, by its config, every layer is full or sliding-window attention.

    Hybrids (linear attention, convolution, recurrence), chunked attention and score soft-caps are not: packed in a tree they would be
    silently wrong (measured: recurrent state leaks from one branch into the next). Attention sinks stand in no config: what has them
    is refused at its first forward (`TreeRefusedError`), and what else only looks like one that we know is found by `tree_check`.
    """
    settings = config.to_dict()
    layer_types = settings.get("layer_types")
    if layer_types is not None:
        return set(layer_types) <= TREE_LAYER_TYPES and not settings.get("attn_logit_softcapping")
    known = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "smollm3", "olmo2", "granite"}
    return settings.get("model_type") in known and not settings.get("attn_logit_softcapping")


def leaf_paths(tree: TreeBatch) -> list[Tensor]:
    """(L_i,) row indices of every root-to-leaf path: the separate sequences a model without tree attention gets."""
    inner = {span for segment in tree.segments for span in segment.ancestors}
    return [
        torch.cat([torch.arange(a, b) for a, b in (*segment.ancestors, (segment.start, segment.end))])
        for segment in tree.segments
        if (segment.start, segment.end) not in inner
    ]


AttentionInterface.register(TREE_ATTENTION, tree_attention)
