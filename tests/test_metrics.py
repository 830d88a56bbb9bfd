"""metrics.jsonl is valid JSON whatever happened, and no step stands twice."""

import json

from agentalign.training.metrics import forget_rows_after, short, write_row


def test_rows_are_json_even_with_numbers_that_are_not(tmp_path):
    write_row(tmp_path / "m.jsonl", 1, {"loss": float("nan"), "kl": 0.25, "rate": 3e-5})
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert row == {"step": 1, "kl": 0.25, "rate": 3e-5, "not_finite": ["loss"]}


def test_rows_of_steps_to_come_and_a_torn_line_are_forgotten(tmp_path):
    path = tmp_path / "m.jsonl"
    for step in (1, 2, 3):
        write_row(path, step, {"loss": 1.0})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    forget_rows_after(path, 2, {0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    forget_rows_after(tmp_path / "nowhere.jsonl", 2, ())


def test_an_evaluation_whose_checkpoint_a_kill_prevented_is_forgotten(tmp_path):
    path = tmp_path / "m.jsonl"
    for figures in ({"eval/score": 0.5}, {"loss": 1.0}, {"loss": 0.9}, {"eval/score": 0.6}):
        write_row(path, 0 if "eval/score" in figures and not path.exists() else 2, figures)
    forget_rows_after(path, 2, {0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], "eval/score" in row) for row in rows] == [(0, True), (2, False), (2, False)]


def test_short_line_shows_what_is_there():
    assert short({"loss": 0.12345, "tokens_per_second": 900.0, "kl": 0.01}) == "loss 0.123 kl 0.01"
