"""Crash-safe checkpoints of a training: written aside, fsynced, listed in a manifest, renamed.

A checkpoint exists only under its final name and only whole. Loading takes the newest whose every file has the digest its manifest
says, else the one before. Two are kept.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentalign.errors import TrainingError

logger = logging.getLogger("agentalign")
MANIFEST = "manifest.json"
KEPT = 2


@dataclass
class Snapshot:
    """Everything a training needs to go on from a step."""

    step: int
    """Optimizer steps done."""
    weights: dict[str, Tensor]
    """Trained tensors by name."""
    optimizer: dict[str, Tensor]
    """Optimizer state, flat, by name."""
    notes: dict[str, object] = field(default_factory=dict)
    """Plain JSON: evaluations so far, the best step, and what a recipe wants to remember."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best evaluation; empty before the first."""


def save_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Write step-<n> whole or not at all; removes all but the newest two.

    Raises:
        TrainingError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target, aside = folder / f"step-{snapshot.step:08d}", folder / f".writing-{snapshot.step:08d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        for name in ("weights", "optimizer", "best"):
            save_file({k: v.detach().cpu().contiguous() for k, v in getattr(snapshot, name).items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": snapshot.step, "notes": snapshot.notes}), encoding="utf-8")
        digests = {path.name: _file_digest(path) for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps(digests), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _fsync(path)
        before = folder / f"{aside.name}-before"
        if target.exists():
            target.rename(before)
        aside.rename(target)
        _fsync(folder)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {target} was not written ({error}); the one before is untouched. Free some space and run the same command again."
        ) from error
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(folder: Path) -> Snapshot | None:
    """The newest checkpoint that verifies; None where there is none. A damaged one is skipped and said."""
    for path in _checkpoints(folder):
        damage = _damage(path)
        if damage:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path.name, damage)
            continue
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {name: load_file(path / f"{name}.safetensors") for name in ("weights", "optimizer", "best")}
        return Snapshot(step=state["step"], notes=state["notes"], **tensors)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _damage(path: Path) -> str:
    try:
        digests: Mapping[str, str] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in digests.items():
            if _file_digest(path / name) != expected:
                return f"{name} differs from its manifest"
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as "index/name" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": torch.as_tensor(value).detach().clone() for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """The inverse of `flatten_optimizer`, on an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
