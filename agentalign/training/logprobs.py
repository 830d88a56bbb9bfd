"""Token log-probabilities at chosen positions, without a T x V matrix that lives until the backward.

log p(y | h) depends on the hidden row h alone, so its gradient with respect to h is known in the forward; it is computed there,
chunk by chunk, and only multiplied in the backward. Two matrix products with the head instead of three, and no recomputation.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 512


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, keep_gradient: bool) -> Tensor:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        rows = torch.empty_like(hidden) if keep_gradient else None
        for start in range(0, len(targets), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            wanted = targets[chunk, None]
            logits = (hidden[chunk] @ head.t()).float()  # (C, V)
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)
            logprobs[chunk] = (logits.gather(1, wanted) - log_z).squeeze(1)
            if rows is not None:
                # d log p / d h = W[y] - softmax(z) @ W
                logits.sub_(log_z).exp_()
                logits.scatter_add_(1, wanted, logits.new_full(wanted.shape, -1.0))
                rows[chunk] = (logits.to(head.dtype) @ head).neg_()
        if rows is not None:
            ctx.save_for_backward(rows)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        return rows * gradients[0].unsqueeze(1).to(rows.dtype), None, None, None


def token_logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target under softmax(hidden @ head.T), in nats, fp32.

    Args:
        hidden: (U, H) rows that predict the targets, after the model's final norm.
        head: (V, H) frozen output matrix; gradients do not reach it.
        targets: (U,) token ids.

    Returns:
        (U,) log-probabilities, differentiable with respect to `hidden`.
    """
    keep = torch.is_grad_enabled() and hidden.requires_grad
    result: Tensor = _TokenLogprobs.apply(hidden.to(head.dtype), head, targets, keep)  # type: ignore[no-untyped-call]
    return result
