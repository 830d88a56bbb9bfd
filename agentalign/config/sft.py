"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field

from agentalign.config.training import TrainingConfig


class SFTConfig(TrainingConfig):
    """Learn to do what good runs did."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate of the adapter."""
    batch_size: int = Field(default=8, ge=1)
    """Runs per optimizer step."""
    num_train_epochs: float = Field(default=2.0, gt=0)
    """Times every run is seen."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: as many as num_train_epochs needs."""
    origins: tuple[Literal["expert", "import", "correction", "rollout", "capture"], ...] = ("expert", "import", "correction")
    """Which kinds of runs are learned from."""
    min_overall: float = Field(default=0.5, ge=0, le=1)
    """Scored runs need at least this overall value; unscored expert runs and corrections are taken as they are."""
