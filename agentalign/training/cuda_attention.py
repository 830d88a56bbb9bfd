"""Tree attention on a GPU, by flash kernels without a mask and without a copy of any key.

A segment's queries see their own segment causally and every ancestor in full. Depth first, the descendants of a node are neighbouring
rows, so one variable-length call per level of the tree computes "all descendants against their ancestor of this level", and one more
"every segment against itself". The parts are put together by their log-sum-exps. Surprise: the backward needs no more than that: given
the *whole* output and log-sum-exp, a flash kernel's backward over a part returns exactly that part's share of the gradient.
Left out: sliding windows that are shorter than the tree is deep, which flash aligns to a part and not to the path.
"""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from agentalign.training.memory import is_out_of_memory
from agentalign.training.tree import Segment, TreeBatch, subtree_ends

logger = logging.getLogger("agentalign")
MAX_HEAD_DIM = 256
"""What torch's flash kernels take."""


class Part(NamedTuple):
    """One variable-length call: sequence i's queries are rows [q_edges[i], q_edges[i + 1]) of `queries`, its keys likewise."""

    queries: Tensor
    """(Q,) rows of the tree."""
    keys: Tensor
    """(K,) rows of the tree."""
    q_edges: Tensor
    """(N + 1,) int32."""
    k_edges: Tensor
    """(N + 1,) int32."""
    max_q: int
    max_k: int
    causal: bool
    """Queries and keys are the same rows."""


class Kernel(Protocol):
    """A flash kernel over one part. Shapes: query, out (Q, heads, d), key, value (K, kv heads, d), lse (heads, Q)."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of the part."""

    def backward(
        self, d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part's share of the gradients of query, key and value; `out` and `lse` are those of the whole softmax."""


class FlashKernel:
    """torch's own, for bfloat16 and float16."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        edges = (part.q_edges, part.k_edges, part.max_q, part.max_k)
        found = torch.ops.aten._flash_attention_forward(query, key, value, *edges, 0.0, part.causal, False, scale=scale)
        return found[0], found[1]

    def backward(
        self, d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, part: Part, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Kernel`."""
        edges = (part.q_edges, part.k_edges, part.max_q, part.max_k)
        state = (torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device))  # of dropout: none
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            d_out, query, key, value, out, lse, *edges, 0.0, part.causal, *state, scale=scale
        )
        return found


@lru_cache(maxsize=16)
def plan_parts(segments: tuple[Segment, ...], device: torch.device) -> tuple[Part, ...]:
    """Every segment against itself, then level by level all descendants against their ancestor."""
    ends = subtree_ends(segments)
    own = [(segment.start, segment.end) for segment in segments]
    parts = [_part(own, own, device, causal=True)]
    for level in range(max(len(segment.ancestors) for segment in segments)):
        nodes = [(s, end) for s, end in zip(segments, ends, strict=True) if len(s.ancestors) == level and end > s.end]
        parts.append(_part([(s.end, end) for s, end in nodes], [(s.start, s.end) for s, _ in nodes], device, causal=False))
    return tuple(parts)


def _part(queries: Sequence[tuple[int, int]], keys: Sequence[tuple[int, int]], device: torch.device, *, causal: bool) -> Part:
    def rows(spans: Sequence[tuple[int, int]]) -> Tensor:
        return torch.cat([torch.arange(a, b) for a, b in spans]).to(device)

    def edges(spans: Sequence[tuple[int, int]]) -> Tensor:
        return torch.tensor([0, *(b - a for a, b in spans)]).cumsum(0).to(device, torch.int32)

    longest = [max(b - a for a, b in spans) for spans in (queries, keys)]
    # Never "one row at most": there flash attention swaps heads and rows to decode faster, and its log-sum-exp comes in another order.
    return Part(rows(queries), rows(keys), edges(queries), edges(keys), max(2, longest[0]), longest[1], causal)


