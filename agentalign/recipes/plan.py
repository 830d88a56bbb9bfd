"""How long and how fast the engine trains, as the dials that recipes share say it."""

from agentalign.config.training import Scheduled
from agentalign.training.schedule import Plan


def plan_for(config: Scheduled, total_steps: int, *, max_drop: float, eval_at_start: bool = True) -> Plan:
    """The engine's plan as the shared dials say it."""
    return Plan(
        total_steps=total_steps,
        schedule=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        eval_every_steps=config.eval_every_steps,
        eval_at_start=eval_at_start,
        save_every_steps=config.save_every_steps,
        micro_batch_tokens=config.micro_batch_tokens,
        nan_policy=config.nan_policy,
        max_drop=max_drop,
    )
