"""Tree attention in parts: put together, output and gradients are those of one masked attention. The GPU's own kernels: test_gpu.py."""

import torch

from agentalign.training.cpu_attention import CpuTreeAttention
from agentalign.training.cuda_attention import FlashTreeAttention, flash_works, plan_parts, probe
from agentalign.training.tree import Segment, build_tree
from tests.test_attention import three_levels_deep

CPU = torch.device("cpu")


class PlainKernel:
    """What a flash kernel computes, by its definition: per sequence, and in the backward from the whole output and log-sum-exp."""

    def sequences(self, query, key, value, part):
        groups = query.shape[1] // key.shape[1]
        for i in range(len(part.q_edges) - 1):
            q, k = (slice(int(edges[i]), int(edges[i + 1])) for edges in (part.q_edges, part.k_edges))
            keys, values = (side[k].repeat_interleave(groups, dim=1) for side in (key, value))
            hidden = torch.ones(q.stop - q.start, k.stop - k.start).triu(1).bool() if part.causal else None
            yield q, k, query[q], keys, values, hidden, groups

    def scores(self, query, keys, hidden, scale):
        found = torch.einsum("qhd,khd->hqk", query, keys) * scale
        return found if hidden is None else found.masked_fill(hidden, float("-inf"))

    def forward(self, query, key, value, part, scale):
        out, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
        for q, _, queries, keys, values, hidden, _ in self.sequences(query, key, value, part):
            scores = self.scores(queries, keys, hidden, scale)
            out[q], lse[:, q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1)
        return out, lse

    def backward(self, d_out, query, key, value, out, lse, part, scale):
        found = [torch.zeros_like(side) for side in (query, key, value)]
        for q, k, queries, keys, values, hidden, groups in self.sequences(query, key, value, part):
            weights = (self.scores(queries, keys, hidden, scale) - lse[:, q, None]).exp()
            inner = (d_out[q] * out[q]).sum(-1).t()[..., None]
            d_scores = weights * (torch.einsum("qhd,khd->hqk", d_out[q], values) - inner) * scale
            found[0][q] = torch.einsum("hqk,khd->qhd", d_scores, keys)
            for total, share in (
                (found[1], torch.einsum("hqk,qhd->khd", d_scores, queries)),
                (found[2], torch.einsum("hqk,qhd->khd", weights, d_out[q])),
            ):
                total[k] = share.view(len(share), -1, groups, share.shape[-1]).sum(2)
        return tuple(found)


def test_parts_put_together_are_the_attention_over_the_tree():
    tree = build_tree(three_levels_deep())
    draw = torch.Generator().manual_seed(1)
    query, key, value, weight = (torch.randn(tree.n_tokens, heads, 8, generator=draw) for heads in (4, 2, 2, 4))
    found = []
    for attend in (
        lambda q, k, v: FlashTreeAttention.apply(q, k, v, tree, 0.3, PlainKernel()),
        lambda q, k, v: CpuTreeAttention.apply(*(side.transpose(0, 1) for side in (q, k, v)), tree, 0.3, None),
    ):
        sides = [side.clone().requires_grad_() for side in (query, key, value)]
        out = attend(*sides)
        found.append([out, *torch.autograd.grad(out, sides, weight)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_every_ancestor_is_seen_once_and_no_key_is_copied():
    tree = build_tree(three_levels_deep())
    seen = torch.zeros(tree.n_tokens, tree.n_tokens, dtype=torch.int)
    for part in plan_parts(tree.segments, CPU):
        assert len(part.queries.unique()) == len(part.queries)
        assert len(part.keys.unique()) == len(part.keys), "a key stands twice in one call"
        for i in range(len(part.q_edges) - 1):
            rows, columns = part.queries[part.q_edges[i] : part.q_edges[i + 1]], part.keys[part.k_edges[i] : part.k_edges[i + 1]]
            seen[rows[:, None], columns[None]] += 1
    expected = torch.zeros_like(seen)
    for segment in tree.segments:
        for a, b in (*segment.ancestors, (segment.start, segment.end)):
            expected[segment.start : segment.end, a:b] = 1
    assert torch.equal(seen, expected)


def test_no_call_says_that_every_query_stands_alone():
    segments = (Segment(0, 5, (), 0), Segment(5, 6, ((0, 5),), 5))
    assert [part.max_q for part in plan_parts(segments, CPU)] == [5, 2]


def test_the_probe_passes_a_right_kernel_and_finds_a_wrong_one():
    class OwnSoftmax(PlainKernel):
        """A kernel whose backward knows of its own part only."""

        def backward(self, d_out, query, key, value, out, lse, part, scale):
            own_out, own_lse = self.forward(query, key, value, part, scale)
            return super().backward(d_out, query, key, value, own_out, own_lse, part, scale)

    assert probe(PlainKernel(), CPU, torch.float32, 16) < 1e-5
    assert probe(OwnSoftmax(), CPU, torch.float32, 16) > 0.05


def test_without_a_gpu_flash_is_not_tried():
    assert not flash_works(CPU, torch.bfloat16, 64)
