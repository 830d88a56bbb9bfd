"""A first taskset for a new project: a copy of one that came with agentalign."""

import shutil
from pathlib import Path

from agentalign.environments.taskset import list_tasksets
from agentalign.errors import TasksetError

EXAMPLE = "hello"


def copy_taskset(name: str, tasks: Path) -> Path:
    """Copy a packaged taskset into a project's tasks/; a folder of that name is left as it is."""
    found = {taskset.name: taskset.folder for taskset in list_tasksets(None)}
    if name not in found:
        raise TasksetError(f"no taskset '{name}' came with agentalign. These did: {', '.join(found) or 'none'}.")
    target = tasks / name
    if target.exists():
        return target
    try:
        tasks.mkdir(parents=True, exist_ok=True)
        shutil.copytree(found[name], target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise TasksetError(f"{target}: cannot be written ({error.strerror or error}). Choose a folder you may write to.") from None
    return target
