"""How long and how fast the engine trains, as the dials that recipes share say it."""

from agentalign.config.training import Scheduled
from agentalign.training.schedule import Plan


def quarter(eval_every_steps: int | None, total_steps: int) -> int:
    """The dial, or a quarter of the training where it leaves that open: never 0 then."""
    return max(1, total_steps // 4) if eval_every_steps is None else eval_every_steps


def plan_for(config: Scheduled, total_steps: int, *, max_drop: float, eval_at_start: bool = True) -> Plan:
    """The engine's plan as the shared dials say it."""
    return Plan(
        total_steps=total_steps,
        schedule=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        eval_every_steps=quarter(config.eval_every_steps, total_steps),
        eval_at_start=eval_at_start,
        save_every_steps=config.save_every_steps,
        micro_batch_tokens=config.micro_batch_tokens,
        nan_policy=config.nan_policy,
        max_drop=max_drop,
    )
