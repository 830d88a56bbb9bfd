"""All losses: pure functions from tensors to one value per item.

No masks, no reductions, no models: `engine` sums and divides by the count of the whole optimizer step, which keeps gradient
accumulation exact. Log-probabilities are sums over the tokens the agent wrote; tool results never take part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]


def sft_loss(logprobs: Tensor) -> Tensor:
    """Cross-entropy: (M,) log-probabilities of trainable tokens -> (M,) losses in nats."""
    return -logprobs


def nll_loss(logprob_sums: Tensor) -> Tensor:
    """Negative log-likelihood of whole runs, summed and not averaged over tokens.

    The anchor of preference training (arXiv:2404.19733 uses the mean; here the sum, which held the policy in place where the mean
    did not): (N,) summed log-probabilities -> (N,) losses in nats.
    """
    return -logprob_sums


def dpo_loss(
    chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: float, strength: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Metrics]:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7, arXiv:2305.18290), smoothed as in cDPO.

    Args:
        chosen_ratio: (P,) log policy minus log reference of the chosen items, in nats, summed over trainable tokens.
        rejected_ratio: (P,) the same of the rejected ones.
        beta: KL strength, > 0; higher stays nearer the reference.
        strength: (P,) multiplies each pair's loss; None for 1.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        (P,) loss per pair, unreduced, and metrics per pair.
    """
    margin = beta * (chosen_ratio - rejected_ratio)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    if strength is not None:
        losses = losses * strength
    metrics = {
        "rewards/chosen": beta * chosen_ratio.detach(),
        "rewards/rejected": beta * rejected_ratio.detach(),
        "rewards/margins": margin.detach(),
        "rewards/accuracies": (margin > 0).float(),
    }
    return losses, metrics


def ipo_loss(
    chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: float, strength: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Metrics]:
    """Identity preference optimization (Azar et al. 2023, eq. 17, arXiv:2310.12036) on token-averaged ratios, smoothed as `dpo_loss` is.

    Args:
        chosen_ratio, rejected_ratio: (P,) log policy minus log reference, divided by the number of trainable tokens.
        beta: regularisation, > 0; the target margin is 1 / (2 beta).
        strength: (P,) multiplies each pair's loss; None for 1.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
    """
    margin = chosen_ratio - rejected_ratio
    losses = (1 - label_smoothing) * (margin - 1 / (2 * beta)) ** 2 + label_smoothing * (margin + 1 / (2 * beta)) ** 2
    if strength is not None:
        losses = losses * strength
    metrics = {
        "rewards/chosen": beta * chosen_ratio.detach(),
        "rewards/rejected": beta * rejected_ratio.detach(),
        "rewards/margins": beta * margin.detach(),
        "rewards/accuracies": (margin > 0).float(),
    }
    return losses, metrics


def kto_loss(
    ratio: Tensor, desirable: Tensor, reference_kl: Tensor, *, beta: float, undesirable_weight: float = 1.0
) -> tuple[Tensor, Metrics]:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, eq. 8, arXiv:2402.01306) for unpaired runs.

    Args:
        ratio: (N,) log policy minus log reference, summed over trainable tokens.
        desirable: (N,) bool, True for good runs.
        reference_kl: () estimate of KL(policy || reference), clamped at 0 and detached by the caller.
        undesirable_weight: loss weight of the bad runs relative to the good ones.
    """
    gain = torch.where(desirable, ratio - reference_kl, reference_kl - ratio)
    weight = torch.where(desirable, torch.ones_like(ratio), torch.full_like(ratio, undesirable_weight))
    return weight * (1 - torch.sigmoid(beta * gain)), {"rewards": beta * ratio.detach()}


def reward_pair_loss(chosen: Tensor, rejected: Tensor, *, strength: Tensor | None = None, centering: float = 0.0) -> tuple[Tensor, Metrics]:
    """Bradley-Terry with preference strength (scaled BT, arXiv:2410.01257) and a pull of the pair's mean towards 0.

    Args:
        chosen, rejected: (P,) rewards.
        strength: (P,) multiplies each pair's loss; None for 1.
        centering: weight of (chosen + rejected)^2 (arXiv:2312.09244, section 3).
    """
    losses = -F.logsigmoid(chosen - rejected)
    if strength is not None:
        losses = losses * strength
    if centering:
        losses = losses + centering * (chosen + rejected) ** 2
    return losses, {"accuracy": (chosen > rejected).float(), "margin": (chosen - rejected).detach()}


def reward_regression_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error of absolute ratings, both (N,) on [0, 1]."""
    return (predicted - target) ** 2


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.28, dual_clip: float = 3.0
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7, arXiv:1707.06347), upper clip as in DAPO (arXiv:2503.14476, eq. 8), dual clip
    for negative advantages (arXiv:1912.09729, eq. 5).

    Args:
        logprobs, old_logprobs: (M,) of the tokens the agent sampled, both computed on the training path.
        advantages: (M,) one per token (its turn's).

    Returns:
        (M,) losses to be minimised, and metrics per token. "kl_old" is Schulman's k3 estimate of KL(old || policy).
    """
    log_ratio = (logprobs - old_logprobs).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    unclipped, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    surrogate = torch.minimum(unclipped, clipped)
    surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    metrics = {"clip_fraction": (clipped < unclipped).float(), "kl_old": (ratio - 1 - log_ratio).detach()}
    return -surrogate, metrics


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float = 0.2) -> tuple[Tensor, Metrics]:
    """Half the clipped squared error, the larger of clipped and unclipped (arXiv:2403.17031, detail 15).

    Args:
        values, old_values, returns: (K,) per turn; old_values are those the advantages were made from.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    losses = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return losses, {"value_error": (values - returns).detach() ** 2}


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Non-negative estimate of KL(policy || reference) per sampled token (Schulman, http://joschu.net/blog/kl-approx.html), for logs."""
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio
