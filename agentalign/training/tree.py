"""Token trees: runs packed so that a shared prefix stands once.

A run with n assistant turns is n paths (context + completion); all paths of a micro-batch go into one radix tree, so a system prompt
common to every run, a prompt common to a pair and a turn common to two rollouts are each computed once. Flattened depth first, the
tokens of a node lie beside each other: a *segment*.

Two surprises. Nothing is shifted: the log-probability of token t is read from the hidden state at `parents[t]`, and siblings read
the same row. And a run is not a leaf: with a template that rewrites history it is several paths, so sums go by run, never by leaf.
There is no gate on how much is shared: rows that share nothing cost no more in a tree than as rows (benchmarks/RESULTS.md).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentalign.errors import TrainingError

Ids = NDArray[np.int64]


class TurnLike(Protocol):
    """One assistant turn as tokens; `training.render.RenderedTurn` is one."""

    @property
    def context(self) -> Sequence[int]: ...
    @property
    def completion(self) -> Sequence[int]: ...


class RunLike(Protocol):
    """A run as tokens; `training.render.Rendered` is one."""

    @property
    def turns(self) -> Sequence[TurnLike]: ...


G = TypeVar("G")


class Segment(NamedTuple):
    """Rows [start, end) of the batch: one node of the tree."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]
    """(start, end) of every node above, from the root down."""
    depth: int
    """Position of the first token: the number of tokens above."""


@dataclass(frozen=True)
class TreeBatch:
    """T tokens of N runs with K turns; U distinct trainable tokens, which occur M times in the runs."""

    tokens: Tensor
    """(T,) token ids, depth first."""
    positions: Tensor
    """(T,) depth of each token on its own path, as rotary embeddings see it."""
    parents: Tensor
    """(T,) index of the token before it on its path; -1 for a root's first token."""
    segments: tuple[Segment, ...]
    labels: Tensor
    """(U,) index of each trainable token, ascending, each once."""
    occurrences: Tensor
    """(M,) index into `labels` for every trainable token of every run, in the runs' order."""
    occurrence_run: Tensor
    """(M,) which run each occurrence belongs to."""
    occurrence_turn: Tensor
    """(M,) which turn, counted over the whole batch."""
    turn_run: Tensor
    """(K,) which run a turn belongs to."""
    turn_state: Tensor
    """(K,) index of the last context token before the turn: where its value is read."""
    turn_end: Tensor
    """(K,) index of the turn's last completion token."""
    run_end: Tensor
    """(N,) index of the run's very last completion token: where its reward is read."""
    unshared_tokens: int
    """Tokens that N separate rows (the longest path of each turn chain) would have cost."""
    masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Attention masks by (segment, window, dtype), filled on first use: all layers share them."""

    @property
    def n_tokens(self) -> int:
        """T: tokens that are computed."""
        return int(self.tokens.shape[0])

    @property
    def n_runs(self) -> int:
        """N."""
        return int(self.run_end.shape[0])

    @property
    def n_turns(self) -> int:
        """K."""
        return int(self.turn_run.shape[0])

    @property
    def deepest(self) -> int:
        """Tokens of the longest path."""
        return max(segment.depth + segment.end - segment.start for segment in self.segments)

    @property
    def sharing(self) -> float:
        """How many times fewer tokens than separate rows; 1.0 where nothing is shared."""
        return self.unshared_tokens / max(1, self.n_tokens)

    def sum_by_run(self, values: Tensor) -> Tensor:
        """(M,) per occurrence -> (N,) sums per run."""
        return values.new_zeros(self.n_runs).index_add(0, self.occurrence_run, values)

    def sum_by_turn(self, values: Tensor) -> Tensor:
        """(M,) per occurrence -> (K,) sums per turn."""
        return values.new_zeros(self.n_turns).index_add(0, self.occurrence_turn, values)

    def to(self, device: torch.device) -> "TreeBatch":
        """The same batch with its tensors on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return TreeBatch(**{**vars(self), **moved, "masks": {}})


def subtree_ends(segments: Sequence[Segment]) -> list[int]:
    """Per segment the row behind its last descendant: depth first, a node and all below it are neighbouring rows."""
    ends = [segment.end for segment in segments]
    index = {segment.start: i for i, segment in enumerate(segments)}
    for i in range(len(segments) - 1, -1, -1):
        if segments[i].ancestors:
            parent = index[segments[i].ancestors[-1][0]]
            ends[parent] = max(ends[parent], ends[i])
    return ends


class _Node:
    __slots__ = ("children", "ids", "parent", "start")

    def __init__(self, ids: Ids, parent: "_Node | None") -> None:
        self.ids = ids
        self.parent = parent
        self.children: dict[int, _Node] = {}
        self.start = -1


