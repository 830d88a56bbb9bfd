"""What is different between two versions: what their cards say, how they were trained, and how far their weights lie apart.

Surprise: the A and B of two trainings cannot be compared one by one, since many pairs of them have the same product; what a layer gets
added is B A times its scale, and that is compared. It is never written out: of rank r, all that is needed are r x r products.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue
from torch import Tensor

from agentalign.config.project import Project
from agentalign.records.adapter import AdapterCard
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import read_adapter

_PLAIN = ("name", "version", "files", "base_files", "packages", "config", "data_counts", "metrics", "dev_scores", "created", "training")
"""Fields of a card that always differ, or are told apart from the others."""


class Change(NamedTuple):
    """One thing that differs; None where a side does not have it."""

    name: str
    before: JsonValue
    after: JsonValue


class LayerDistance(NamedTuple):
    """One adapted layer: how far what is added to its weights lies apart."""

    layer: str
    before: float
    """Frobenius norm of what A adds; 0 where it does not adapt this layer."""
    after: float
    apart: float
    """Norm of the difference."""
    cosine: float | None
    """1 where both add the same direction; None where one adds nothing."""


class AdapterDiff(NamedTuple):
    """Two versions side by side."""

    before: str
    after: str
    card: list[Change]
    config: list[Change]
    """Dials of the training."""
    data: list[Change]
    """How many runs or preferences of which source."""
    metrics: list[Change]
    evaluations: list[Change]
    """Success by taskset, split and plan, where either was evaluated."""
    layers: list[LayerDistance]
    """Farthest first, in proportion to the larger of both."""
    whole: LayerDistance
    """Over all layers."""


def diff(project: Project, before: str, after: str) -> AdapterDiff:
    """Compare two versions of one or two adapters; RegistryError where one is damaged."""
    registry = Registry(project.adapters)
    (first, one), (second, two) = registry.resolve(before), registry.resolve(after)
    for card in (first, second):
        registry.verify(card.ref)
    layers = distances(_updates(one), _updates(two))
    return AdapterDiff(
        before=registry.identity(first.ref),
        after=registry.identity(second.ref),
        card=changes(_fields(first), _fields(second)),
        config=changes(_object(first.config), _object(second.config)),
        data=changes(first.data_counts, second.data_counts),
        metrics=changes(first.metrics, second.metrics),
        evaluations=changes(_evaluations(registry, first.ref), _evaluations(registry, second.ref)),
        layers=sorted(layers, key=lambda one: -one.apart / max(one.before, one.after, 1e-30)),
        whole=_whole(layers),
    )


def changes(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> list[Change]:
    """What differs, by name."""
    names = sorted(before.keys() | after.keys())
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


class Update(NamedTuple):
    """What is added to one layer: scale * b @ a."""

    a: Tensor
    """(r, inputs)"""
    b: Tensor
    """(outputs, r)"""
    scale: float


def distances(before: Mapping[str, Update], after: Mapping[str, Update]) -> list[LayerDistance]:
    """Every layer that either adapts."""
    found = []
    for layer in sorted(before.keys() | after.keys()):
        one, two = before.get(layer), after.get(layer)
        fits = one is None or two is None or (one.a.shape[1], one.b.shape[0]) == (two.a.shape[1], two.b.shape[0])
        p, q = _dot(one, one), _dot(two, two)
        both = _dot(one, two) if fits else 0.0  # layers of another shape have nothing in common
        cosine = both / math.sqrt(p * q) if p > 0 and q > 0 else None
        found.append(LayerDistance(layer, math.sqrt(p), math.sqrt(q), math.sqrt(max(0.0, p + q - 2 * both)), cosine))
    return found


def _dot(one: Update | None, two: Update | None) -> float:
    """<B1 A1, B2 A2> = sum of (B1' B2) * (A1 A2'), both r x r."""
    if one is None or two is None:
        return 0.0
    return one.scale * two.scale * float(((one.b.double().t() @ two.b.double()) * (one.a.double() @ two.a.double().t())).sum())


def _whole(layers: list[LayerDistance]) -> LayerDistance:
    p, q, d = (sum(getattr(layer, name) ** 2 for layer in layers) for name in ("before", "after", "apart"))
    cosine = (p + q - d) / (2 * math.sqrt(p * q)) if p > 0 and q > 0 else None
    return LayerDistance("all layers", math.sqrt(p), math.sqrt(q), math.sqrt(d), cosine)


def _updates(folder: Path) -> dict[str, Update]:
    config, tensors = read_adapter(folder)
    scale = config.alpha / config.r
    found = {}
    for key, a in tensors.items():
        layer, part, rest = key.partition(".lora_A.")
        b = tensors.get(f"{layer}.lora_B.{rest}")
        if part and b is not None:
            found[layer.removeprefix("base_model.model.")] = Update(a, b, scale)
    return found


def _fields(card: AdapterCard) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = card.model_dump(mode="json", exclude=set(_PLAIN))
    return found


def _object(text: str) -> dict[str, JsonValue]:
    try:
        found = json.loads(text)
    except ValueError:
        return {"config": text}
    return found if isinstance(found, dict) else {"config": found}


def _evaluations(registry: Registry, ref: str) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for one in registry.evaluations(ref):
        plan = ", ".join(f"{name} {value}" for name, value in one.settings.items())
        found[f"{one.taskset}, {one.split} ({plan})"] = round(one.success[0], 4)
    return found
