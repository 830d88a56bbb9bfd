"""Settings of direct preference optimization."""

from typing import ClassVar, Literal

from pydantic import Field

from agentalign.config.training import Gated, Scheduled


class DPOConfig(Scheduled, Gated):
    """Learn which of two runs, or steps, is better, held in place by an anchor."""

    recipe: ClassVar[str] = "dpo"
    batch_size: int = Field(default=8, ge=1)
    """Pairs per optimizer step."""
    num_train_epochs: float = Field(default=2.0, gt=0)
    """Times every pair is seen."""
    max_steps: int = Field(default=0, ge=0)
    """Optimizer steps; 0: as many as num_train_epochs needs."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: DPO, which pushes a pair apart as long as it trains. ipo: towards a margin of 1 / (2 beta) nats a token that
    the sides do not have in common, no further."""
    beta: float = Field(default=0.5, gt=0)
    """KL strength; higher stays nearer the reference."""
    credit: Literal["token", "turn", "run"] = "token"
    """What of a pair is compared: the first differing token of the differing turn, that whole turn, or everything the agent wrote."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong."""
    nll_coefficient: float = Field(default=0.2, ge=0)
    """Weight of the anchor: summed negative log-likelihood of the better runs and of replayed expert runs. 0 lets the policy drift."""
    replay: int = Field(default=3, ge=0)
    """Expert runs replayed per step under the anchor."""
    min_reference_prob: float = Field(default=0.05, ge=0, lt=1)
    """Pairs whose rejected token the reference would hardly write (below this) are noise and are dropped; credit: token only."""
    contrasts: bool = False
    """Add pairs from demonstrations for what preferences mostly reject: a word, or a place in a list; credit: token only."""
    criterion: str = "overall"
    """Whose preferences: "overall" or a criterion's "name@version"."""
