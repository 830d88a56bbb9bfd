"""What a wheel holds: everything the package needs, inside `agentalign`, and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where a folder of the repository stands inside the wheel.
MAPPED = {"agentalign": "agentalign", "ui": "agentalign/ui", "tasks": "agentalign/tasks"}
UNSHIPPED = ("ui/screenshots/",)


def source_files() -> Iterator[tuple[str, str]]:
    """(path in the repository, path in the wheel) of every file that must be shipped."""
    for folder, home in MAPPED.items():
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in path.parts and not name.startswith(UNSHIPPED):
                yield name, f"{home}/{path.relative_to(ROOT / folder).as_posix()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that neither old builds help nor this one leaves anything behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "stale.cpython-311.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_from_wheel(unpacked: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=unpacked, env={**os.environ, "PYTHONPATH": str(unpacked)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_stands_beside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"agentalign"}


def test_every_source_file_is_shipped(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = [source for source, target in source_files() if target not in names]
    assert not missing, f"not in the wheel (see packages and package-data in pyproject.toml): {missing}"


def test_nothing_else_is_shipped(wheel: Path) -> None:
    expected = {target for _, target in source_files()}
    extra = [name for name in zipfile.ZipFile(wheel).namelist() if name not in expected and ".dist-info/" not in name]
    assert not extra


def test_ui_and_tasks_are_inside_the_package(unpacked: Path) -> None:
    code = "import agentalign.ui, agentalign.tasks; print(agentalign.ui.__file__); print(agentalign.tasks.__file__)"
    assert run_from_wheel(unpacked, code).splitlines() == [f"{unpacked}/agentalign/{part}/__init__.py" for part in ("ui", "tasks")]


def test_the_command_starts_from_the_wheel(unpacked: Path) -> None:
    entry = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text()
    assert "agentalign = agentalign.cli:main" in entry
    assert "usage: agentalign" in run_from_wheel(
        unpacked, "import sys; sys.argv = ['agentalign', '--help']; from agentalign.cli import main; main()"
    )


def test_a_packaged_taskset_loads_from_the_wheel(unpacked: Path) -> None:
    code = "from agentalign import load_taskset; print(load_taskset('order_desk', None).folder)"
    assert run_from_wheel(unpacked, code) == f"{unpacked}/agentalign/tasks/order_desk"
