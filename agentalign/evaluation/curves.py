"""Figures of a report: which numbers are drawn, from evaluations and from rows of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from pydantic import JsonValue

from agentalign.evaluation import plots
from agentalign.evaluation.statistics import Rate
from agentalign.evaluation.tables import Column, Plot, Section, duration

Metrics = Sequence[Mapping[str, JsonValue]]
"""Rows of a metrics.jsonl; read here are "step", "loss", "eval/score", "kl" and "reward/mean", each where it stands."""


def success_plot(columns: Sequence[Column]) -> Plot:
    """Success per stage, seen and unseen families, with intervals."""

    def point(rate: Rate) -> plots.Point:
        return plots.Point(100 * rate.low, 100 * rate.mean, 100 * rate.high)

    groups: dict[str, Sequence[plots.Point | None]] = {columns[0][1].headline.name: [point(one.headline.success) for _, one in columns]}
    if any(one.seen and one.unseen for _, one in columns):
        groups["unseen families"] = [point(one.unseen.success) if one.unseen else None for _, one in columns]
    svg = plots.interval_plot([name for name, _ in columns], groups, y_label="success (%)")
    return Plot("Success per stage with 95 % intervals.", svg)


def time_plot(stages: Sequence[tuple[str, float]]) -> Plot:
    """Seconds per stage."""
    names, seconds = [name for name, _ in stages], [spent for _, spent in stages]
    svg = plots.bar_plot(names, seconds, [duration(spent) for spent in seconds])
    return Plot("Time per stage: sampling, training and dev gate.", svg)


def training_sections(stages: Sequence[tuple[str, Metrics]]) -> list[Section]:
    """Loss, dev success, and KL with reward, of each stage that recorded them."""
    losses = [
        Plot(name, plots.line_plot([line], x_label="step", y_label="loss", smooth=True))
        for name, rows in stages
        if (line := _series(name, rows, "loss"))
    ]
    dev = [
        Plot(name, plots.line_plot([line], x_label="step", y_label="dev score (%)" if unit else "dev score", percent=unit))
        for name, rows in stages
        for unit in (all(0 <= value <= 1 for value in _values(rows, "eval/score").values()),)
        if (line := _series(name, rows, "eval/score", scale=100 if unit else 1))
    ]
    sections = []
    if losses:
        sections.append(Section("Learning curves", "Loss per optimizer step; the strong line is a running mean.", plots=tuple(losses)))
    if dev:
        sections.append(
            Section("Dev score while training", "What the dev gate saw; every choice was made on these tasks.", plots=tuple(dev))
        )
    for name, rows in stages:
        drawn = _reward_plots(rows)
        if drawn:
            text = (
                "How far the policy moved from its reference, and what reward it got for it. Reward that rises only with KL is suspicious."
            )
            sections.append(Section(f"KL and reward: {name}", text, plots=drawn))
    return sections


def _reward_plots(metrics: Metrics) -> tuple[Plot, ...]:
    rows = [row for row in metrics if _is_number(row.get("kl")) and _is_number(row.get("reward/mean"))]
    kl, reward = _series("KL", rows, "kl"), _series("reward", rows, "reward/mean")
    if kl is None or reward is None:
        return ()
    return (
        Plot("Reward against KL, step by step", plots.path_plot(kl.y, reward.y, x_label="KL to reference (nats)", y_label="mean reward")),
        Plot("Mean reward per step", plots.line_plot([reward], x_label="step", y_label="mean reward", smooth=True)),
        Plot("KL to the reference per step", plots.line_plot([kl], x_label="step", y_label="KL (nats)", smooth=True)),
    )


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _series(name: str, rows: Metrics, key: str, *, scale: float = 1.0) -> plots.Series | None:
    """One metric over its steps; None for fewer than two."""
    found = _values(rows, key)
    return plots.Series(name, list(found), [scale * value for value in found.values()]) if len(found) > 1 else None


def _values(rows: Metrics, key: str) -> dict[float, float]:
    """Finite values by step. A step done again after a restart counts as done last; a skipped one has no numbers."""
    found: dict[float, float] = {}
    for number, row in enumerate(rows):
        value, step = row.get(key), row.get("step", number)
        if _is_number(value) and _is_number(step) and not row.get("skipped"):
            found[float(step)] = float(value)
    return dict(sorted(found.items()))
