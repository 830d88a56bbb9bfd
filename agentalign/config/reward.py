"""Settings of the reward model."""

from typing import ClassVar

from pydantic import Field

from agentalign.config.training import Scheduled


class RewardConfig(Scheduled):
    """Learn to tell better runs from worse ones."""

    recipe: ClassVar[str] = "reward"
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate of the adapter; the head learns ten times faster."""
    batch_size: int = Field(default=8, ge=1)
    """Preferences per optimizer step."""
    num_train_epochs: float = Field(default=1.0, gt=0)
    """Times every preference is seen."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: as many as num_train_epochs needs."""
    centering: float = Field(default=0.01, ge=0)
    """Pull of the rewards towards mean 0."""
    regression_coefficient: float = Field(default=0.0, ge=0)
    """Weight of squared error against absolute overall values, where a run has one."""
    heldout: float = Field(default=0.15, gt=0, lt=0.9)
    """Share of the tasks whose preferences only measure accuracy."""
    criterion: str = "overall"
    """Whose preferences: "overall" or a criterion's "name@version"."""
