"""The dials that every recipe has. Names follow transformers and TRL where the concept is theirs."""

from typing import ClassVar, Literal

from pydantic import Field

from agentalign.config.base import Config


class TrainingConfig(Config):
    """What to train on what, how long, and how it is watched."""

    taskset: str
    """Name of the taskset: a folder in tasks/."""
    recipe: ClassVar[str]
    """Whose settings these are."""
    base: str | None = None
    """Base model: a hub name, a folder, or a built-in name; null: that of the adapter to continue, and smollm2-135m where there is none."""
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    """How the frozen base is held."""
    start: str | None = None
    """Adapter to continue, such as "order_desk@2"; null: the bare base (SFT), or the newest policy that the recipe has no part in."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Peak learning rate of the adapter."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Distinct tokens that go through the network at once, and up to four times as many where runs are only read, as for a reference;
    changes memory and speed, never the gradient."""
    max_tokens: int = Field(default=4096, ge=16)
    """Longest run, in tokens; longer ones are refused and listed, never cut."""
    max_refused: float = Field(default=0.1, ge=0, le=1)
    """The training does not start when a larger share of the runs is refused."""
    nan_policy: Literal["skip", "stop"] = "skip"
    """A step with a loss or gradient that is not finite is never applied: skip it (three in a row end the training), or stop at once."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations: half the memory, about 30 % slower. auto: only once memory runs out and smaller micro-batches cost more."""
    seed: int = Field(default=0, ge=0)
    """Draws the adapter's first weights and the order of the data."""
    eval_every_steps: int | None = Field(default=None, ge=0)
    """Steps between evaluations; 0: none; null: a quarter of the training, for a policy only where the taskset has 40 dev tasks and more.
    The best evaluated weights are what is saved."""
    save_every_steps: int = Field(default=25, ge=0)
    """Steps between checkpoints; 0: none. Running the same command again goes on from the last one."""
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Also send the rows of metrics.jsonl to a tracker; its package must be installed."""
    training: str | None = None
    """Id that --dry-run told: refuse to begin when settings and data have come to be another training; null: whatever they are."""


class Scheduled(TrainingConfig):
    """The learning rate of recipes whose steps are counted beforehand."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after warm-up; falls to a tenth."""
    warmup_steps: int = Field(default=5, ge=0)
    """Optimizer steps of linear warm-up."""


class Gated(TrainingConfig):
    """The dev gate of recipes that train a policy."""

    eval_tasks: int = Field(default=100, ge=1)
    """Dev tasks per evaluation, the same each time."""
    max_drop: float = Field(default=0.1, gt=0, le=1)
    """Training stops and rolls back when the dev score falls this far below its start."""
