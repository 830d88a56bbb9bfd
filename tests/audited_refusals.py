"""Reads hostile folders in a process whose audit hook notes what must not happen; prints a report as JSON. See test_foreign.py."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from agentalign.errors import AdapterRefusedError
from agentalign.training.base_layers import linear_layers
from agentalign.training.foreign_folder import read_foreign

WATCHED = (
    "import",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "exec",
    "compile",
    "pickle.find_class",
)
events: list[str] = []
watching = False


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event in WATCHED:
        events.append(f"{event} {arguments[0]!r:.100}")
    if watching and event == "open" and ("evil" in str(arguments[0]) or str(arguments[0]).startswith("/etc")):
        events.append(f"open {arguments[0]!r}")


def read(folder: Path) -> bool:
    with tempfile.TemporaryDirectory() as copy:
        try:
            read_foreign(folder, layers, Path(copy))
        except AdapterRefusedError:
            return False
    return True


hostile, base, sound = map(Path, sys.argv[1:])
layers = linear_layers(base)
read(sound)  # what reading itself imports is imported now
sys.addaudithook(note)
watching = True
results = [read(folder / "adapter") for folder in sorted(hostile.iterdir()) if (folder / "adapter").is_dir()]
accepted = read(sound)
watching = False
json.dump({"refused": results.count(False), "accepted": int(accepted), "events": events}, sys.stdout)
