"""Ratings as files: JSON Lines read back equal, and no cell of a CSV runs as a formula."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_desk import HOME, make_desk, make_run
from starlette.testclient import TestClient

from agentalign.errors import DataError
from agentalign.exchange.ratings import NUMBER, neutral_cell, preference_table, rating_lines, read_rating_line, score_table
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.preference import Item, Preference
from agentalign.store.store import Store
from agentalign.ui.api import create_api

FORMULAS = (
    "=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "＝1+1", "\u200b=1", ";=1", ",=1",
    "|calc", "%0A=1", "\ufeff=1", "\x00=1", '"=1', "'=1", "-", "=", "+44 20 1234", "-1-1", "@", "＋1", "－1+1", "＠x",
)  # fmt: skip


def rows_of(lines: Iterable[str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("".join(lines), newline="")))


def score(**fields: object) -> Score:
    return Score.model_validate({"trajectory": "t", "criterion": "tone@1", "value": 4, "rater": "rater", "rater_kind": "human"} | fields)


def runs_as_formula(cell: str) -> bool:
    """What a spreadsheet may take for a formula: the acceptance rule, written apart from the code under test."""
    text = unicodedata.normalize("NFKC", cell)
    while text and (text[0].isspace() or unicodedata.category(text[0]) in ("Cc", "Cf") or text[0] in ";,"):
        text = text[1:]
    return text[:1] in ("=", "+", "-", "@", "|") and not NUMBER.fullmatch(cell)


@pytest.mark.parametrize("text", FORMULAS)
def test_formula_cells_are_neutralised(text: str) -> None:
    assert neutral_cell(text) == "'" + text
    (row,) = rows_of(score_table([score(note=text, rater=text)]))
    assert not runs_as_formula(row["note"])
    assert not runs_as_formula(row["rater"])


@pytest.mark.parametrize("value", ["-1", "+2.5", "-0.25", "1e-3", "4", 4.0, -2, None, "kind, and quick", "W1042", "a=b", "x - y"])
def test_numbers_and_plain_text_stay_as_they_are(value: object) -> None:
    assert neutral_cell(value) == ("" if value is None else str(value))


@given(st.text(max_size=12))
def test_no_text_at_all_becomes_a_formula(text: str) -> None:
    assert not runs_as_formula(neutral_cell(text))


def test_what_spreadsheets_would_split_or_break_stays_in_one_cell() -> None:
    note = 'a "quoted", word;\r\nsecond line\tand =1'
    text = "".join(score_table([score(note=note)]))
    assert rows_of([text])[0]["note"] == note
    assert all(line.startswith('"') for line in text.split("\r\n")[:2]), "every cell is quoted"


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.sampled_from(["value", "not_applicable", "error"]))
def test_json_lines_read_back_equal(notes: list[str], status: str) -> None:
    scores = [
        score(note=note, status=status, value=0.1 + 0.2 if status == "value" else None, step=index) for index, note in enumerate(notes)
    ]
    preference = Preference(taskset="desk", items=(Item("a"), Item("b")), source="human", rater="rater", note=notes[0], left="b")
    lines = list(rating_lines([*scores, preference]))
    assert [read_rating_line(line, "file") for line in lines] == [*scores, preference]
    assert all(line.endswith("\n") and "\n" not in line[:-1] for line in lines)


def test_a_lone_surrogate_is_exported_as_an_escape() -> None:
    odd = score(note="\ud800")
    (line,) = rating_lines([odd])
    assert read_rating_line(line.encode().decode(), "file") == odd
    assert rows_of(score_table([odd]))[0]["note"] == "\\ud800"


def test_what_is_not_a_rating_is_refused_by_its_place() -> None:
    for line in ("", "[]", "{}", '{"kind": "score"}', '{"kind": "run"}', '{"kind": "score", "value": NaN}', "null"):
        with pytest.raises(DataError, match=r"ratings\.jsonl:3: not a rating"):
            read_rating_line(line, "ratings.jsonl:3")


def test_preferences_say_better_and_worse_in_columns() -> None:
    ranking = Preference(
        taskset="desk", items=(Item("a", 1), Item("b", 1), Item("c", 1)), source="scores", rater="scores", strength=2, criterion="tone@1"
    )
    (row,) = rows_of(preference_table([ranking]))
    assert (row["better"], row["better_step"], row["worse"], row["others"], row["strength"], row["tie"]) == (
        "a",
        "1",
        "b",
        "c#1",
        "2.0",
        "False",
    )


def test_exports_come_as_files_of_everything_or_of_one_taskset(tmp_path: Path) -> None:
    project = make_desk(tmp_path)
    with Store(project.store_url) as store, TestClient(create_api(project, rater="rater"), base_url=HOME) as client:
        client.get("/")
        runs = [make_run(answer="Yes."), make_run(answer="No.", sample=1), make_run(taskset="other")]
        store.add(runs)
        stored = [
            score(trajectory=runs[0].id, note="=HYPERLINK(1)"),
            score(trajectory=runs[1].id, status=ScoreStatus.NOT_APPLICABLE, value=None),
            score(trajectory=runs[2].id, value=1),
        ]
        store.add_scores(stored)
        preference = Preference(taskset="desk", items=(Item(runs[0].id), Item(runs[1].id)), source="human", rater="rater", note="+1+1")
        store.add_preferences([preference])

        answer = client.get("/api/export/scores.jsonl")
        assert answer.headers["content-disposition"] == 'attachment; filename="scores.jsonl"'
        assert [read_rating_line(line, "file") for line in answer.text.splitlines()] == stored
        assert len(client.get("/api/export/scores.jsonl", params={"taskset": "desk"}).text.splitlines()) == 2
        assert [json.loads(line)["id"] for line in client.get("/api/export/preferences.jsonl").text.splitlines()] == [preference.id]
        assert rows_of([client.get("/api/export/scores.csv").text])[0]["note"] == "'=HYPERLINK(1)"
        assert rows_of([client.get("/api/export/preferences.csv").text])[0]["note"] == "'+1+1"
        assert client.get("/api/export/runs.csv").status_code == 422
        assert client.get("/api/export/scores.xlsx").status_code == 422
