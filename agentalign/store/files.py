"""Files that are whole or not there: written aside, forced to the disk, then renamed."""

import hashlib
import os
import shutil
from pathlib import Path


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(source: Path, target: Path) -> None:
    """Rename a file or folder so that it survives a power cut; the content of a folder must be on the disk already."""
    if source.is_file():
        fsync(source)
    source.replace(target)
    fsync(target.parent)


def write_whole(path: Path, text: str) -> None:
    """Replace a text file in one step, readable by everyone."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, "utf-8")
    aside.chmod(0o644)
    put_in_place(aside, path)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file's content, readable by everyone, and force it to the disk."""
    shutil.copyfile(source, target)
    target.chmod(0o644)
    fsync(target)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
