"""What a training began with, written down once in its folder: what is rated or added while it is down must not change what it learns.

`data.json` holds ids and nothing else, because lineage and `forget` read it; what else an item says (good or bad, a target) stands beside
it in `labels.json`. Files are written aside and renamed, so that one exists only whole.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import JsonValue

from agentalign.errors import TrainingError

logger = logging.getLogger("agentalign")
T = TypeVar("T")
DATA_FILE = "data.json"
"""In a training's folder: ids of what it learns from."""
LABELS_FILE = "labels.json"
"""In a training's folder: what it learns of them beside their content; not there where it learns nothing of the kind."""
BESIDE_FILE = "beside.json"
"""In a training's folder: its `BESIDE` settings as they were given, for a page that goes on with it."""
JUDGED_FILE = "judged_by.json"
"""In a training's folder: the digest of the dev tasks, checks and environment that its evaluations are made by."""
BESIDE = frozenset({"report_to", "gradient_checkpointing"})
"""Settings that change no result: no part of what a training is, so its record does not hold them."""


class TrainedOn(NamedTuple):
    """What a training is about; its identity, with the recipe, the settings and the base."""

    ids: Sequence[str]
    """Of runs and preferences, in order."""
    labels: Mapping[str, bool | float] = {}
    """What it learns of runs beside their content, by id, in the order of the runs: good or bad, a target."""
    rules: JsonValue = None
    """What else decides what it learns. Not written down: team code lives by it, so under other rules it is another training."""


def read_begun(folder: Path, rules: JsonValue) -> TrainedOn | None:
    """What a training began with; None, and said, where that cannot be read: the same data again makes the same files.

    Args:
        rules: those of now.
    """
    try:
        ids = json.loads((folder / DATA_FILE).read_text(encoding="utf-8"))
        file = folder / LABELS_FILE
        labels = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return TrainedOn([str(id) for id in ids], dict(labels), rules)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("what training %s began with cannot be read (%s); it goes on only if its data is the same now", folder.name, error)
        return None


def write_begun(folder: Path, about: TrainedOn, beside: Mapping[str, JsonValue]) -> None:
    """Write down what a training begins with.

    Args:
        beside: its settings that change no result.

    Raises:
        TrainingError: the disk is full or not writable; what was written before is untouched.
    """
    write_whole(folder / BESIDE_FILE, dict(beside))
    if about.labels:
        write_whole(folder / LABELS_FILE, dict(about.labels))
    write_whole(folder / DATA_FILE, list(about.ids))  # last: a folder with it is whole


def kept(file: Path, make: Callable[[], T]) -> T:
    """The JSON value of a file, which is made when the file is not there yet.

    Raises:
        TrainingError: it cannot be written, or be read again.
    """
    if not file.exists():
        write_whole(file, make())
    try:
        value: T = json.loads(file.read_text(encoding="utf-8"))
        return value
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{file} cannot be read ({error}), and it says what the training began with. Bring it back from a backup, or remove the folder "
            f"{file.parent} to train from the start."
        ) from None


def require_same_judge(folder: Path, judge: str) -> None:
    """TrainingError where a training has evaluations by another judge: best step, roll-back and a fall would be decided by the edit."""
    file = folder / JUDGED_FILE
    if _remembers(folder) and file.exists() and kept(file, lambda: judge) != judge:
        raise TrainingError(
            f"dev tasks, checks or environment were edited since training {folder.name} began, so its evaluations from before cannot be "
            "compared with new ones. Undo the edit and run the same command again, or remove its folder to train from the start: "
            f"{folder / 'checkpoints'}"
        )


def keep_judge(folder: Path, judge: str) -> None:
    """Write down whom a training's evaluations are made by, unless some are remembered. By who holds the folder alone."""
    if not (_remembers(folder) and (folder / JUDGED_FILE).exists()):
        write_whole(folder / JUDGED_FILE, judge)


def _remembers(folder: Path) -> bool:
    return (folder / "checkpoints").exists()


def write_whole(file: Path, value: object) -> None:
    """Write JSON whole or not at all; nothing where the file says just that.

    Raises:
        TrainingError: the disk is full or not writable; what was there is untouched.
    """
    text = json.dumps(value)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        if file.exists() and file.read_bytes() == text.encode():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise TrainingError(f"{file} was not written ({error}). Make room, or mend its rights, and run the same command again.") from None
