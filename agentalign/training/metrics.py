"""metrics.jsonl: one flat row per step or evaluation, valid JSON whatever happened, without a step that stands twice."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

SHOWN = ("loss", "rewards/accuracies", "accuracy", "reward/mean", "kl", "eval/score")
"""What the line on stderr shows, where a row has it."""


def write_row(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append a row. JSON has no NaN: a number that is not finite is left out and its name listed under "not_finite"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row: dict[str, object] = {"step": step, **{name: float(f"{value:.6g}") for name, value in metrics.items() if math.isfinite(value)}}
    odd = [name for name, value in metrics.items() if not math.isfinite(value)]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | ({"not_finite": odd} if odd else {}), allow_nan=False) + "\n")


def forget_rows_after(path: Path, step: int) -> None:
    """Drop rows of steps that will be run again, and a last line that a kill tore; in place by one rename."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def short(metrics: Mapping[str, float]) -> str:
    """The few figures a person watches."""
    return " ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN if name in metrics)
