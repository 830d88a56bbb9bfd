"""What a training step is made of: the vocabulary between recipes, which compose steps, and the engine, which takes them.

A step is a list of passes; a pass is an adapter, its items, and a loss that returns one value per item. Surprise: a pass does not hold
its micro-batches but makes them, for as many tokens as the engine says: where memory runs out it asks for smaller ones.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from agentalign.training import ranks
from agentalign.training.attention import leaf_paths
from agentalign.training.memory import halved
from agentalign.training.model import Model
from agentalign.training.tree import TreeBatch

WORTH_SAYING = 1.5
"""So many times the tokens that larger micro-batches would compute."""


class Term(NamedTuple):
    """One part of a loss: a value per item, and its factor."""

    values: Tensor
    coefficient: float = 1.0


class LossTerms(NamedTuple):
    """What a loss function returns for one micro-batch."""

    terms: dict[str, Term]
    """By name; each must have a count in its micro-batch."""
    metrics: dict[str, Tensor]
    """Values per item, averaged over the step for the logs."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the network at once."""

    tree: TreeBatch
    counts: Mapping[str, float]
    """Items per loss term, known before the forward: pairs, tokens, turns."""
    data: Any = None
    """What the recipe's loss needs beside the tree."""
    trajectories: tuple[str, ...] = ()
    """Ids, to name the runs behind a bad number."""


class Pass(NamedTuple):
    """One adapter's part of a step. The engine enters `model.using(adapter)` around forward and backward."""

    adapter: str
    micro_batches: Callable[[int], Sequence[MicroBatch]]
    """All items of the step in micro-batches of at most so many distinct tokens; a group that is larger stands alone."""
    loss: Callable[[Model, MicroBatch], LossTerms]
    figures: Mapping[str, float] = {}
    """What the recipe knows of this step and wants in its row of metrics.jsonl."""


def in_pieces(one: Pass, max_tokens: int, at_least: int, *, trees: bool) -> Sequence[MicroBatch]:
    """All micro-batches of a pass, as far as it can be cut.

    Smaller ones where they would be fewer than the processes that share them, and where no tree fits the model: then a beginning is
    computed by every run that has it, and it is those tokens that must be at most so many.
    """
    found, budget = one.micro_batches(max_tokens), max_tokens
    # What is larger by itself stays: it is no reason to compute every other run alone.
    most = float("inf") if trees else max([max_tokens, *(row_tokens(micro.tree) for micro in one.micro_batches(1))])

    def too_large() -> bool:
        return not trees and any(row_tokens(micro.tree) > most for micro in found)

    while (len(found) < at_least or too_large()) and (smaller := halved(budget, lambda tokens: len(one.micro_batches(tokens)))):
        budget, found = smaller, one.micro_batches(smaller)
    return found


def row_tokens(tree: TreeBatch) -> int:
    """Tokens of its paths as separate rows; padding counts where all rows go through the network at once."""
    lengths = list(map(len, leaf_paths(tree)))
    return len(lengths) * max(lengths) if ranks.sharded() else sum(lengths)


def tokens_of(passes: Sequence[Pass], max_tokens: int) -> int:
    """Distinct tokens that go through the network for a step in micro-batches of at most so many."""
    return sum(micro.tree.n_tokens for one in passes for micro in one.micro_batches(max_tokens))


def larger_budget(passes: Sequence[Pass], max_tokens: int) -> str:
    """Why the micro-batches are too small for what their runs share, and how large they should be; empty where they are not.

    What many groups begin with stands once in each micro-batch. Where it fills one, every group is computed whole.
    """
    now = tokens_of(passes, max_tokens)
    for budget in (2 * max_tokens, 4 * max_tokens):
        then = tokens_of(passes, budget)
        if WORTH_SAYING * then <= now:
            return (
                f"micro_batch_tokens: {max_tokens} is little for how much these runs begin with in common: a step computes {now:,} tokens, "
                f"and {then:,} with {budget}, where memory allows."
            )
    return ""


class Learner(NamedTuple):
    """An adapter that is trained, with its heads, and how fast."""

    adapter: str
    heads: tuple[str, ...] = ()
    learning_rate: float = 1e-4
    head_rate: float = 0.0
    """Learning rate of the heads; 0: the adapter's. A head starts at zero and needs a faster one."""


def rate_groups(model: Model, learners: Sequence[Learner]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each with its peak rate."""
    return [
        {"params": parameters, "peak": rate, "lr": rate}
        for learner in learners
        for parameters, rate in (
            (model.parameters_of(learner.adapter), learner.learning_rate),
            (model.head_parameters(learner.heads), learner.head_rate or learner.learning_rate),
        )
        if parameters
    ]


class Evaluated(NamedTuple):
    """What an evaluation during training found."""

    score: float
    """The figure that decides; higher is better."""
    metrics: dict[str, float]


@dataclass
class Outcome:
    """What a training came to."""

    steps: int
    best_step: int
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(step, score), with step 0 first where there is a dev gate."""
    stopped: str = ""
    """Why it ended before its last step; empty otherwise."""
    last_metrics: dict[str, float] = field(default_factory=dict)


StepSource = Callable[[int], Iterator[Sequence[Pass]]]
Evaluator = Callable[[int, Mapping[str, float]], Evaluated]
"""(step, metrics of the first evaluation) -> what was found; the metrics are empty at the first one, and survive a resume."""
