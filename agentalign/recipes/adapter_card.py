"""What a card says of a training and of a base, and the small files that lie beside an adapter's weights."""

import importlib.metadata
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentalign.records.adapter import Training
from agentalign.records.base import digest
from agentalign.records.golden import Golden
from agentalign.rollouts.bundle import TEMPLATE_FILE
from agentalign.rollouts.golden import GOLDEN_FILE
from agentalign.training.base import Base
from agentalign.training.model import Model
from agentalign.training.quantize import quantization_recipe
from agentalign.training.step import Outcome

PACKAGES = ("agentalign", "torch", "transformers", "peft", "bitsandbytes", "tokenizers")
TOKENIZER_SETTINGS = "tokenizer_config.json"


def about_training(training: Training, outcome: Outcome, metrics: Mapping[str, float]) -> dict[str, Any]:
    """The card's fields that say how it was trained."""
    return {
        "taskset": training.taskset,
        "recipe": training.recipe,
        "training": training.id,
        "config": training.config,
        "data_digest": training.data_digest,
        "seed": training.seed,
        "dev_scores": {step: score for step, score in outcome.evaluations if math.isfinite(score)},
        "packages": _versions(),
        "metrics": {
            **{name: float(value) for name, value in outcome.last_metrics.items() if math.isfinite(value)},
            **metrics,
            "steps": float(outcome.steps),
            "best_step": float(outcome.best_step),
        },
    }


def about_base(base: Base, model: Model) -> dict[str, Any]:
    """The card's fields that say on what, and under which template."""
    return {
        "base": base.name,
        "base_digest": base.digest,
        "base_files": base.files,
        "quantization": model.quantization,
        "quantization_recipe": quantization_recipe(model.quantization, model.dtype),
        "template_digest": digest(base.template),
        "template_kwargs": json.dumps(base.template_kwargs),
    }


def write_settings(base: Base, files: Path) -> None:
    """The chat template, and the tokenizer's settings without it: two templates could differ."""
    (files / TEMPLATE_FILE).write_text(base.template, encoding="utf-8")
    settings = base.folder / TOKENIZER_SETTINGS
    if settings.is_file():
        kept = {key: value for key, value in json.loads(settings.read_text("utf-8")).items() if key != "chat_template"}
        (files / TOKENIZER_SETTINGS).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_golden(golden: Golden | None, files: Path) -> None:
    """golden.json, where there is one."""
    if golden is not None:
        (files / GOLDEN_FILE).write_text(golden.model_dump_json() + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
