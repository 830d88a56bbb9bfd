"""Chat rows into the store, with a report of what became of every row, and runs out of it as chat rows.

A run's id holds the file's digest and the row's number: reading a file again stores nothing new. Rows with equal content are different
events and are all stored, but named in the report. What a row says of its split is believed where it holds the run out of training,
whether or not the taskset knows its task: nothing that somebody tests with is learned from in silence.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.errors import DataError
from agentalign.exchange.arrow import SUFFIX, is_arrow, open_arrow, write_arrow
from agentalign.exchange.chat import Schemas, read_chat, read_known_tools, write_chat
from agentalign.exchange.lines import Opened, Row, look_through, read_rows, write_lines
from agentalign.records.trajectory import Origin, StopReason, Trajectory
from agentalign.store.adding import AddReport
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store

LEARNED_FROM = ("train", "")
"""Splits that recipes take runs of; empty is a run that says nothing about itself."""
BATCH = 200
"""Runs stored in one transaction; also how often progress is told."""


class Refusal(NamedTuple):
    """A row that was not stored."""

    row: int
    reason: str


class Duplicate(NamedTuple):
    """A row whose messages and tools equal those of a run that was there before."""

    row: int
    of: str
    """Id of the oldest such run."""


class IngestReport(NamedTuple):
    """What became of every row: read = stored + known + forgotten + refused."""

    read: int
    stored: int
    known: int
    """Stored by an earlier import of the same file."""
    duplicates: tuple[Duplicate, ...]
    """Among the stored."""
    refused: tuple[Refusal, ...]
    held_out: int
    """Rows, stored or known, that are out of training only because they say so themselves."""
    without_tools: int = 0
    """Rows, stored or known, whose agent calls tools although none was offered: training on them would show the model no tools."""
    forgotten: int = 0
    """Rows that were forgotten (`agentalign forget`): they are not kept again."""


class Written(NamedTuple):
    """What an export wrote."""

    runs: int
    left_out: int
    """Steps that a person corrected, and proposals, which are no runs."""


def import_file(
    path: Path, store: Store, taskset: Taskset, *, tools_file: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> IngestReport:
    """Store the runs of a file of chat rows (JSON Lines or Parquet), or of a saved dataset, as runs of a taskset.

    Args:
        tools_file: JSON with function schemas, for rows that only name their tools.

    Raises:
        DataError: the file cannot be read to its end, or none of its rows can be used; nothing was stored then.
    """
    known = _read_known_tools(tools_file) if tools_file else None
    tasks = {task.id: task for task in taskset.tasks()}
    with open_arrow(path) if is_arrow(path) else nullcontext(Opened(look_through(path), read_rows(path))) as (source, rows):
        tick = (lambda row: progress(row, source.lines)) if progress else (lambda _row: None)
        report = ingest(rows, store, taskset.name, source.digest, tasks=tasks, known_tools=known, progress=tick)
    if report.read == len(report.refused):
        first = f" The first is row {report.refused[0].row}: {report.refused[0].reason}" if report.refused else ""
        raise DataError(f"{path}: none of its {report.read} rows is a run.{first}")
    return report


def _read_known_tools(path: Path) -> dict[str, dict[str, JsonValue]]:
    try:
        return read_known_tools(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}). It must hold function schemas.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def ingest(
    rows: Iterable[Row],
    store: Store,
    taskset: str,
    source_digest: str,
    *,
    tasks: Mapping[str, Task] | None = None,
    known_tools: Schemas | None = None,
    progress: Callable[[int], None] = lambda _row: None,
) -> IngestReport:
    """Store the runs of chat rows.

    Args:
        rows: from `exchange.lines.read_rows` or `exchange.arrow.open_arrow`.
        source_digest: of the file the rows are from.
        tasks: the taskset's tasks; a row whose `task_id` is one of them is a run of it, in its family and, unless the row holds itself out,
            its split.
        known_tools: schemas by name, for rows that only name their tools.
        progress: called with the number of the last row done.
    """
    counts = {"read": 0, "stored": 0, "known": 0, "held_out": 0, "without_tools": 0, "forgotten": 0}
    refused: list[Refusal] = []
    duplicates: list[Duplicate] = []
    batch: list[tuple[int, Trajectory]] = []

    def flush() -> None:
        report, found = _store(store, batch)
        for name in ("stored", "known", "forgotten"):
            counts[name] += getattr(report, name)
        duplicates.extend(found)
        batch.clear()

    for row in rows:
        counts["read"] += 1
        try:
            run = _trajectory(row, taskset, source_digest, tasks or {}, known_tools)
            batch.append((row.number, run))
            counts["held_out"] += _says_that_it_is_held_out(run, tasks or {})
            counts["without_tools"] += run.tools == "[]" and any(message.tool_calls for message in run.messages)
        except DataError as error:
            refused.append(Refusal(row.number, str(error)))
        if len(batch) == BATCH:
            flush()
            progress(row.number)
    if batch:
        flush()
    return IngestReport(duplicates=tuple(duplicates), refused=tuple(refused), **counts)


def _trajectory(row: Row, taskset: str, source_digest: str, tasks: Mapping[str, Task], known_tools: Schemas | None) -> Trajectory:
    if row.value is None:
        raise DataError(row.reason)
    origin = Origin(kind="import", reference=source_digest, task=str(row.number))
    try:
        trajectory = read_chat(row.value, taskset=taskset, origin=origin, known_tools=known_tools)
        _ = trajectory.content_digest
    except RecursionError:
        raise DataError("it is nested too deeply.") from None
    labels = json.loads(trajectory.metadata)
    named, stated = labels.get("task_id"), _stated_split(labels.get("split"))
    if (reason := labels.get("stop_reason")) in tuple(StopReason):
        broke = labels.get("error") if reason == StopReason.ERROR else ""
        said = broke if isinstance(broke, str) else ""
        trajectory = trajectory.model_copy(update={"stop_reason": StopReason(reason), "error": said})
    task = tasks.get(named) if isinstance(named, str) else None
    if task is None:
        # A name that the taskset does not know may mean different tasks in different suites: then equal openings make one task.
        return trajectory.model_copy(update={"split": stated})
    split = stated or task.split if task.split in LEARNED_FROM else task.split
    return trajectory.model_copy(update={"task_id": task.id, "family": task.family, "split": split})


def _stated_split(label: JsonValue) -> str:
    """The split that a row says it is of. Words that we do not know (validation, holdout, a number) may all mean: not for training."""
    if label in (None, ""):
        return ""
    word = label.lower() if isinstance(label, str) else ""
    return word if word in ("train", "dev") else "test"


def _says_that_it_is_held_out(run: Trajectory, tasks: Mapping[str, Task]) -> bool:
    task = tasks.get(run.task_id) if run.task_id is not None else None
    return run.split not in LEARNED_FROM and (task is None or task.split in LEARNED_FROM)


def _store(store: Store, batch: list[tuple[int, Trajectory]]) -> tuple[AddReport, list[Duplicate]]:
    runs = [run for _, run in batch]
    before = store.duplicates({run.content_digest for run in runs})
    report = store.add(runs)
    found: list[Duplicate] = []
    first: dict[str, str] = {}
    for number, run in batch:
        known = before.get(run.content_digest, [])
        # A run that this very file stored earlier is not its own duplicate.
        if run.id in known:
            continue
        original = known[0] if known else first.setdefault(run.content_digest, run.id)
        if original != run.id:
            found.append(Duplicate(number, original))
    return report, found


def write_runs(store: Store, wanted: RunFilter, target: Path) -> Written:
    """Write the runs that match, oldest first, as a file that `import` reads. An existing file is refused.

    Corrected steps and proposals are written where `wanted` names their kind: a file knows no run that they are a step of, so whoever
    imported them had whole runs that break off after one call. Parquet where the name ends so, else JSON Lines.
    """
    if target.exists():
        raise DataError(f"{target} exists. Name another file.")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    left_out = 0

    def rows() -> Iterator[dict[str, JsonValue]]:
        nonlocal left_out
        for run in store.trajectories(wanted):
            if run.is_one_step and wanted.origin_kind is None:
                left_out += 1
            else:
                yield write_chat(run)

    try:
        count = write_arrow(partial, rows()) if target.suffix == SUFFIX else write_lines(partial, rows())
        partial.rename(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error}). Choose a folder you may write to.") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return Written(count, left_out)