class TokenTree:
    """A radix tree that grows path by path."""

    def __init__(self) -> None:
        self.root = _Node(np.empty(0, dtype=np.int64), None)
        self.n_tokens = 0

    def insert(self, ids: Ids) -> None:
        """Add a path."""
        node, at = self.root, 0
        while at < len(ids):
            child = node.children.get(int(ids[at]))
            if child is None:
                node.children[int(ids[at])] = _Node(ids[at:], node)
                self.n_tokens += len(ids) - at
                return
            shared = _common(child.ids, ids[at:])
            if shared < len(child.ids):
                child = _split(child, shared)
            node, at = child, at + shared

    def insert_all(self, paths: Iterable[Ids]) -> None:
        """Add several paths."""
        for path in paths:
            self.insert(path)

    def locate(self, ids: Ids) -> Ids:
        """Flat indices of a path that was inserted; call after `flatten`."""
        node, at = self.root, 0
        found = np.empty(len(ids), dtype=np.int64)
        while at < len(ids):
            node = node.children[int(ids[at])]
            length = min(len(node.ids), len(ids) - at)
            found[at : at + length] = np.arange(node.start, node.start + length)
            at += length
        return found

    def flatten(self) -> tuple[Ids, Ids, Ids, tuple[Segment, ...]]:
        """Depth-first tokens, positions, parents and segments; sets every node's start."""
        tokens, positions, parents, segments = [], [], [], []
        total = 0
        stack: list[tuple[_Node, tuple[tuple[int, int], ...], int]] = [(c, (), 0) for c in reversed(self.root.children.values())]
        while stack:
            node, above, depth = stack.pop()
            size = len(node.ids)
            node.start, end = total, total + size
            tokens.append(node.ids)
            positions.append(np.arange(depth, depth + size))
            before = np.arange(total - 1, end - 1)
            before[0] = above[-1][1] - 1 if above else -1
            parents.append(before)
            segments.append(Segment(total, end, above, depth))
            total = end
            below = (*above, (node.start, end))
            stack.extend((child, below, depth + size) for child in reversed(node.children.values()))
        return np.concatenate(tokens), np.concatenate(positions), np.concatenate(parents), tuple(segments)


def _common(a: Ids, b: Ids) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _split(node: _Node, at: int) -> _Node:
    upper = _Node(node.ids[:at], node.parent)
    assert node.parent is not None
    node.parent.children[int(node.ids[0])] = upper
    node.ids, node.parent = node.ids[at:], upper
    upper.children[int(node.ids[0])] = node
    return upper


def paths_of(run: RunLike) -> list[Ids]:
    """Every turn's context + completion."""
    return [np.asarray([*turn.context, *turn.completion], dtype=np.int64) for turn in run.turns]


def build_tree(runs: Sequence[RunLike]) -> TreeBatch:
    """Merge all paths of all runs into one batch.

    Raises:
        TrainingError: no run, a run without trainable tokens, or a turn without context (nothing predicts its first token).
    """
    tree = TokenTree()
    paths = [paths_of(run) for run in runs]
    for run_paths in paths:
        tree.insert_all(run_paths)
    if tree.n_tokens == 0:
        raise TrainingError("a batch without tokens cannot be trained on: every run in it is empty. Check the rendered runs.")
    tokens, positions, parents, segments = tree.flatten()
    where: list[int] = []
    run_of: list[int] = []
    turn_of: list[int] = []
    turn_run: list[int] = []
    turn_state: list[int] = []
    turn_end: list[int] = []
    run_end: list[int] = []
    for index, (run, run_paths) in enumerate(zip(runs, paths, strict=True)):
        seen: set[int] = set()
        for turn, path in zip(run.turns, run_paths, strict=True):
            cut = len(turn.context)
            if cut == 0 or cut == len(path):
                raise TrainingError("a turn needs at least one context token and one trainable token; render the run again and look at it.")
            located = tree.locate(path)
            # A node counts once per run: a template that re-renders history must not train a token twice.
            nodes = [int(n) for n in located[cut:] if int(n) not in seen]
            seen.update(nodes)
            where += nodes
            run_of += [index] * len(nodes)
            turn_of += [len(turn_run)] * len(nodes)
            turn_run.append(index)
            turn_state.append(int(located[cut - 1]))
            turn_end.append(int(located[-1]))
        if not seen:
            raise TrainingError("a run without trainable tokens teaches nothing; leave it out.")
        run_end.append(turn_end[-1])
    labels, occurrences = np.unique(np.asarray(where, dtype=np.int64), return_inverse=True)
    as_tensor = torch.as_tensor
    return TreeBatch(
        tokens=as_tensor(tokens),
        positions=as_tensor(positions),
        parents=as_tensor(parents),
        segments=segments,
        labels=as_tensor(labels),
        occurrences=as_tensor(occurrences),
        occurrence_run=as_tensor(run_of),
        occurrence_turn=as_tensor(turn_of),
        turn_run=as_tensor(turn_run),
        turn_state=as_tensor(turn_state),
        turn_end=as_tensor(turn_end),
        run_end=as_tensor(run_end),
        unshared_tokens=sum(_chain_tokens(p) for p in paths),
    )


def _chain_tokens(paths: Sequence[Ids]) -> int:
    """Tokens of a run as separate rows: each path that the next one does not merely continue."""
    total = 0
    for i, path in enumerate(paths):
        following = paths[i + 1] if i + 1 < len(paths) else None
        if following is None or _common(path, following) < len(path):
            total += len(path)
    return total


def pack(groups: Iterable[G], *, max_tokens: int, runs_of: Callable[[G], Sequence[RunLike]]) -> list[list[G]]:
    """Micro-batches of whole groups, in order, each at most `max_tokens` distinct tokens (a larger group stands alone).

    A group (a pair, a ranking, the rollouts of one task) is never torn: its loss needs all of it in one forward.
    """
    batches: list[list[G]] = []
    tree = TokenTree()
    for group in groups:
        paths = [path for run in runs_of(group) for path in paths_of(run)]
        tree.insert_all(paths)
        if not batches or tree.n_tokens > max_tokens:
            batches.append([])
            tree = TokenTree()
            tree.insert_all(paths)
        batches[-1].append(group)
    return batches
