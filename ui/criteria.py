"""The criteria of a taskset as the pages ask for them: many times a second, and read anew only when their file has changed.

criteria.yaml alone is read: looking at runs must not run a team's code.
"""

from functools import lru_cache
from pathlib import Path

from agentalign.environments.taskset import find_taskset, load_criteria
from agentalign.records.criterion import Criterion


def criteria_of(tasks: Path, taskset: str) -> tuple[Criterion, ...]:
    """The taskset's criteria; an error of ours where there are none that can be read."""
    path = find_taskset(taskset, tasks) / "criteria.yaml"
    return _read(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> tuple[Criterion, ...]:
    return load_criteria(path)
