"""Token log-probabilities against torch's own, values and gradients, over chunk borders."""

import pytest
import torch

from agentalign.training import logprobs
from agentalign.training.logprobs import token_logprobs


@pytest.mark.parametrize("rows", [1, 7, 16, 33])
def test_values_and_gradients_equal_log_softmax(rows, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", 8)
    draw = torch.Generator().manual_seed(rows)
    head = torch.randn(50, 12, generator=draw)
    targets = torch.randint(0, 50, (rows,), generator=draw)
    weights = torch.randn(rows, generator=draw)
    hidden = torch.randn(rows, 12, generator=draw).requires_grad_()
    expected = (hidden @ head.t()).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    (expected * weights).sum().backward()
    gradient, hidden.grad = hidden.grad, None
    found = token_logprobs(hidden, head, targets)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.grad, gradient, atol=1e-5, rtol=0)


def test_huge_logits_stay_finite():
    found = token_logprobs(torch.full((1, 4), 1e4), torch.eye(4) * 1e3, torch.tensor([2]))
    assert torch.isfinite(found).all()


def test_no_gradient_is_kept_without_need():
    assert not token_logprobs(torch.randn(2, 4), torch.randn(9, 4), torch.tensor([1, 2])).requires_grad
