"""Curves while they are written: only new lines are read, a rewritten file is read anew, and no spike is lost."""

import json
import os
import random

from agentalign.training.metrics import forget_rows_after, write_row
from agentalign.ui.curves import MOST_POINTS, MetricsFile, MetricsFiles, curve, names, thinned


def test_only_what_was_appended_is_read(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    assert file.rows() == []
    for step in range(1, 50):
        write_row(path, step, {"loss": 1 / step})
    assert len(file.rows()) == 49
    asked: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: asked.append(size) or pread(handle, size, offset))
    write_row(path, 50, {"loss": 0.02})
    assert [row["step"] for row in file.rows()] == list(range(1, 51))
    assert sum(asked) < 200, "the end of what was read, and one line more"


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    file = MetricsFile(path)
    assert [row["step"] for row in file.rows()] == [1]
    with path.open("a") as more:
        more.write('ss": 0.5}\n')
    assert [row["step"] for row in file.rows()] == [1, 2]


def test_rows_that_a_resume_forgets_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(1, 10):
        write_row(path, step, {"loss": 1.0})
    assert len(file.rows()) == 9
    forget_rows_after(path, 5, ())
    for step in range(6, 12):
        write_row(path, step, {"loss": 2.0})
    assert [row["loss"] for row in file.rows()] == [1.0] * 5 + [2.0] * 6


def test_a_file_that_was_written_over_in_place_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    path.write_text("".join(json.dumps({"step": i, "loss": 1}) + "\n" for i in range(9)))
    assert len(file.rows()) == 9
    path.write_text("".join(json.dumps({"step": i, "loss": 2}) + "\n" for i in range(10)))
    assert {row["loss"] for row in file.rows()} == {2}
    path.unlink()
    assert file.rows() == []


def test_lines_that_are_no_rows_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '[1]\nnot json\n{"loss": 1}\n{"step": "2"}\n{"step": 3, "loss": NaN, "kl": 1, "why": ["x"]}\n\xff\n', encoding="latin-1"
    )
    rows = MetricsFiles().rows(path)
    assert len(rows) == 1
    assert names(rows) == ["kl"]


def test_thinning_keeps_ends_and_spikes():
    draw = random.Random(0)
    points = [(step, draw.random()) for step in range(20_000)]
    points[777] = (777, 99.0)
    points[15_001] = (15_001, -99.0)
    kept = thinned(points, MOST_POINTS)
    assert len(kept) <= MOST_POINTS
    assert kept == sorted(kept)
    assert {points[0], points[-1], points[777], points[15_001]} <= set(kept)
    assert thinned(points[:MOST_POINTS], MOST_POINTS) == points[:MOST_POINTS]


def test_a_step_done_again_counts_as_done_last_and_a_skipped_one_not_at_all():
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 5.0, "skipped": 1.0}]
    assert curve(rows, "loss") == ([1, 2], [3.0, 2.0])
    assert curve(rows, "kl") == ([], [])
