"""Settings of proximal policy optimization."""

from typing import ClassVar

from pydantic import Field

from agentalign.config.training import Gated


class PPOConfig(Gated):
    """Act, be scored, move a little towards what scored better than expected."""

    recipe: ClassVar[str] = "ppo"
    learning_rate: float = Field(default=3e-5, gt=0, le=1)
    """Learning rate of the policy; constant. Of the shared settings, eval_every_steps and save_every_steps count iterations here."""
    value_learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Learning rate of the critic's adapter; its head learns ten times faster."""
    reward: str | None = None
    """Reward model, such as "order_desk-reward@1"; null: its newest version. It answers the criteria that only people or judges can."""
    iterations: int = Field(default=8, ge=1)
    """Rounds of acting and learning."""
    tasks_per_iteration: int = Field(default=16, ge=1)
    """Train tasks that are acted out per iteration, drawn towards those whose outcome is open."""
    samples_per_task: int = Field(default=4, ge=1)
    """Runs of each."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Sampling temperature of the rollouts; log-probabilities are learned at 1, so other temperatures learn from another policy's runs."""
    kl_beta: float = Field(default=0.03, ge=0)
    """Price of a nat of divergence from the reference, in the reward."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per turn."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """GAE lambda of the policy's advantages; the critic learns from full returns."""
    num_mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps per iteration, each on its share of the runs of tasks that went differently; with one, no clip is ever reached."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Lower clip of the policy ratio."""
    clip_high: float = Field(default=0.28, gt=0)
    """Upper clip of the policy ratio."""
    critic_warmup_steps: int = Field(default=6, ge=0)
    """Optimizer steps of the critic alone, on stored runs, before the policy moves."""
    nll_coefficient: float = Field(default=0.05, ge=0)
    """Weight of replayed expert runs in the policy's loss, per token as the rest of it (PPO-ptx); 0: none."""
    replay: int = Field(default=8, ge=0)
    """Expert runs replayed per optimizer step."""
