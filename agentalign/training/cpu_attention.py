"""Tree attention on a CPU: a layer is one node of the autograd graph, computed in few large blocks of queries.

Depth first, a subtree is a run of neighbouring rows, and all of it sees the same ancestors. So small subtrees that hang side by side
become one block: one product against their common ancestors, and a mask among themselves. torch's CPU flash kernel reaches half of the
speed of these products, and a graph node per segment would write a zero-filled (T, d) gradient for every slice. Surprise: scores are
recomputed in the backward, so nothing T x T is kept; what a softmax's gradient needs per row is already in its output.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agentalign.training.tree import Segment, TreeBatch, subtree_ends

BLOCK_ROWS = 192
"""Most queries of a block: small enough to skip most of the upper triangle, large enough for fast products."""


class Block(NamedTuple):
    """Neighbouring queries whose keys are `spans`, the last `own` of them with a mask."""

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]
    """Rows of the keys, in order of depth; neighbouring spans are joined."""
    own: int
    """How many of the last keys are not plainly ancestors of every query."""

    @property
    def rows(self) -> slice:
        """The queries."""
        return slice(self.start, self.end)


@lru_cache(maxsize=16)
def plan_blocks(segments: tuple[Segment, ...]) -> tuple[Block, ...]:
    """Blocks that cover every row once, in order."""
    return tuple(_blocks(segments))


def _blocks(segments: tuple[Segment, ...]) -> Iterator[Block]:
    ends = subtree_ends(segments)
    at_row = {segment.start: i for i, segment in enumerate(segments)} | {segments[-1].end: len(segments)}
    at = 0
    while at < len(segments):
        first = segments[at]
        if ends[at] - first.start <= BLOCK_ROWS:
            end = first.start
            while at < len(segments) and segments[at].ancestors == first.ancestors and ends[at] - first.start <= BLOCK_ROWS:
                end = ends[at]
                at = at_row[end]
            yield _block(first.start, end, first)
        else:
            pieces = -(-(first.end - first.start) // BLOCK_ROWS)
            edges = [first.start + (first.end - first.start) * i // pieces for i in range(pieces + 1)]
            for start, end in itertools.pairwise(edges):
                yield _block(start, end, first)
            at += 1


def _block(start: int, end: int, first: Segment) -> Block:
    spans: list[tuple[int, int]] = []
    for a, b in (*first.ancestors, (first.start, end)):
        if spans and spans[-1][1] == a:
            spans[-1] = (spans[-1][0], b)
        else:
            spans.append((a, b))
    return Block(start, end, tuple(spans), end - first.start)


def _mask(tree: TreeBatch, block: Block, window: int | None) -> Tensor:
    """(rows, keys) of 0 and -inf over the block's last keys: its own ones, or with a window all of them."""
    name = (block.start, window, torch.float32)
    found = tree.masks.get(name)
    if found is None:
        keys = torch.cat([torch.arange(a, b) for a, b in block.spans])
        if window is None:
            keys = keys[-block.own :]
        queries = torch.arange(block.start, block.end)[:, None]
        behind = torch.empty(tree.n_tokens, dtype=torch.long)
        for segment, end in zip(tree.segments, subtree_ends(tree.segments), strict=True):
            behind[segment.start : segment.end] = end
        # Depth first, k is an ancestor of q exactly where q stands in k's subtree.
        visible = (keys <= queries) & (queries < behind[keys])
        if window is not None:
            visible &= tree.positions[queries] - tree.positions[keys] < window
        found = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
        tree.masks[name] = found
    return found


def _gather(side: Tensor, block: Block) -> Tensor:
    """(kv heads, keys, d) of the block's keys or values."""
    if len(block.spans) == 1:
        return side[:, block.spans[0][0] : block.spans[0][1]]
    return torch.cat([side[:, a:b] for a, b in block.spans], dim=1)


def _scatter(total: Tensor, part: Tensor, block: Block) -> None:
    at = 0
    for a, b in block.spans:
        total[:, a:b] += part[:, at : at + b - a]
        at += b - a


def _rows(side: Tensor, block: Block, kv_heads: int) -> Tensor:
    """(kv heads, groups x rows, d): the query heads that share a key head stand under each other, so no key is copied."""
    return side[:, block.rows].reshape(kv_heads, -1, side.shape[2])


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """Factor x left @ right, the factor for free."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=factor)


def _weights(rows: Tensor, keys: Tensor, tree: TreeBatch, block: Block, scaling: float, window: int | None) -> Tensor:
    """(kv heads, groups x rows, keys) softmax of the scores, fp32."""
    scores = _product(rows, keys.transpose(1, 2), scaling).float()
    mask = _mask(tree, block, window)
    scores.view(scores.shape[0], -1, *mask.shape[:1], scores.shape[2])[..., scores.shape[2] - mask.shape[1] :] += mask
    return torch.softmax(scores, dim=-1)


class CpuTreeAttention(torch.autograd.Function):
    """query (heads, T, d), key and value (kv heads, T, d), tree, scaling, window -> (T, heads, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TreeBatch, scaling: float, window: int | None) -> Tensor:
        """See the class."""
        heads, size, width = query.shape
        output = query.new_empty(size, heads, width)
        for block in plan_blocks(tree.segments):
            weights = _weights(_rows(query, block, key.shape[0]), _gather(key, block), tree, block, scaling, window)
            mixed = torch.bmm(weights.to(value.dtype), _gather(value, block))  # (kv heads, groups x rows, d)
            output[block.rows] = mixed.view(heads, -1, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value, output)
        ctx.settings = (tree, scaling, window)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients of query, key and value."""
        query, key, value, output = ctx.saved_tensors
        tree, scaling, window = ctx.settings
        heads, _, width = query.shape
        kv_heads = key.shape[0]
        upstream = gradients[0].transpose(0, 1)  # (heads, T, d)
        # sum_k w_k dL/dw_k = dL/do . o: a row's dot product in place of a pass over its scores.
        inner = (gradients[0].float() * output.float()).sum(dim=-1).t()[..., None]  # (heads, T, 1)
        d_query = torch.empty_like(query)
        # Shared ancestors collect from every branch: summed in fp32, or many small parts would be lost to rounding.
        d_key, d_value = (torch.zeros(side.shape, dtype=torch.float32) for side in (key, value))
        for block in plan_blocks(tree.segments):
            keys, values = _gather(key, block), _gather(value, block)
            rows, d_out = _rows(query, block, kv_heads), _rows(upstream, block, kv_heads)
            weights = _weights(rows, keys, tree, block, scaling, window)
            _scatter(d_value, torch.bmm(weights.to(value.dtype).transpose(1, 2), d_out), block)
            d_scores = torch.bmm(d_out, values.transpose(1, 2)).float().sub_(_rows(inner, block, kv_heads)).mul_(weights).to(query.dtype)
            d_query[:, block.rows] = _product(d_scores, keys, scaling).view(heads, -1, width)
            _scatter(d_key, _product(d_scores.transpose(1, 2), rows, scaling), block)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None
