"""A step's figures, and metrics.jsonl: a flat row per step or evaluation, valid JSON whatever happened, no step twice."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from agentalign.errors import TrainingError

SHOWN = ("loss", "rewards/accuracies", "accuracy", "reward/mean", "kl", "eval/score")
"""What the line on stderr shows, where a row has it."""
PLAN_FILE = "plan.json"


def counts_of(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Items per loss term in all of a step's micro-batches."""
    totals: dict[str, float] = {}
    for some in counts:
        for name, count in some.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


class StepSums:
    """A process's part of a step's figures, and the runs behind them."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[float, float]] = {}
        self.involved: list[str] = []

    def add(self, name: str, value: float, weight: float) -> None:
        """Add to a figure; without any weight it is a plain sum."""
        total, weights = self.values.get(name, (0.0, 0.0))
        self.values[name] = (total + value, weights + weight)


def means(parts: Sequence[StepSums]) -> dict[str, float]:
    """The step's figures from what every process has of them."""
    whole = StepSums()
    for part in parts:
        for name, (total, weight) in part.values.items():
            whole.add(name, total, weight)
    return {name: total / (weight or 1.0) for name, (total, weight) in whole.values.items()}


def write_plan(folder: Path, total_steps: int) -> None:
    """Say how many steps a training is to have, for whoever watches it."""
    write_line(folder / PLAN_FILE, {"total_steps": total_steps}, mode="w")


def write_row(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append a row. JSON has no NaN: a number that is not finite is left out and its name listed under "not_finite"."""
    row: dict[str, object] = {"step": step, **{name: float(f"{value:.6g}") for name, value in metrics.items() if math.isfinite(value)}}
    odd = [name for name, value in metrics.items() if not math.isfinite(value)]
    write_line(path, row | ({"not_finite": odd} if odd else {}))


def write_line(path: Path, row: Mapping[str, object], *, mode: Literal["a", "w"] = "a") -> None:
    """Append a line of JSON, or make it the only one.

    Raises:
        TrainingError: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror}); checkpoints are untouched. Free some space and run the same command again."
        ) from error


def forget_rows_after(path: Path, step: int, evaluated: Collection[int]) -> None:
    """Drop rows of steps and evaluations that will be made again, and a last line that a kill tore; in place by one rename.

    Args:
        evaluated: steps whose evaluation is known: a kill may have come between its row and its checkpoint.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            if row["step"] <= step and ("eval/score" not in row or row["step"] in evaluated):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def short(metrics: Mapping[str, float]) -> str:
    """The few figures a person watches."""
    return " ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN if name in metrics)
