"""What a training gives up where memory runs out: the size of its micro-batches, or kept activations. The gradient stays what it is."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentalign.errors import TrainingError
from agentalign.training import ranks
from agentalign.training.memory import halved
from agentalign.training.model import Model
from agentalign.training.step import Pass, in_pieces, tokens_of

logger = logging.getLogger("agentalign")
RECOMPUTE_COST = 1.3
"""A step with recomputed activations costs this many plain ones: a forward more, beside a forward and a backward of two forwards' work."""
SMALLER = "smaller.json"
"""In a training's folder: what a step that ran out of memory leaves to the processes that come after it."""


def smaller_budget(model: Model, step: int, passes: Sequence[Pass], budget: int, planned: int, problem: str) -> int:
    """Tokens of a micro-batch from here on; as many as before where activations are recomputed instead.

    Args:
        planned: the budget that the training began with.
        problem: what the lack of memory said.

    Raises:
        TrainingError: nothing is left to give up.
    """
    trees = model.tree_capable
    smaller = halved(budget, lambda tokens: sum(len(in_pieces(one, tokens, ranks.world(), trees=trees)) for one in passes))
    # Smaller micro-batches compute a shared prefix more often; recomputing activations may be the cheaper way.
    dear = smaller is None or tokens_of(passes, smaller) > RECOMPUTE_COST * tokens_of(passes, planned)
    if model.may_recompute and dear:
        logger.warning("out of memory (%s): activations are recomputed from here on, with the same gradient", problem)
        model.recompute_activations()
        return budget
    if smaller is None:
        hint = "L" if model.recomputes else "Set gradient_checkpointing: auto, l"
        raise TrainingError(
            f"step {step} does not fit into memory although every micro-batch holds one run or pair only ({problem}). "
            f"{hint}ower max_tokens to leave out the longest runs, or take a smaller base."
        )
    logger.warning("out of memory (%s): micro-batches of %d tokens from here on, with the same gradient", problem, smaller)
    return smaller


def remember(folder: Path, budget: int, *, recomputes: bool) -> None:
    """For whoever goes on with this training in other processes."""
    partial = folder / f".{SMALLER}.{os.getpid()}"  # several processes may run out of memory at once
    try:
        partial.write_text(json.dumps({"micro_batch_tokens": budget, "recomputes": recomputes}))
        partial.replace(folder / SMALLER)
    except OSError as error:
        logger.warning("that less memory has to do is not written down (%s): set micro_batch_tokens: %d yourself", error, budget)


def remembered(folder: Path) -> Mapping[str, Any]:
    """What `remember` wrote; nothing where nothing ran out of memory that way, or what was written cannot be read."""
    try:
        found = json.loads((folder / SMALLER).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("micro_batch_tokens"), int) else {}
