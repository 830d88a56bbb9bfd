"""Settings of supervised fine-tuning."""

from typing import ClassVar, Literal

from pydantic import Field

from agentalign.config.training import Gated, Scheduled


class SFTConfig(Scheduled, Gated):
    """Learn to do what good runs did."""

    recipe: ClassVar[str] = "sft"
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate of the adapter."""
    lora_r: int = Field(default=16, ge=1, le=1024)
    """Rank of a new adapter; a continued one keeps its own."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """Scale of a new adapter is lora_alpha / lora_r."""
    batch_size: int = Field(default=8, ge=1)
    """Runs per optimizer step."""
    num_train_epochs: float = Field(default=2.0, gt=0)
    """Times every run is seen."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: as many as num_train_epochs needs."""
    origins: tuple[Literal["expert", "import", "correction", "rollout", "capture", "chat"], ...] = ("expert", "import", "correction")
    """Which kinds of runs are learned from."""
    min_overall: float = Field(default=0.5, ge=0, le=1)
    """Scored runs need at least this overall value; unscored expert runs and corrections are taken as they are."""
    max_drop: float = Field(default=0.3, gt=0, le=1)
    """Training stops and rolls back when the dev score falls this far below its start. Wider than where preferences or rewards teach: on
    demonstrations a policy dips while its rate is high, and comes back as the rate falls."""
