from pathlib import Path

import pytest

from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.errors import TasksetError
from agentalign.records.criterion import Score, ScoreStatus, overall
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.scoring.score import score_trajectories

CRITERIA_YAML = """
short: {description: Short?, check: short}
graded: {description: How good?, check: graded, scale: [1, 5]}
per_step: {description: Each step?, check: per_step, level: step}
polite: {description: Polite?}
"""
CRITERIA = """
def short(trajectory, task):
    return None if task is None else len(trajectory.answer) < 10

def graded(trajectory, task):
    return 4

def per_step(trajectory, task):
    return {step.index: step.index / 2 for step in trajectory.steps}
"""


def scores(folder: Path, criteria: str = CRITERIA, *, task_id: str = "a", names: list[str] | None = None) -> dict[str, list[Score]]:
    place = folder / "words"
    place.mkdir(exist_ok=True)
    (place / "taskset.yaml").write_text("name: words\ntasks: [{id: a, split: train}]\n")
    (place / "criteria.yaml").write_text(CRITERIA_YAML)
    (place / "criteria.py").write_text(criteria)
    taskset = load_taskset(place)
    messages = (
        Message(role="user", content="hi"),
        Message(role="assistant", tool_calls=(ToolCall(id="1", name="look"),)),
        Message(role="tool", content="ok", tool_call_id="1"),
        Message(role="assistant", content="all good"),
    )
    run = Trajectory(taskset="words", messages=messages, origin=Origin(kind="import", reference="test"), task_id=task_id)
    with TeamCode(place) as pool:
        found = score_trajectories(taskset, [run], criteria=names, pool=pool)
    assert all(score.trajectory == run.id and score.rater == score.rater_kind == "check" for score in found)
    assert overall(taskset.criteria, found) is not None or any(score.status == ScoreStatus.ERROR for score in found)
    return {name: [score for score in found if score.criterion == f"{name}@1"] for name in ("short", "graded", "per_step", "polite")}


def test_checks_become_scores_and_people_are_not_answered_for(tmp_path: Path) -> None:
    found = scores(tmp_path)
    assert [(s.value, s.step) for s in found["short"]] == [(1.0, None)]
    assert [(s.value, s.step) for s in found["graded"]] == [(4.0, None)]
    assert [(s.value, s.step) for s in found["per_step"]] == [(0.0, 0), (0.5, 1)]
    assert found["polite"] == []


def test_a_check_may_say_that_it_does_not_apply(tmp_path: Path) -> None:
    found = scores(tmp_path, task_id="unknown")
    assert [(s.status, s.value) for s in found["short"]] == [(ScoreStatus.NOT_APPLICABLE, None)]


def test_only_the_named_criteria_are_answered(tmp_path: Path) -> None:
    assert {name for name, found in scores(tmp_path, names=["graded", "polite"]).items() if found} == {"graded"}
    with pytest.raises(TasksetError, match=r"no criterion 'grade'. It has: short"):
        scores(tmp_path, names=["grade"])


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("short", "raise ValueError('no rhyme')", "ValueError: no rhyme"),
        ("short", "from agentalign import ToolError; raise ToolError('no such tool')", "ToolError: no such tool"),
        ("short", "return 'yes'", "returned 'yes'"),
        ("short", "return 2", "outside the criterion's scale"),
        ("graded", "return True if False else 0", "outside the criterion's scale [1, 5]"),
        ("graded", "return float('nan')", "outside the criterion's scale"),
        ("graded", "return {0: 3.0}", "is about whole runs"),
        ("per_step", "return True", "is about steps"),
        ("per_step", "return {2: 1.0}", "value for step 2, but the run has 2 steps"),
    ],
)
def test_a_broken_check_is_a_score_that_says_so(tmp_path: Path, name: str, body: str, words: str) -> None:
    found = scores(tmp_path, CRITERIA + f"\ndef {name}(trajectory, task):\n    {body}\n")[name]
    assert [(s.status, s.value) for s in found] == [(ScoreStatus.ERROR, None)]
    assert words in found[0].note


def test_an_empty_answer_per_step_does_not_apply(tmp_path: Path) -> None:
    found = scores(tmp_path, CRITERIA + "\ndef per_step(trajectory, task):\n    return {}\n")["per_step"]
    assert [(s.status, s.step) for s in found] == [(ScoreStatus.NOT_APPLICABLE, None)]
