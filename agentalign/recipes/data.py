"""From stored runs to micro-batches: rendered once, refused by name, packed to a token budget."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from agentalign.config.training import TrainingConfig
from agentalign.environments.task import Task
from agentalign.errors import AgentAlignError, DataError, TrainingError
from agentalign.records.base import digest
from agentalign.records.trajectory import Trajectory
from agentalign.store.store import Store
from agentalign.training import ranks
from agentalign.training.dialect import Dialect
from agentalign.training.logprob_cache import cached, owner_of
from agentalign.training.memory import halved, smaller_may_fit
from agentalign.training.model import Model
from agentalign.training.render import Rendered, render
from agentalign.training.sharding import pad_forwards
from agentalign.training.step import MicroBatch
from agentalign.training.tree import TreeBatch, build_tree, pack
from agentalign.training.tree_check import settle_trees

logger = logging.getLogger("agentalign")
T = TypeVar("T")
READING = 4
"""So many times the tokens of a micro-batch are read at once. Without gradients little more than one layer's activations is held, so that
took less memory than a step of full micro-batches on a CPU; and what all runs begin with, tool schemas above all, is read less often."""


class Refusal(NamedTuple):
    """A run that is not trained on, and why."""

    trajectory: str
    reason: str


class RunData(NamedTuple):
    """Runs as tokens."""

    rendered: dict[str, Rendered]
    """By trajectory id, in the order given."""
    refused: list[Refusal]


def render_runs(runs: Sequence[Trajectory], store: Store, dialect: Dialect, config: TrainingConfig) -> RunData:
    """Render every run; those that cannot be are listed and said, never cut or dropped in silence.

    Raises:
        DataError: nothing is left, or more than `max_refused` of the runs were refused.
    """
    rendered: dict[str, Rendered] = {}
    refused: list[Refusal] = []
    for run in runs:
        try:
            rendered[run.id] = render(run, dialect, tokens=store.tokens(run.id), max_tokens=config.max_tokens)
        except AgentAlignError as error:
            refused.append(Refusal(run.id, str(error)))
    for refusal in refused[:5]:
        logger.warning("refused: %s", refusal.reason)
    if not rendered or len(refused) > config.max_refused * len(runs):
        first = f" The first: {refused[0].reason}" if refused else ""
        raise DataError(
            f"{len(refused)} of {len(runs)} runs of taskset '{config.taskset}' cannot be used; at most {config.max_refused:.0%} may be "
            f"refused (max_refused); at least one must be left.{first}"
        )
    return RunData(rendered, refused)


def by_kind(runs: Sequence[Trajectory], rendered: Mapping[str, Rendered], tasks: Mapping[str, Task]) -> list[list[Rendered]]:
    """The rendered ones of these runs, a list per family and side of its judgement: one side alone teaches to act always alike."""
    groups: dict[tuple[str, str], list[Rendered]] = {}
    for run in runs:
        if run.id in rendered:
            task = tasks.get(run.task_id or "")
            groups.setdefault((run.family, task.branch if task else ""), []).append(rendered[run.id])
    return list(groups.values())


class TokenStats(NamedTuple):
    """What a dry run prints of the data."""

    runs: int
    tokens: int
    """Sum over runs, unshared."""
    trainable: int
    longest: int
    histogram: list[tuple[int, int]]
    """(at most this many tokens, runs), in powers of two."""
    sharing: float
    """How many times fewer tokens a step computes because prefixes are shared."""


def token_stats(rendered: Sequence[Rendered], *, batch_size: int) -> TokenStats:
    """Counts over runs; sharing is measured on the first step's worth of them."""
    if not rendered:
        return TokenStats(runs=0, tokens=0, trainable=0, longest=0, histogram=[], sharing=1.0)
    lengths = [run.n_tokens for run in rendered]
    edges = [2**k for k in range(20) if 2 ** (k - 1) < max(lengths)]
    histogram = [(edge, sum(1 for n in lengths if edge // 2 < n <= edge)) for edge in edges]
    return TokenStats(
        runs=len(rendered),
        tokens=sum(lengths),
        trainable=sum(run.n_trainable for run in rendered),
        longest=max(lengths),
        histogram=[(edge, count) for edge, count in histogram if count],
        sharing=build_tree(rendered[:batch_size]).sharing,
    )


def sft_batches(runs: Sequence[Rendered], max_tokens: int) -> list[MicroBatch]:
    """Micro-batches whose items are trainable tokens; of a corrected or forked run those that its own maker wrote."""
    found = []
    for members in pack([run.own for run in runs], max_tokens=max_tokens, runs_of=lambda run: [run]):
        tree = build_tree(members)
        found.append(MicroBatch(tree, {"sft": float(len(tree.occurrences))}, trajectories=tuple(run.trajectory for run in members)))
    return found


@dataclass(frozen=True)
class Turn:
    """A turn cut out of a rendered run."""

    context: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Some turns of a run, or a piece of one: what a pair compares or a reward is read from."""

    turns: tuple[Turn, ...]


def whole(run: Rendered) -> Part:
    """All turns."""
    return Part(tuple(Turn(turn.context, turn.completion) for turn in run.turns))


def up_to_step(run: Rendered, step: int | None) -> Part:
    """The run up to and including a step; all of it for None."""
    return whole(run) if step is None else Part(whole(run).turns[: step + 1])


def read_parts(model: Model, adapter: str, parts: Sequence[Part], read: Callable[[TreeBatch], list[T]], *, max_tokens: int) -> list[T]:
    """What `read` finds for every part under an adapter as it is now, without gradients; in smaller batches where memory runs out.

    Args:
        read: from a tree to one value per run of it, in the tree's order.
        max_tokens: of a training's micro-batch; see READING.

    Raises:
        TrainingError: one part alone does not fit into memory.
    """

    def batches(budget: int) -> list[list[int]]:
        if ranks.sharded() and not model.tree_capable:  # rows go through at once, each as long as the longest
            return [[index] for index in range(len(parts))]
        return pack(range(len(parts)), max_tokens=budget, runs_of=lambda i: [parts[i]])

    _settle(model, adapter, parts, max_tokens)
    found: dict[int, T] = {}
    budget: int | None = reading_budget(model, parts, max_tokens)
    while budget:
        full = False
        try:
            with model.using(adapter), torch.no_grad():
                everything = batches(budget)
                mine = everything[ranks.rank() :: ranks.world()]
                for members in mine:
                    tree = build_tree([parts[i] for i in members]).to(model.device)
                    found |= dict(zip(members, read(tree), strict=True))
                pad_forwards(model, len(everything[:: ranks.world()]) - len(mine))
        except (RuntimeError, MemoryError) as error:
            smaller_may_fit(error)
            full = True
        everyone = ranks.gathered((found, full))
        if not any(one for _, one in everyone):
            whole = {index: value for values, _ in everyone for index, value in values.items()}
            return [whole[i] for i in range(len(parts))]
        logger.warning("out of memory while reading runs in batches of %d tokens; going on with smaller ones", budget)
        budget = model.most_read = halved(budget, lambda tokens: len(batches(tokens)))
    raise TrainingError("one run alone does not fit into memory; lower max_tokens to leave out the longest, or take a smaller base.")


def reading_budget(model: Model, parts: Sequence[Part], max_tokens: int) -> int:
    """Most tokens of a tree that is only read, for micro-batches of so many.

    No more than a step's where runs are read as rows, which share nothing, or from shards, where a lack of memory would end the training.
    """
    if not model.tree_capable:
        return max_tokens
    budget = _most_read(max_tokens)
    if model.most_read is not None:
        budget = min(budget, model.most_read)
    if ranks.world() == 1:
        return budget

    def busiest(budget: int) -> int:
        sizes = [build_tree(some).n_tokens for some in pack(parts, max_tokens=budget, runs_of=lambda part: [part])]
        return max(sum(sizes[rank :: ranks.world()]) for rank in range(ranks.world()))

    # Large batches share more, and small ones are dealt out more evenly. Of equals the first, which is the largest, counts.
    return min((budget >> shift for shift in range(READING.bit_length()) if budget >> shift >= min(budget, max_tokens)), key=busiest)


def _settle(model: Model, adapter: str, parts: Sequence[Part], max_tokens: int) -> None:
    """Look at a tree as small as may be, and at a large one where only those branch."""
    for most in (max_tokens, _most_read(max_tokens)):
        settle_trees(model, adapter, parts, max_tokens=most)


def _most_read(max_tokens: int) -> int:
    return max_tokens if ranks.sharded() else READING * max_tokens


def fixed_logprobs(model: Model, adapter: str, parts: Sequence[Part], *, max_tokens: int, cache: Path | None = None) -> list[Tensor]:
    """(M_i,) log-probabilities of each part's tokens: the reference's, or the old policy's.

    Args:
        cache: folder of what was computed before, by the same weights on the same tokens.
    """

    def read(tree: TreeBatch) -> list[Tensor]:
        logprobs = model.token_logprobs(tree)
        return [logprobs[tree.occurrence_run == run].cpu() for run in range(tree.n_runs)]

    def compute(wanted: Sequence[int]) -> list[Tensor]:
        return read_parts(model, adapter, [parts[i] for i in wanted], read, max_tokens=max_tokens)

    if cache is None:
        return compute(range(len(parts)))
    # Before the owner's name, which says whether trees are used.
    _settle(model, adapter, parts, max_tokens)
    return cached(cache, owner_of(model, adapter), [_digest(part) for part in parts], compute)


def _digest(part: Part) -> str:
    return digest([[list(turn.context), list(turn.completion)] for turn in part.turns])


def end_rewards(model: Model, adapter: str, parts: Sequence[Part], *, max_tokens: int) -> list[float]:
    """The reward head of the same name as its adapter, at the last token of each part."""

    def read(tree: TreeBatch) -> list[float]:
        return [float(value) for value in model.apply_head(adapter, model.hidden(tree)[tree.run_end]).squeeze(1)]

    return read_parts(model, adapter, parts, read, max_tokens=max_tokens)