class FlashTreeAttention(torch.autograd.Function):
    """query (T, heads, d), key and value (T, kv heads, d), tree, scaling, kernel -> (T, heads, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TreeBatch, scaling: float, kernel: Kernel) -> Tensor:
        """See the class."""
        size, heads, _ = query.shape
        out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        lse = torch.full((heads, size), float("-inf"), device=query.device)
        for part in plan_parts(tree.segments, query.device):
            mixed, own = kernel.forward(query[part.queries], key[part.keys], value[part.keys], part, scaling)
            before = lse[:, part.queries]
            both = torch.logaddexp(before, own.float())
            kept, added = ((one - both).exp().t()[..., None] for one in (before, own.float()))
            out[part.queries] = out[part.queries] * kept + mixed.float() * added
            lse[:, part.queries] = both
        whole = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, whole, lse)
        ctx.settings = (tree, scaling, kernel)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients of query, key and value."""
        query, key, value, out, lse = ctx.saved_tensors
        tree, scaling, kernel = ctx.settings
        d_out = gradients[0].contiguous()
        # Summed in fp32: a shared ancestor collects from every branch.
        totals = [torch.zeros(side.shape, dtype=torch.float32, device=side.device) for side in (query, key, value)]
        for part in plan_parts(tree.segments, query.device):
            at, sides = part.queries, (key[part.keys], value[part.keys])
            shares = kernel.backward(d_out[at], query[at], *sides, out[at], lse[:, at].contiguous(), part, scaling)
            for total, share, rows in zip(totals, shares, (at, part.keys, part.keys), strict=True):
                total[rows] += share.float()  # rows are distinct within a part
        d_query, d_key, d_value = (total.to(query.dtype) for total in totals)
        return d_query, d_key, d_value, None, None, None


@lru_cache(maxsize=8)
def flash_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's kernels give the right output and gradients here, tried once on a small tree; said where they do not.

    The calls are not part of torch's public interface: another version or another card must cost speed, never a training.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim > MAX_HEAD_DIM:
        return False
    try:
        worst = probe(FlashKernel(), device, dtype, head_dim)
    except (RuntimeError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        logger.warning("flash attention cannot be used for trees here (%s); a slower attention takes its place", error)
        return False
    if worst > 0.05:
        logger.warning("flash attention over trees is off by %.3g on this device; a slower attention takes its place", worst)
        return False
    return True


def probe(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """Largest difference, relative to the largest value, of output and gradients on a small tree against plain fp32 attention."""
    segments = (
        Segment(0, 70, (), 0),
        Segment(70, 75, ((0, 70),), 70),
        Segment(75, 84, ((0, 70), (70, 75)), 75),
        Segment(84, 85, ((0, 70), (70, 75), (75, 84)), 84),
        Segment(85, 100, ((0, 70),), 70),
        Segment(100, 140, (), 0),
    )
    draw = torch.Generator().manual_seed(0)
    query, key, value, weight = (torch.randn(140, heads, head_dim, generator=draw) for heads in (4, 2, 2, 4))
    visible = torch.zeros(140, 140, dtype=torch.bool)
    for s in segments:
        for a, b in s.ancestors:
            visible[s.start : s.end, a:b] = True
        visible[s.start : s.end, s.start : s.end] = torch.ones(s.end - s.start, s.end - s.start).tril().bool()
    # Both see the same rounded numbers.
    inputs = [side.to(dtype) for side in (query, key, value, weight)]
    tree = _BareTree(segments)
    # The first call may come from inside a checkpointed layer, whose hooks must not see the probe's tensors.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), plain:
        found = _with_gradients([side.to(device) for side in inputs], lambda q, k, v: _flash(q, k, v, tree, 0.1, kernel))
        expected = _with_gradients([side.float() for side in inputs], lambda q, k, v: _plain(q, k, v, visible, 0.1))
    return max(float((a.cpu().float() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


class _BareTree(NamedTuple):
    segments: tuple[Segment, ...]


def _flash(query: Tensor, key: Tensor, value: Tensor, tree: _BareTree, scaling: float, kernel: Kernel) -> Tensor:
    out: Tensor = FlashTreeAttention.apply(query, key, value, tree, scaling, kernel)  # type: ignore[no-untyped-call]
    return out


def _with_gradients(inputs: Sequence[Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    query, key, value = (side.requires_grad_() for side in inputs[:3])
    out = attend(query, key, value)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), inputs[3])]


def _plain(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    keys, values = (side.repeat_interleave(groups, dim=1) for side in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scaling
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), values)
