"""Where an adapter came from: adapter <- training <- pairs and runs <- ratings <- raters, as a small graph for pictures and lists.

The card names the training, the training's folder the ids it learned from, and the store knows who said what about those. Surprise:
ratings given after a training began are left out, though the store holds them: they are not what it was made from.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from agentalign.errors import DataError
from agentalign.records.adapter import AdapterCard, Training
from agentalign.records.base import Record
from agentalign.records.criterion import Score, in_force
from agentalign.records.preference import Preference
from agentalign.store.filters import RunFilter
from agentalign.store.registry import Registry
from agentalign.store.store import Store

Kind = Literal["adapter", "training", "data", "ratings", "rater"]
COLUMNS: tuple[Kind, ...] = ("adapter", "training", "data", "ratings", "rater")
DATA_FILE = "data.json"
MOST_RATERS = 12
"""More of one kind than this are counted together."""

PAIRS = {
    "human": "pairs that people chose",
    "adjudicator": "pairs that a lead decided",
    "scores": "pairs made from ratings",
    "correction": "pairs of a correction",
    "judge": "pairs that a judge chose",
}
CHOICES = {"human": "choices of people", "adjudicator": "decisions on pairs", "judge": "choices of judges"}
RATINGS = {"human": "marks by people", "adjudicator": "decisions", "judge": "marks by judges", "check": "checks", "reward_model": "rewards"}


class Node(Record):
    """One thing, or many alike."""

    id: str
    kind: Kind
    title: str
    detail: str = ""
    missing: bool = False
    """It is named, but not to be found here."""
    ref: str = ""
    """Of an adapter: its reference."""


class Edge(Record):
    """`start` was made from `end`."""

    start: str
    end: str
    count: int = 0
    """How many; 0 where it is no number."""


class Lineage(Record):
    """The graph of one adapter."""

    adapter: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


class _Graph:
    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.edges: Counter[tuple[str, str]] = Counter()

    def add(self, node: Node, made: str = "", count: int = 0) -> str:
        """Add a node, and that `made` was made from it; returns its id."""
        self.nodes.setdefault(node.id, node)
        if made:
            self.edges[(made, node.id)] += count
        return node.id


def lineage(store: Store, registry: Registry, trainings: Path, ref: str) -> Lineage:
    """All that an adapter was made from, one training deep; its parents have a lineage of their own.

    Args:
        trainings: the project's folder of trainings.
    """
    card, _ = registry.resolve(ref)
    graph = _Graph()
    adapter = graph.add(Node(id="adapter", kind="adapter", title=card.ref, detail=f"{card.kind}, {card.recipe}", ref=card.ref))
    known = {one.ref for one in registry.list()}
    training = _training(store, card)
    began = training.created if training else card.created
    detail = f"{card.recipe}, {began[:16].replace('T', ' ')}"
    trained = graph.add(Node(id="training", kind="training", title=card.training, detail=detail, missing=training is None), adapter)
    for parent in card.parents:
        missing = parent not in known
        said = "the adapter it went on from" + (", which is there and cannot be read" if missing and registry.holds(parent) else "")
        graph.add(Node(id=f"parent {parent}", kind="data", title=parent, detail=said, ref=parent, missing=missing), trained)
    # A card from elsewhere may name anything: only a plain name is looked for among this project's trainings.
    plain = Path(card.training).name == card.training != ".."
    ids = _learned(trainings / card.training / DATA_FILE) if plain else None
    if ids is None:
        counts = ", ".join(f"{count} {name}" for name, count in card.data_counts.items()) or "no counts"
        graph.add(Node(id="data", kind="data", title=counts, detail="which ones is not kept here", missing=True), trained)
    else:
        _data(graph, store, card, trained, set(ids), began)
    own = _own_runs(store, card)
    if own:
        graph.add(Node(id="own", kind="data", title=f"{own} runs", detail="that it made itself"), trained, own)
    edges = tuple(Edge(start=start, end=end, count=count) for (start, end), count in graph.edges.items())
    return Lineage(adapter=card.ref, nodes=tuple(sorted(graph.nodes.values(), key=lambda node: COLUMNS.index(node.kind))), edges=edges)


def _training(store: Store, card: AdapterCard) -> Training | None:
    try:
        return store.training(card.training)
    except DataError:
        return None  # an adapter of another project


def _own_runs(store: Store, card: AdapterCard) -> int:
    """How many runs of train tasks the training acted out and learned from: those are in no list of what it began with."""
    sampled = store.count(RunFilter(taskset=card.taskset, training=card.training, split="train"))
    return sampled - store.count(RunFilter(taskset=card.taskset, policy=card.ref, split="train")) if sampled else 0


def _learned(path: Path) -> list[str] | None:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(id) for id in ids] if isinstance(ids, list) else None


def _data(graph: _Graph, store: Store, card: AdapterCard, trained: str, ids: set[str], began: str) -> None:
    preferences = [preference for preference in store.preferences(card.taskset) if preference.id in ids]
    by_source: dict[str, list[Preference]] = defaultdict(list)
    for preference in preferences:
        by_source[preference.source].append(preference)
    groups: dict[str, set[str]] = defaultdict(set)
    """Node of runs or pairs -> the runs whose ratings it rests on."""
    for source, found in sorted(by_source.items()):
        node = graph.add(Node(id=f"pairs {source}", kind="data", title=f"{len(found)} {PAIRS[source]}"), trained, len(found))
        if source == "scores":
            groups[node] = {item.trajectory for preference in found for item in preference.items}
        elif source != "correction":
            chosen = graph.add(Node(id=f"choices {source}", kind="ratings", title=f"{len(found)} {CHOICES[source]}"), node, len(found))
            _raters(graph, chosen, source, Counter(preference.rater for preference in found))
    others = ids - {preference.id for preference in preferences}
    runs = list(store.trajectories(RunFilter(ids=tuple(sorted(others))))) if others else []
    for kind, count in sorted(Counter(run.origin.kind for run in runs).items()):
        node = graph.add(Node(id=f"runs {kind}", kind="data", title=f"{count} runs", detail=kind), trained, count)
        groups[node] = {run.id for run in runs if run.origin.kind == kind}
    lost = len(others) - len(runs)
    if lost:
        graph.add(Node(id="lost", kind="data", title=f"{lost} more", detail="no longer in the store", missing=True), trained, lost)
    scores = _before(store.scores(sorted(set().union(*groups.values()))) if groups else [], began)
    _ratings(graph, scores, groups)


def _ratings(graph: _Graph, scores: Sequence[Score], groups: Mapping[str, set[str]]) -> None:
    for kind in sorted({score.rater_kind for score in scores}):
        found = [score for score in scores if score.rater_kind == kind]
        node = graph.add(Node(id=f"ratings {kind}", kind="ratings", title=f"{len(found)} {RATINGS[kind]}", detail=_criteria(found)))
        for made, about in groups.items():
            count = sum(score.trajectory in about for score in found)
            if count:
                graph.add(graph.nodes[node], made, count)
        _raters(graph, node, kind, Counter(score.rater for score in found))


def _before(scores: Iterable[Score], began: str) -> list[Score]:
    return in_force(score for score in scores if score.time <= began)


def _criteria(scores: Iterable[Score]) -> str:
    criteria = sorted({score.criterion for score in scores})
    return ", ".join(criteria[:3]) + (f" and {len(criteria) - 3} more" if len(criteria) > 3 else "")


def _raters(graph: _Graph, made: str, kind: str, counts: Counter[str]) -> None:
    who = "human" if kind == "adjudicator" else kind
    for name, count in counts.most_common(MOST_RATERS):
        title = "criteria.py" if kind == "check" else name
        graph.add(
            Node(id=f"rater {who} {name}", kind="rater", title=title, detail={"human": "person"}.get(who, who.replace("_", " "))),
            made,
            count,
        )
    rest = counts.most_common()[MOST_RATERS:]
    if rest:
        graph.add(Node(id=f"raters {who}", kind="rater", title=f"{len(rest)} more", detail=who), made, sum(count for _, count in rest))
