"""Which process a training runs in: its pid, and the moment it started, written into the training's folder.

A pid alone names nothing for long, because pids are used again; with the moment of its start (field 22 of /proc/PID/stat) it names one
process. So nobody is ever sent a signal that was meant for another.
"""

import os
import signal
from pathlib import Path

LOCK_FILE = ".lock"
"""In a training's folder: held by its process while it runs, and naming it."""
LAUNCH_FILE = "launched"
"""In a training's folder: names the process that was started for it and has not opened it yet."""


def write_process(file: Path, pid: int) -> None:
    """Name a process in a file."""
    file.write_text(f"{pid} {_started(pid)}\n", encoding="ascii")


def read_process(file: Path) -> int | None:
    """The pid that a file names, if that very process is alive; None where it is not."""
    try:
        pid, started = file.read_text(encoding="ascii").split()
        return int(pid) if started == _started(int(pid)) else None
    except (OSError, ValueError):  # no file, or one that was just opened and names nobody yet
        return None


def ask_to_stop(pid: int) -> None:
    """SIGTERM: a training saves what it has and ends."""
    os.kill(pid, signal.SIGTERM)


def _started(pid: int) -> str:
    """Clock ticks after boot at which a process started; ValueError for one that is over, though its parent has not asked for its end."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name in parentheses, and may hold anything.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        raise ValueError(f"process {pid} is over.")
    return fields[19]
