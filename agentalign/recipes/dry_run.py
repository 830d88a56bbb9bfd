"""`train --dry-run`: what would be trained on, how long it might take, how much memory it might need. Nothing is written."""

import time
from typing import Any, NamedTuple

import torch

from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import Refusal, TokenStats
from agentalign.records.adapter import Training
from agentalign.training.base import Base
from agentalign.training.quantize import Quantization, fast_bf16


class DryRun(NamedTuple):
    """A training that was not started."""

    recipe: str
    items: dict[str, int]
    """What it would learn from, counted: runs, pairs, tasks."""
    stats: TokenStats
    refused: list[Refusal]
    steps: int
    seconds: float
    """Estimate: 6 x parameters per computed token at the speed of a matrix product measured now, at 40 % of it."""
    memory_gb: float
    """Estimate for a micro-batch: weights, and activations of all layers."""
    training: Training
    """What it would be, with the digest of its data."""
    data: TrainedOn
    """What it would learn from."""
    copy_gb: float = 0.0
    """What the merged copy takes beside, that a policy acts from in gates and rollouts where there is room for it."""


def estimate(
    base: Base, stats: TokenStats, *, steps: int, batch_size: int, quantization: Quantization, micro_batch_tokens: int
) -> tuple[float, float]:
    """(seconds, gigabytes) from the base's shape and one measured matrix product; right within a factor of two or so."""
    config, device, parameters = _shape(base)
    hidden, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    per_run = stats.tokens / max(1, stats.runs) / stats.sharing
    seconds = 6 * parameters * per_run * batch_size * steps / (0.4 * _flops(device))
    weight_bytes = {"nf4": 0.6, "int8": 1.1, "none": 2.0 if fast_bf16(device) else 4.0}[quantization]
    activation = 2 * layers * (14 * hidden + 4 * inner)
    memory = parameters * weight_bytes + min(micro_batch_tokens, per_run * batch_size) * activation + config.vocab_size * hidden * 2
    return seconds, memory / 1e9


def acting_copy(base: Base) -> float:
    """Gigabytes of a plain copy of the base, as a policy acts from one."""
    _, device, parameters = _shape(base)
    return parameters * (2 if fast_bf16(device) else 4) / 1e9


def _shape(base: Base) -> tuple[Any, torch.device, int]:
    """The base's config, the device that a training would take, and about how many parameters there are."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base.folder, local_files_only=True)
    hidden, inner = config.hidden_size, config.intermediate_size
    parameters = config.num_hidden_layers * (2 * hidden * hidden + 3 * hidden * inner) + config.vocab_size * hidden
    return config, torch.device("cuda" if torch.cuda.is_available() else "cpu"), parameters


def _flops(device: torch.device) -> float:
    """Operations per second of a matrix product as the training would do it."""
    kind = torch.bfloat16 if fast_bf16(device) else torch.float32
    left, right = torch.randn(1024, 1024, dtype=kind, device=device), torch.randn(1024, 1024, dtype=kind, device=device)
    left @ right
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        left @ right
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * 1024**3 * count / (time.perf_counter() - began)
