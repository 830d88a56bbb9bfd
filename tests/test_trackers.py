"""Rows go to a tracker only where one is named, under the names of metrics.jsonl."""

import sys

import pytest

from agentalign.errors import ConfigError
from agentalign.training.trackers import tracker

ABOUT = {"project": "agentalign-desk", "config": '{"seed": 1}'}


def test_nothing_is_written_unless_a_tracker_is_named(tmp_path):
    with tracker("none", "desk-sft-1", folder=tmp_path, **ABOUT) as report:
        report(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_every_figure_of_every_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in ((1, 2), (3,)):  # a training that went on
        with tracker("tensorboard", "desk-sft-1", folder=tmp_path, **ABOUT) as report:
            for step in steps:
                report(step, {"loss": 1.0 / step, "eval/score": 0.25})
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [event.step for event in found.Scalars("eval/score")] == [1, 2, 3]


def test_a_tracker_that_is_not_installed_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"), tracker("wandb", "desk-sft-1", folder=tmp_path, **ABOUT):
        pass


def test_a_tracker_that_fails_gets_no_more_rows_and_ends_no_training(tmp_path, monkeypatch, caplog):
    class Gone:
        def init(self, **options):
            self.rows = []

        def log(self, figures, step):
            self.rows.append(step)
            if step >= 2:
                raise ConnectionError("no route")

        def finish(self):
            raise ConnectionError("still no route")

    monkeypatch.setitem(sys.modules, "wandb", gone := Gone())
    with tracker("wandb", "desk-sft-1", folder=tmp_path, **ABOUT) as report:
        for step in (1, 2, 3):
            report(step, {"loss": 0.5})
    assert gone.rows == [1, 2]
    assert caplog.text.count("wandb failed (ConnectionError: no route)") == 1
