"""Scores and overall values of the runs that a store holds."""

from pathlib import Path

import pytest

from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.stored import ScoringReport, score_stored
from agentalign.store.store import Store

CRITERIA = """
short: {description: Short?, check: short}
calm: {description: Calm?, check: calm}
"""
CHECKS = """
from pathlib import Path

def short(trajectory, task):
    return len(trajectory.answer) < 10

def calm(trajectory, task):
    return float(Path(__file__).with_name("calm.txt").read_text())
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'store.db'}")


def run(answer: str, taskset: str = "words") -> Trajectory:
    messages = Message(role="user", content="hi"), Message(role="assistant", content=answer)
    return Trajectory(taskset=taskset, messages=messages, origin=Origin(kind="import", reference="file"))


def score(store: Store, tasks: Path, *, calm: str = "1", only_new: bool) -> ScoringReport:
    folder = tasks / "words"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "taskset.yaml").write_text("name: words\n")
    (folder / "criteria.yaml").write_text(CRITERIA)
    (folder / "criteria.py").write_text(CHECKS)
    (folder / "calm.txt").write_text(calm)
    with TeamCode(folder) as pool:
        return score_stored(store, load_taskset(folder), pool=pool, only_new=only_new)


def test_only_new_runs_are_scored_when_asked_so(store: Store, tmp_path: Path) -> None:
    store.add([run("yes")])
    assert score(store, tmp_path, only_new=True).runs == 1
    store.add([run("no")])
    assert score(store, tmp_path, only_new=True).runs == 1
    assert score(store, tmp_path, only_new=True).runs == 0
    assert score(store, tmp_path, only_new=False).runs == 2


def test_a_check_that_broke_is_tried_again(store: Store, tmp_path: Path) -> None:
    store.add([run("yes")])
    assert score(store, tmp_path, calm="not a number", only_new=True).errors == 1
    again = score(store, tmp_path, only_new=True)
    assert (again.runs, again.errors, again.means) == (1, 0, {"calm@1": 1.0, "short@1": 1.0})
    assert score(store, tmp_path, only_new=True).runs == 0


def test_a_check_that_broke_on_a_later_scoring_is_tried_again(store: Store, tmp_path: Path) -> None:
    store.add([run("yes")])
    score(store, tmp_path, only_new=False)
    assert score(store, tmp_path, calm="not a number", only_new=False).errors == 1
    assert score(store, tmp_path, only_new=True).runs == 1
