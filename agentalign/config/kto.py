"""Settings of Kahneman-Tversky optimization."""

from typing import ClassVar, Literal

from pydantic import Field

from agentalign.config.training import Gated, Scheduled


class KTOConfig(Scheduled, Gated):
    """Learn from runs that are known to be good or bad one by one, held in place by an anchor."""

    recipe: ClassVar[str] = "kto"
    learning_rate: float = Field(default=3e-5, gt=0, le=1)
    """Peak learning rate of the adapter."""
    batch_size: int = Field(default=8, ge=2)
    """Runs per optimizer step, good and bad ones as often."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Times the larger side is seen; the smaller one is repeated."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: as many as num_train_epochs needs."""
    beta: float = Field(default=0.1, gt=0)
    """KL strength; higher stays nearer the reference."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of a bad run beside a good one."""
    good: float = Field(default=0.5, gt=0, le=1)
    """Overall value from which a run is good; all others are bad."""
    origins: tuple[Literal["expert", "import", "correction", "rollout", "capture", "chat"], ...] = (
        "rollout", "import", "capture", "correction",
    )  # fmt: skip
    """Which kinds of rated runs are learned from."""
    nll_coefficient: float = Field(default=0.2, ge=0)
    """Weight of the anchor: summed negative log-likelihood of replayed expert runs and good runs. 0 lets the policy drift."""
    replay: int = Field(default=3, ge=0)
    """Expert runs replayed per step under the anchor."""
