"""Files of one JSON object per line: written, and read within bounds, plain or gzip.

A file is looked through once before anything is made of it: its digest, its number of lines, and whether it can be read to the end.
A line that cannot be used is handed on with the reason, so that one bad line costs one line. The digest is over the text, so that a file
and its .gz are one source.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from pydantic import JsonValue

from agentalign.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
MAX_FILE_BYTES = 4 * 2**30
"""After decompression: a small .gz can hold a thousand times its size."""
_CHUNK = 2**20


class Source(NamedTuple):
    """A file that was read to its end."""

    path: Path
    digest: str
    """First 32 hex digits of the sha256 of its content."""
    lines: int
    """Or rows of a table."""


class Row(NamedTuple):
    """One line of a file, or one row of a table."""

    number: int
    """From 1."""
    value: dict[str, JsonValue] | None
    """None where the line cannot be used."""
    reason: str = ""
    """Why it cannot."""


class Opened(NamedTuple):
    """What can be imported: where it is from, and its rows, to be read once."""

    source: Source
    rows: Iterator[Row]


def look_through(path: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> Source:
    """Digest and length of a file; DataError where it is missing, damaged or too large."""
    sha, size, lines, last = hashlib.sha256(), 0, 0, b"\n"
    with _open(path) as file:
        while chunk := file.read(_CHUNK):
            size, lines, last = size + len(chunk), lines + chunk.count(b"\n"), chunk[-1:]
            if size > max_file_bytes:
                raise DataError(f"{path}: holds more than {max_file_bytes / 2**20:,.0f} MiB of text. Split it into smaller files.")
            sha.update(chunk)
    if not size:
        raise DataError(f"{path}: the file is empty. It should hold one JSON object per line.")
    return Source(path, sha.hexdigest()[:32], lines + (last != b"\n"))


def read_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES, max_file_bytes: int = MAX_FILE_BYTES) -> Iterator[Row]:
    """Every line that is not blank, in order."""
    number = size = 0
    with _open(path) as file:
        while line := file.readline(max_line_bytes + 1):
            number, size, whole = number + 1, size + len(line), True
            while len(line) > max_line_bytes and not line.endswith(b"\n"):
                whole, line = False, file.readline(max_line_bytes + 1)
                size += len(line)
                if size > max_file_bytes:
                    break
            if size > max_file_bytes:
                raise DataError(f"{path}: holds more than {max_file_bytes / 2**20:,.0f} MiB of text. Split it into smaller files.")
            if not whole:
                yield Row(number, None, f"the line is longer than {max_line_bytes / 2**20:,.0f} MiB.")
            elif line.strip():
                yield _row(number, line)


def write_lines(path: Path, rows: Iterable[Mapping[str, JsonValue]]) -> int:
    """Write rows as JSON Lines; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            # ASCII escapes: a model may have written half a surrogate pair, which is no UTF-8.
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not a file. Name the file in it.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is damaged ({error}). Make it anew.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check the path and its permissions.") from None


def _row(number: int, line: bytes) -> Row:
    try:
        value = parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        return Row(number, None, "the line is not UTF-8 text.")
    except RecursionError:
        return Row(number, None, "the line is nested too deeply.")
    except ValueError as error:
        return Row(number, None, f"the line is not JSON ({error}).")
    if not isinstance(value, dict):
        return Row(number, None, "the line is JSON, but not an object. Write {...} on each line.")
    return Row(number, value)


def parse(text: str) -> JsonValue:
    """The value of JSON text; ValueError also for a key that stands twice and for NaN, which other readers take in silence."""
    value: JsonValue = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        # `add` gives None, so a key is kept where it comes for the first time.
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.60} stands twice")
    return found


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is no JSON value")
