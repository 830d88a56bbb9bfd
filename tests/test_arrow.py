"""Parquet files and saved datasets are chat rows too, and no null gets into what a model learns to write."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars
from pydantic import JsonValue

from agentalign.errors import DataError
from agentalign.exchange.arrow import is_arrow, open_arrow, write_arrow
from agentalign.exchange.lines import Row

CHAT: JsonValue = [{"role": "user", "content": "Hello \ud800"}, {"role": "assistant", "content": "Hi."}]
disable_progress_bars()


def rows(path: Path) -> list[Row]:
    with open_arrow(path) as opened:
        found = list(opened.rows)
    assert opened.source.lines == len(found)
    return found


def save(folder: Path, *fields: dict[str, object]) -> Path:
    Dataset.from_list(list(fields)).save_to_disk(folder)
    return folder


def test_rows_are_read_back_equal(tmp_path: Path) -> None:
    schema: JsonValue = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    written = [
        {"messages": CHAT, "tools": [schema], "task_id": "t1"},
        {"messages": CHAT, "tools": [], "task_id": None},
    ]
    path = tmp_path / "all [1]*.parquet"  # * and [ are no patterns here
    assert write_arrow(path, written) == 2
    first, second = rows(path)
    assert (first.number, first.value) == (1, {"messages": CHAT, "tools": json.dumps([schema]), "task_id": "t1"})
    assert (second.number, second.value) == (2, {"messages": CHAT, "tools": "[]"})


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    assert write_arrow(tmp_path / "none.parquet", []) == 0


def test_equal_content_has_one_digest(tmp_path: Path) -> None:
    digests = set()
    for folder, said in (("one", "Hi."), ("two", "Hi."), ("three", "Ho.")):
        with open_arrow(save(tmp_path / folder, {"messages": said})) as opened:
            digests.add(opened.source.digest)
    assert len(digests) == 2


def test_rows_are_of_the_split_of_their_table_and_never_more_for_training_than_they_were(tmp_path: Path) -> None:
    table = Dataset.from_list([{"messages": "[]", "split": said} for said in (None, "train", "dev")])
    DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    assert is_arrow(tmp_path / "saved")
    found = rows(tmp_path / "saved")
    assert [row.number for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.value and row.value["split"] for row in found] == ["train", "train", "dev", "test", "test", "test"]


def test_nested_messages_are_read_where_arguments_are_text(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "W1"}'}}
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "tool_calls": [call]}]
    (row,) = rows(save(tmp_path / "saved", {"messages": turns, "tools": ["look"]}))
    assert row.value is not None
    assert isinstance(messages := row.value["messages"], list)
    assert isinstance(asked := messages[1], dict)
    assert asked["tool_calls"] == [call]
    assert row.value["tools"] == ["look"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {"x": 1}}}]}]},
            "`arguments` of a call stand in nested columns",
        ),
        ({"messages": json.dumps(CHAT), "tools": [{"type": "function", "function": {"name": "a"}}]}, "`tools` stand in nested columns"),
        ({"messages": "Hello"}, "`messages` is text, but not JSON"),
        ({"messages": '{"a": 1, "a": 2}'}, "stands twice"),
        ({"messages": "[" * 100_000}, "nested too deeply"),
        ({"messages": '"' + "x" * 2**24 + '"'}, "longer than 16 MiB"),
        ({"messages": json.dumps(CHAT), "when": datetime(2026, 1, 1, tzinfo=UTC)}, "`when` holds datetime"),
        ({"messages": json.dumps(CHAT), "picture": b"\x89PNG"}, "`picture` holds bytes"),
    ],
)
def test_a_row_that_cannot_be_used_costs_one_row(tmp_path: Path, fields: dict[str, object], words: str) -> None:
    (row,) = rows(save(tmp_path / "saved", fields))
    assert row.value is None
    assert words in row.reason
    assert row.reason.endswith(".")


def test_a_table_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    cut, lost, strange = (save(tmp_path / name, {"messages": "[]"}) for name in ("cut", "lost", "strange"))
    part = next(cut.glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:20])
    next(lost.glob("*.arrow")).unlink()
    (strange / "state.json").write_text("{}")
    for name, words in {
        "none.parquet": "missing",
        "bad.parquet": "cannot be",
        "cut": "cannot be",
        "lost": "missing",
        "strange": "cannot be",
    }.items():
        with pytest.raises(DataError, match=rf"{name}: .*{words}.*\.$"), open_arrow(tmp_path / name):
            pass


def test_other_files_and_folders_are_not_tables(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert not is_arrow(tmp_path)
    assert not is_arrow(tmp_path / "rows.jsonl")
    assert is_arrow(tmp_path / "rows.parquet"), "one that is missing is told so"
