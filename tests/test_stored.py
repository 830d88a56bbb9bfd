"""Scores and overall values of the runs that a store holds."""

from pathlib import Path
from shutil import copytree

import pytest

from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.stored import ScoringReport, make_pairs, overalls, score_stored
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


STEPWISE = """
from pathlib import Path

def steps(trajectory, task):
    return eval(Path(__file__).with_name("says.txt").read_text())
"""


def test_what_a_check_no_longer_says_of_a_step_counts_no_longer(store: Store, tmp_path: Path) -> None:
    messages = [Message(role=role, content="x") for role in ("user", "assistant", "user", "assistant")]
    store.add([Trajectory(taskset="words", messages=tuple(messages), origin=Origin(kind="import", reference="file"))])
    [id] = (one.id for one in store.trajectories())
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "taskset.yaml").write_text("name: words\n")
    (folder / "criteria.yaml").write_text("steps: {description: Good?, level: step, check: steps}\n")
    (folder / "criteria.py").write_text(STEPWISE)

    def value(says: str, *, only_new: bool = False) -> float | None:
        (folder / "says.txt").write_text(says)
        with TeamCode(folder) as pool:
            score_stored(store, load_taskset(folder), pool=pool, only_new=only_new)
        return overalls(store, [id], tmp_path)[id]

    assert value("{0: 0.0, 1: 1.0}") == pytest.approx(0.55)
    store.add_scores([Score(trajectory=id, criterion="steps@1", step=0, value=1.0, rater="judge", rater_kind="judge")])
    assert value("{1: 1.0}") == 1.0
    store.add_scores([Score(trajectory=id, criterion="steps@1", step=0, status=ScoreStatus.WITHDRAWN, rater="judge", rater_kind="judge")])
    assert value("{1: 0.5}") == pytest.approx(0.55)
    assert value("None") is None
    assert value("{0: 1.0}") == 1.0
    assert value("{}") is None
    assert value("{0: 1.0}") == 1.0
    assert value("broken") is None, "a check that broke does not hide behind what it said before"
    assert value("{0: 0.0}", only_new=True) == pytest.approx(0.1)
    stored = len(store.scores())
    assert value("{0: 1.0}", only_new=True) == pytest.approx(0.1)
    assert len(store.scores()) == stored


def test_overall_values_are_of_the_tasksets_that_are_here(store: Store, tmp_path: Path) -> None:
    store.add([run("yes"), run("yes", taskset="gone")])
    score(store, tmp_path, only_new=True)
    here, gone = (one.id for one in store.trajectories())
    (there,) = store.scores([here], criterion="short")
    store.add_scores([there.model_copy(update={"trajectory": gone, "id": "of-gone"})])
    assert overalls(store, [here, gone], tmp_path) == {here: 1.0, gone: None}


def test_overall_values_load_no_code_and_follow_no_path(store: Store, tmp_path: Path) -> None:
    store.add([run("yes")])
    score(store, tmp_path / "tasks", only_new=True)
    (scored,) = store.scores(criterion="short")
    copytree(tmp_path / "tasks" / "words", tmp_path / "evil")
    (tmp_path / "evil" / "taskset.yaml").write_text("name: evil\n")
    for folder in (tmp_path / "evil", tmp_path / "tasks" / "words"):
        (folder / "tools.py").write_text("raise SystemExit('imported')")
    strange = [run("yes", taskset=name) for name in ("../evil", str(tmp_path / "evil"))]
    store.add(strange)
    store.add_scores([scored.model_copy(update={"trajectory": one.id, "id": one.id}) for one in strange])
    values = overalls(store, [scored.trajectory, *(one.id for one in strange)], tmp_path / "tasks")
    assert list(values.values()) == [1.0, None, None]


def rated(store: Store, run: Trajectory, value: float | None, criterion: str = "tone") -> None:
    status = ScoreStatus.VALUE if value is not None else ScoreStatus.NOT_APPLICABLE
    word = Score(trajectory=run.id, criterion=f"{criterion}@1", status=status, value=value, rater="ada", rater_kind="human")
    store.add_scores([word])


def also_ask(tasks: Path, criteria: str) -> None:
    with (tasks / "words" / "criteria.yaml").open("a") as file:
        file.write(criteria)


def pairs_of(store: Store, tasks: Path) -> dict[tuple[str, str], str]:
    """Better and worse answer -> what the preference notes, of whole runs."""
    answers = {one.id: one.answer for one in store.trajectories()}
    made = make_pairs(store, load_taskset(tasks / "words"), margin=0.1, per_task=9, level="run", dry_run=True)
    return {(answers[p.items[0].trajectory], answers[p.items[1].trajectory]): p.note for p in made.preferences}


def test_a_rated_run_is_not_worse_than_one_that_nobody_looked_at(store: Store, tmp_path: Path) -> None:
    looked_at, unseen, wordy = run("well"), run("fine"), run("at great length")
    store.add([looked_at, unseen, wordy])
    score(store, tmp_path, only_new=False)
    also_ask(tmp_path, "tone: {description: Kind?, scale: [1, 5]}\npolite: {description: Polite?, gate: true}\n")
    before = pairs_of(store, tmp_path)
    assert set(before) == {("well", "at great length"), ("fine", "at great length")}

    rated(store, looked_at, 2.0)
    rated(store, looked_at, 1.0, "polite")
    found = pairs_of(store, tmp_path)
    assert set(found) == set(before), "what one of two runs was asked alone says nothing of which is better"
    assert found["well", "at great length"] == "overall 1.000 over 0.550, without polite@1, tone@1"

    rated(store, unseen, 5.0)
    assert ("fine", "well") in pairs_of(store, tmp_path), "both were asked for their tone"
    rated(store, unseen, None)
    assert ("fine", "well") in pairs_of(store, tmp_path), "'does not apply' is an answer"

    rated(store, looked_at, 0.0, "polite")
    found = pairs_of(store, tmp_path)
    assert set(found) == {("fine", "well"), ("fine", "at great length"), ("at great length", "well")}, "a veto holds beside any other run"
    assert found["at great length", "well"] == "overall 0.550 over 0.000, which failed a veto"


def test_runs_that_were_asked_the_same_are_compared_beside_one_that_was_not(store: Store, tmp_path: Path) -> None:
    first, second, other = run("yes"), run("no"), run("no way")
    store.add([first, second, other])
    score(store, tmp_path, only_new=False)
    also_ask(tmp_path, "tone: {description: Kind?}\n")
    for one, value in ((first, 1.0), (second, 0.0)):
        rated(store, one, value)
    assert set(pairs_of(store, tmp_path)) == {("yes", "no")}


def test_who_passed_the_gates_is_better_than_who_failed_them_where_nothing_else_was_asked_of_both(store: Store, tmp_path: Path) -> None:
    safe, harmful = run("well"), run("at great length")
    store.add([safe, harmful])
    score(store, tmp_path, only_new=False)
    (tmp_path / "words" / "criteria.yaml").write_text(
        "short: {description: Short?, check: short, gate: true}\ntone: {description: Kind?}\n"
    )
    rated(store, safe, 1.0)
    assert set(pairs_of(store, tmp_path)) == {("well", "at great length")}
