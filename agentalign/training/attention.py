"""Tree attention: a token sees exactly its ancestors and itself.

Per segment, queries are its own rows, keys and values are its ancestors' rows and its own, which lie in order of depth; so plain
causal attention with the layer's own sliding window is right by construction. Registered under `TREE_ATTENTION` in transformers'
AttentionInterface: a name without a mask function makes the model pass `attention_mask=None` and hand extra keyword arguments down
to us. Surprise: one 4-D mask for the whole batch would be silently wrong on sliding-window models, and no mask at all can make
recurrent or convolutional layers tree-shaped; those models take padded rows instead (`tree_capable`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig

from agentalign.errors import ModelError
from agentalign.training.tree import Segment, TreeBatch

TREE_ATTENTION = "agentalign_tree"
TREE_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
BLOCK_ROWS = 128
"""Queries computed at once on a CPU: small enough to skip most of the upper triangle, large enough for fast products."""


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
        raise ModelError(f"{type(module).__name__} attends with {odd[0]}, which tree attention does not compute; choose another base.")
    if query.device.type == "cpu":
        mixed: Tensor = _CpuTreeAttention.apply(query[0], key[0], value[0], agentalign_tree, scaling, sliding_window)  # type: ignore[no-untyped-call]
        return mixed[None], None
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


class _Block(NamedTuple):
    """Some rows of a segment and how many of its keys they can see."""

    rows: slice
    visible: int


def _blocks(segment: Segment) -> Iterator[_Block]:
    for start in range(segment.start, segment.end, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, segment.end)
        yield _Block(slice(start, end), segment.depth + end - segment.start)


class _CpuTreeAttention(torch.autograd.Function):
    """All segments of one layer in one node of the autograd graph.

    torch's CPU flash kernel reaches a fifth of the speed of a bf16 matrix product here, and a graph node per segment would
    write a zero-filled (T, d) gradient for every slice. Scores are recomputed in the backward, so nothing T x T is kept.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TreeBatch, scaling: float, window: int | None) -> Tensor:
        heads, size, width = query.shape
        groups = heads // key.shape[0]
        output = query.new_empty(size, heads, width)
        for segment in tree.segments:
            keys, values = _gather(key, segment), _gather(value, segment)
            for block in _blocks(segment):
                weights = _weights(_rows(query, block, groups), keys[:, : block.visible], tree, segment, block, scaling, window)
                mixed = torch.bmm(weights.to(value.dtype), values[:, : block.visible])  # (kv heads, groups x rows, d)
                output[block.rows] = mixed.view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.settings = (tree, scaling, window)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value = ctx.saved_tensors
        tree, scaling, window = ctx.settings
        heads, _, width = query.shape
        groups = heads // key.shape[0]
        upstream = gradients[0].transpose(0, 1)  # (heads, T, d)
        d_query = torch.empty_like(query)
        # Shared ancestors collect from every branch: summed in fp32, or many small parts would be lost to rounding.
        d_key, d_value = (torch.zeros(side.shape, dtype=torch.float32) for side in (key, value))
        for segment in tree.segments:
            keys, values = _gather(key, segment), _gather(value, segment)
            d_keys, d_values = (torch.zeros(keys.shape, dtype=torch.float32) for _ in range(2))
            for block in _blocks(segment):
                seen = block.visible
                rows, d_out = _rows(query, block, groups), _rows(upstream, block, groups)
                weights = _weights(rows, keys[:, :seen], tree, segment, block, scaling, window)
                d_values[:, :seen] += torch.bmm(weights.to(value.dtype).transpose(1, 2), d_out)
                d_weights = torch.bmm(d_out, values[:, :seen].transpose(1, 2)).float()
                inner = (d_weights.mul_(weights)).sum(dim=-1, keepdim=True)
                d_scores = d_weights.addcmul_(weights, inner, value=-1.0).mul_(scaling).to(query.dtype)
                d_query[:, block.rows] = torch.bmm(d_scores, keys[:, :seen]).view(heads, -1, width)
                d_keys[:, :seen] += torch.bmm(d_scores.transpose(1, 2), rows)
            _scatter(d_key, d_keys, segment)
            _scatter(d_value, d_values, segment)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _gather(side: Tensor, segment: Segment) -> Tensor:
    """(kv heads, depth + own, d) keys or values of the ancestors and the segment, in order of depth."""
    own = side[:, segment.start : segment.end]
    return torch.cat([*(side[:, a:b] for a, b in segment.ancestors), own], dim=1) if segment.ancestors else own


def _scatter(total: Tensor, part: Tensor, segment: Segment) -> None:
    at = 0
    for a, b in (*segment.ancestors, (segment.start, segment.end)):
        total[:, a:b] += part[:, at : at + b - a]
        at += b - a


def _rows(query: Tensor, block: _Block, groups: int) -> Tensor:
    """(kv heads, groups x rows, d): the query heads that share a key head stand under each other, so no key is copied."""
    heads, _, width = query.shape
    return query[:, block.rows].reshape(heads // groups, -1, width)


def _weights(rows: Tensor, keys: Tensor, tree: TreeBatch, segment: Segment, block: _Block, scaling: float, window: int | None) -> Tensor:
    """(kv heads, groups x rows, keys) softmax of the scores, fp32."""
    scores = torch.bmm(rows, keys.transpose(1, 2)).float().mul_(scaling)
    mask = _mask(tree, segment, block.rows, window, scores)
    if mask is None:
        size = block.rows.stop - block.rows.start
        mask = torch.full((size, size), float("-inf")).triu_(1)
    seen = mask.shape[1]
    view = scores.view(scores.shape[0], -1, mask.shape[0], scores.shape[2])
    view[..., scores.shape[2] - seen :] += mask
    return torch.softmax(scores, dim=-1)


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
    """True where every layer is full or sliding-window attention without extras that our attention does not compute.

    Hybrids (linear attention, convolution, recurrence), chunked attention, score soft-caps and attention sinks are not: packed in a
    tree they would be silently wrong (measured: recurrent state leaks from one branch into the next).
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
