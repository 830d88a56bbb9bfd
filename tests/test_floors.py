"""The floors of the house: imports only go down, and packages of one floor are strangers to each other."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("errors",),
    ("strict_yaml", "records", "config"),
    ("store", "exchange", "environments", "training"),
    ("rollouts",),
    ("scoring",),
    ("evaluation",),
    ("recipes", "deployment"),
    ("demo",),
    ("cli", "ui"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS, start=1) for name in names}
# (importer, imported): the ways round the rule, each with its reason.
ALLOWED = {
    ("cli", "ui"): "one lazy import starts the web pages",
    ("config", "strict_yaml"): "the config reader is what the YAML loader is for",
}


def sources() -> list[tuple[str, Path]]:
    """Every module of the house as (room, path); a room is the name right under `agentalign`."""
    found = [(path.relative_to(ROOT / "agentalign").parts[0].removesuffix(".py"), path) for path in (ROOT / "agentalign").rglob("*.py")]
    found = [("cli" if room.startswith("cli_") or room == "__main__" else room, path) for room, path in found]
    return [*found, *(("ui", path) for path in (ROOT / "ui").rglob("*.py"))]


def imported_rooms(tree: ast.AST) -> list[tuple[str, int]]:
    """Rooms that a module imports anywhere in it, lazily too, with the line; "agentalign" for the package's own public names."""
    names: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(f"{node.module}.{alias.name}" if node.module == "agentalign" else node.module, node.lineno) for alias in node.names]
    rooms = [(name.split("."), line) for name, line in names]
    return [
        ("cli" if parts[1:2] and parts[1].startswith("cli_") else (parts[1:2] or parts)[0], line)
        for parts, line in rooms
        if parts[0] == "agentalign"
    ]


def offences(room: str, source: str) -> list[str]:
    """Imports of one module that go up, sideways, or to the package's front door."""
    found = []
    for target, line in imported_rooms(ast.parse(source)):
        if target == room or (room, target) in ALLOWED:
            continue
        if target not in FLOOR:
            found.append(f"line {line}: imports '{target}', which has no floor; import a module by its full name, or give it a floor here")
        elif FLOOR[target] >= FLOOR[room]:
            way = "sideways" if FLOOR[target] == FLOOR[room] else "up"
            found.append(f"line {line}: floor {FLOOR[room]} ({room}) imports {way} from floor {FLOOR[target]} ({target})")
    return found


def test_every_module_stands_on_a_floor() -> None:
    homeless = [
        str(path.relative_to(ROOT)) for room, path in sources() if room not in FLOOR and path != ROOT / "agentalign" / "__init__.py"
    ]
    assert not homeless


def test_imports_only_go_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} {offence}"
        for room, path in sources()
        if room in FLOOR
        for offence in offences(room, path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "source", "words"),
    [
        ("records", "from agentalign.store.store import Store", "imports up"),
        ("store", "import agentalign.training.base", "imports sideways"),
        ("training", "def f():\n    from agentalign.environments import tool", "line 2"),
        ("recipes", "from agentalign import deployment", "imports sideways"),
        ("scoring", "from agentalign import Store", "has no floor"),
        ("ui", "import agentalign.cli", "imports sideways"),
        ("demo", "if TYPE_CHECKING:\n    from agentalign.ui.app import app", "imports up"),
    ],
)
def test_a_wrong_import_is_seen(room: str, source: str, words: str) -> None:
    assert words in " ".join(offences(room, source))


def test_downward_imports_are_fine() -> None:
    source = (
        "import torch\nfrom agentalign.records.base import digest\nfrom agentalign import errors\nfrom agentalign.store import registry"
    )
    assert offences("store", source) == []
    assert offences("cli", "from agentalign.ui.app import serve") == []


@pytest.mark.parametrize(
    "statement", ["import agentalign", "import agentalign; agentalign.Trajectory; agentalign.overall", "import agentalign.cli"]
)
def test_importing_the_package_is_light(statement: str) -> None:
    code = (
        f"{statement}; import sys; print([m for m in ('torch', 'transformers', 'gradio', 'sqlalchemy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    code = "import agentalign\nfor name in agentalign.__all__: getattr(agentalign, name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr
