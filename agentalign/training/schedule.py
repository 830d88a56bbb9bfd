"""How long, how fast, how often: a training's plan, and its learning rate over the steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Plan:
    """How long, how fast, how often."""

    total_steps: int
    schedule: Shape = "cosine"
    """Shape of the learning rate after warm-up; falls to `final_share`."""
    warmup_steps: int = 0
    final_share: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_eps: float = 1e-8
    eval_every_steps: int = 0
    """0: never."""
    eval_at_start: bool = True
    """Evaluate before step 0 too, so that the start can win. Wasted on a bare base."""
    save_every_steps: int = 0
    steps_together: int = 1
    """A checkpoint never falls between so many steps: inside a PPO iteration the runs come from weights that are gone."""
    micro_batch_tokens: int = 4096
    """Distinct tokens of a micro-batch, until memory runs out."""
    nan_policy: Literal["skip", "stop"] = "skip"
    """What a step with a number that is not finite does to the training; it is never applied."""
    max_drop: float = 1.0
    """Stop when an evaluation falls this far below the first one."""
    patience: int = 0
    """Stop after this many evaluations without a new best; 0: never."""

    def rate_share(self, step: int) -> float:
        """The share of the peak learning rate that a step takes."""
        return rate_share(
            step, total_steps=self.total_steps, warmup_steps=self.warmup_steps, shape=self.schedule, final_share=self.final_share
        )

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is due after this many steps; one always is at the end."""
        return bool(self.eval_every_steps) and (step % self.eval_every_steps == 0 or step == self.total_steps)

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after this many steps."""
        return bool(self.save_every_steps) and step % self.save_every_steps == 0 and step < self.total_steps

    def why_stop(self, evaluations: Sequence[tuple[int, float]], best_step: int) -> str:
        """Why a training with these (step, score) should end now; empty if it should go on."""
        scores = [score for _, score in evaluations]
        step, score = evaluations[-1]
        since_best = sum(1 for step, _ in evaluations if step > best_step)
        if score < scores[0] - self.max_drop:
            return f"dev score {score:.3f} fell more than {self.max_drop:g} below the start's {scores[0]:.3f} at step {step}"
        if self.patience and since_best >= self.patience:
            return f"no better dev score in {since_best} evaluations (best {max(scores):.3f} at step {best_step})"
        return ""


def rate_share(step: int, *, total_steps: int, warmup_steps: int, shape: Shape, final_share: float) -> float:
    """Linear warm-up to 1, then `shape` down to `final_share` (constant stays at 1)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    curve = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[shape]
    return final_share + (1.0 - final_share) * curve


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down to a norm of at most `max_norm`; returns the norm before."""
    with_gradient = [p for p in parameters if p.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(with_gradient, max_norm)) if with_gradient else 0.0
