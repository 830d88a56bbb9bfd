"""Chat rows in Arrow tables: Parquet files, and folders that `datasets.save_to_disk` wrote.

`messages` and `tools` are JSON text in a column each. A nested column gives every value the keys of all others, with nulls in them, and a
model would learn to write those: nested messages are read where nothing can have been added to them, and refused where it can.
Surprise: a table has no absent values, so a null is read as a field that the row does not have.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import JsonValue

from agentalign.errors import DataError
from agentalign.exchange.lines import MAX_LINE_BYTES, Opened, Row, Source, parse

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIX = ".parquet"
SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder, for one table or for one per split."""
_CHUNK = 2**20
_BATCH = 100


def is_arrow(path: Path) -> bool:
    """Whether this is such a file or folder, by its name or by what lies in it."""
    return path.suffix == SUFFIX or any((path / name).is_file() for name in SAVED)


@contextmanager
def open_arrow(path: Path) -> Iterator[Opened]:
    """Open it to be read once; DataError where it is missing or damaged. Rows of a table per split are of that split."""
    with TemporaryDirectory(prefix="agentalign-") as cache:
        source, tables = _load(path, Path(cache))
        yield Opened(source, _rows(tables))


def write_arrow(path: Path, rows: Iterable[Mapping[str, JsonValue]]) -> int:
    """Write rows of one form as Parquet, text as it is and everything else as JSON text; returns how many."""
    from datasets import Dataset, Features, Value, disable_progress_bars

    columns: dict[str, list[str | None]] = {"messages": [], "tools": []}
    for row in rows:
        for name, value in row.items():
            # ASCII escapes: a model may have written half a surrogate pair, which is no UTF-8. In text that is JSON they read back.
            text = value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
            columns.setdefault(name, []).append(text if isinstance(text, str | None) else json.dumps(text))
    disable_progress_bars()
    # Plain strings end at 2 GiB per column.
    table = Dataset.from_dict(columns, features=Features({name: Value("large_string") for name in columns}))
    table.to_parquet(str(path))
    return len(table)


def _load(path: Path, cache: Path) -> "tuple[Source, dict[str, Dataset]]":
    from datasets import Dataset, DatasetDict, disable_progress_bars, load_from_disk
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    try:
        if path.is_dir():
            found = load_from_disk(str(path))
        else:
            # By a plain name: in the given one, * and [ would be a pattern for other files.
            (cache / "rows.parquet").symlink_to(path.resolve(strict=True))
            found = Dataset.from_parquet(str(cache / "rows.parquet"), cache_dir=str(cache))
        digest = _digest(path)
    except FileNotFoundError:
        raise DataError(f"{path}: it, or a file that it names, is missing. Check the path, or save it anew.") from None
    except (OSError, ValueError, LookupError, TypeError, DatasetsError) as error:
        raise DataError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:200]}). Save it anew.") from None
    tables = dict(found) if isinstance(found, DatasetDict) else {"": found}
    return Source(path, digest, sum(map(len, tables.values()))), tables


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    for part in sorted(path.rglob("*.arrow")) if path.is_dir() else [path]:
        sha.update(part.relative_to(path).as_posix().encode() + b"\0")
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()[:32]


def _rows(tables: "Mapping[str, Dataset]") -> Iterator[Row]:
    number = 0
    for split, table in tables.items():
        # As Arrow: `datasets` would open the files that columns of pictures and sounds name.
        for batch in table.with_format("arrow").iter(_BATCH):
            for fields in batch.to_pylist():
                number += 1
                present = {name: value for name, value in fields.items() if value is not None}
                # Rows may carry the split they were drawn from; a table that is not for training holds all of its rows out.
                if split and (split != "train" or "split" not in present):
                    present["split"] = split
                yield _row(number, present)


def _row(number: int, fields: dict[str, JsonValue]) -> Row:
    messages = fields.get("messages")
    try:
        for name, value in fields.items():
            if len(json.dumps(value)) > MAX_LINE_BYTES:
                return Row(number, None, f"`{name}` is longer than {MAX_LINE_BYTES / 2**20:,.0f} MiB.")
        if isinstance(messages, str):
            fields = {**fields, "messages": parse(messages)}
    except TypeError:
        return Row(number, None, f"`{name}` holds {type(value).__name__}, which JSON cannot say. Write it as text or leave it out.")
    except RecursionError:
        return Row(number, None, "`messages` is nested too deeply.")
    except ValueError as error:
        return Row(number, None, f"`messages` is text, but not JSON ({error}).")
    if isinstance(tools := fields.get("tools"), list) and any(isinstance(tool, dict) for tool in tools):
        return Row(number, None, f"`tools` {_PADDED}")
    if _holds_mapping(messages, "arguments"):
        return Row(number, None, f"`arguments` of a call {_PADDED}")
    return Row(number, fields)


_PADDED = "stand in nested columns, where a table adds nulls for the keys of other rows. Write them as JSON text."


def _holds_mapping(value: JsonValue, key: str) -> bool:
    """Whether a mapping stands under this key, at any depth."""
    if isinstance(value, dict):
        return isinstance(value.get(key), dict) or any(_holds_mapping(inner, key) for inner in value.values())
    return isinstance(value, list) and any(_holds_mapping(inner, key) for inner in value)
