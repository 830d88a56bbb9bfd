"""metrics.jsonl while it is being written: only what was appended is read, and curves are thinned without losing a spike.

A training that goes on after a kill rewrites the file (rows of steps that are done again are dropped), which shows as another inode, a
shorter file, or another end of what was read: then everything is read anew. A last line that is still being written waits for its end.
"""

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

from pydantic import JsonValue

MOST_POINTS = 500
"""Per metric; a screen has no more."""
MOST_FILES = 32
Row = Mapping[str, JsonValue]


class Curve(NamedTuple):
    """One metric over its steps."""

    x: list[int]
    y: list[float]


class MetricsFile:
    """Rows of one metrics.jsonl, kept between looks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._inode = -1
        self._offset = 0
        self._end = b""
        self._rows: list[Row] = []

    def rows(self) -> Sequence[Row]:
        """All rows up to now; reads what is new."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    self._read(file.fileno())
            except FileNotFoundError:
                self._inode, self._offset, self._end, self._rows = -1, 0, b"", []
            return list(self._rows)

    def _read(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        same = found.st_ino == self._inode and found.st_size >= self._offset
        if not same or os.pread(descriptor, len(self._end), self._offset - len(self._end)) != self._end:
            self._inode, self._offset, self._end, self._rows = found.st_ino, 0, b"", []
        new = os.pread(descriptor, found.st_size - self._offset, self._offset)
        whole = new.rfind(b"\n") + 1
        self._rows += [row for line in new[:whole].splitlines() if (row := _row(line)) is not None]
        self._offset += whole
        self._end = (self._end + new[:whole])[-64:]


class MetricsFiles:
    """The files that were looked at last."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, MetricsFile] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, path: Path) -> Sequence[Row]:
        """Rows of a file."""
        with self._lock:
            file = self._files.setdefault(path, MetricsFile(path))
            self._files.move_to_end(path)
            while len(self._files) > MOST_FILES:
                self._files.popitem(last=False)
        return file.rows()


def names(rows: Sequence[Row]) -> list[str]:
    """Metrics that have numbers, in the order they first came."""
    found = {name: None for row in rows for name, value in row.items() if name not in ("step", "skipped") and _is_number(value)}
    return list(found)


def curve(rows: Sequence[Row], name: str, most: int = MOST_POINTS) -> Curve:
    """A metric's points, at most so many. A step done again counts as done last; a skipped one has no numbers."""
    found = {_step(row): float(value) for row in rows if not row.get("skipped") and _is_number(value := row.get(name))}
    points = thinned(sorted(found.items()), most)
    return Curve([step for step, _ in points], [value for _, value in points])


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """First, last, and of each stretch between them its lowest and its highest point: what stands out stays. `most` is 4 or more."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], max(1, (most - 2) // 2)
    kept: list[tuple[int, float]] = []
    for number in range(stretches):
        part = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [points[0], *kept, points[-1]]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None  # torn by a kill; the training drops it when it goes on
    return row if isinstance(row, dict) and _is_number(row.get("step")) else None


def _step(row: Row) -> int:
    step = row["step"]
    assert isinstance(step, int | float)
    return int(step)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
