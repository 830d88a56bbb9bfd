"""Pairs that scores made follow the scores: turned round, taken back and given again, without touching what people said."""

import json

import pytest

from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.environments.taskset import load_taskset
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference, in_force
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.corrected import Act, correct_step, correction_pair
from agentalign.scoring.stored import make_pairs
from agentalign.store.store import Store


def run(answer, kind="rollout", task="t", split="train"):
    messages = Message(role="user", content="hi"), Message(role="assistant", content=answer)
    origin = Origin(kind=kind, reference="someone", task=task)
    return Trajectory(taskset="words", messages=messages, origin=origin, task_id=task, family="one", split=split)


CRITERIA = "good: {description: Good?}\nsafe: {description: Safe?, gate: true}\n"
A, B, EXPERT = run("a"), run("b"), run("best", kind="expert")


@pytest.fixture
def taskset(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "taskset.yaml").write_text("name: words\n")
    (folder / "criteria.yaml").write_text(CRITERIA)
    return load_taskset(folder)


@pytest.fixture
def store(tmp_path):
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.add([A, B])
        yield store


def rate(store, *values, criterion="good", runs=(A, B)):
    for one, value in zip(runs, values, strict=True):
        store.add_scores([Score(trajectory=one.id, criterion=f"{criterion}@1", value=value, rater="ada", rater_kind="human")])


def decided(store):
    """(better, worse, step) of every pair in force."""
    held = [word for word in in_force(store.preferences("words")) if word.decided]
    return sorted((*(one.trajectory for one in word.items), str(word.items[0].step)) for word in held)


def both_levels(better, worse):
    return sorted((better.id, worse.id, step) for step in ("0", "None"))


def test_a_pair_turns_with_the_scores_as_often_as_they_turn_and_goes_when_they_are_equal(store, taskset):
    for better, worse in ((A, B), (B, A), (A, B), (B, A)):
        rate(store, float(better == A), float(better == B))
        made = make_pairs(store, taskset)
        assert (made.stored, made.known, made.withdrawn) == (2, 0, 0)
        assert decided(store) == both_levels(better, worse)
        again = make_pairs(store, taskset)
        assert (again.stored, again.known, again.withdrawn) == (0, 2, 0)
        assert [pair.id for pair in again.preferences] == [pair.id for pair in made.preferences]
    rate(store, 1.0, 1.0)
    made = make_pairs(store, taskset)
    assert (made.stored, made.known, made.withdrawn) == (0, 0, 2)
    assert decided(store) == []
    assert make_pairs(store, taskset).withdrawn == 0
    rate(store, 0.0, 1.0)
    assert make_pairs(store, taskset).stored == 2
    assert decided(store) == both_levels(B, A)


def test_a_value_that_moved_leaves_the_pair_the_word_that_it_was(store, taskset):
    rate(store, 1.0, 0.0)
    before = make_pairs(store, taskset)
    rate(store, 0.9, 0.1)
    after = make_pairs(store, taskset)
    assert after.preferences == before.preferences
    assert (after.stored, after.known, after.withdrawn) == (0, 2, 0)


def test_a_wider_margin_and_a_failed_gate_take_pairs_back(store, taskset):
    rate(store, 0.8, 0.2)
    make_pairs(store, taskset)
    assert make_pairs(store, taskset, margin=0.9, dry_run=True).withdrawn == 2
    assert decided(store) == both_levels(A, B), "a dry run says what would be done"
    make_pairs(store, taskset, margin=0.9)
    assert decided(store) == []
    make_pairs(store, taskset)
    rate(store, 0.0, criterion="safe", runs=[A])
    make_pairs(store, taskset)
    assert decided(store) == both_levels(B, A)


def test_a_level_or_split_that_was_not_asked_for_is_left_alone(store, taskset):
    rate(store, 1.0, 0.0)
    make_pairs(store, taskset)
    rate(store, 1.0, 1.0)
    assert make_pairs(store, taskset, level="step").withdrawn == 1
    assert decided(store) == [(A.id, B.id, "None")]
    store.add([run("c", split="dev")])
    assert make_pairs(store, taskset, split="dev").withdrawn == 0
    assert make_pairs(store, taskset, level="run").withdrawn == 1


def test_what_people_said_stays(store, taskset):
    store.add([EXPERT])
    fixed = correct_step(A, 0, Act("better", "", ()), "ada")
    store.add([fixed])
    own = [
        correction_pair(fixed, A),
        Preference(taskset="words", items=(Item(B.id), Item(A.id)), source="human", rater="bob"),
        Preference(taskset="words", items=(Item(B.id), Item(A.id)), source="scores", rater="imported"),
    ]
    store.add_preferences(own)
    rate(store, 1.0, 0.0)
    rate(store, 1.0, runs=[EXPERT])
    sources = [(pair.source, pair.items[0].trajectory) for pair in make_pairs(store, taskset).preferences]
    assert ("correction", EXPERT.id) in sources and ("correction", fixed.id) in sources
    rate(store, 0.5, 0.5)
    rate(store, 0.5, runs=[EXPERT])
    made = make_pairs(store, taskset)
    assert made.preferences == own[:1]
    assert made.withdrawn == 3, "the runs' pair at both levels, and the expert's step over the one that fell behind"
    assert [word for word in in_force(store.preferences("words")) if word.decided] == own


def test_pairs_that_an_earlier_version_stored_are_known(store, taskset):
    rate(store, 1.0, 0.0)
    old = [pair.model_copy(update={"id": f"old-{n}"}) for n, pair in enumerate(make_pairs(store, taskset, dry_run=True).preferences)]
    store.add_preferences(old)
    made = make_pairs(store, taskset)
    assert (made.stored, made.known, made.preferences) == (0, 2, old)


def test_two_at_the_same_time_say_the_same_words(store, taskset):
    rate(store, 1.0, 0.0)
    make_pairs(store, taskset)
    rate(store, 0.0, 1.0)
    first, second = (make_pairs(store, taskset, dry_run=True).preferences for _ in range(2))
    assert [one.id for one in first] == [one.id for one in second]
    store.add_preferences(first)
    store.add_preferences(second)
    assert decided(store) == both_levels(B, A)


def test_pairs_by_the_command_line_after_a_rating_say_what_was_taken_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    project = Project.create(tmp_path)
    folder = project.tasks / "words"
    folder.mkdir()
    (folder / "taskset.yaml").write_text("name: words\n")
    (folder / "criteria.yaml").write_text(CRITERIA)

    def pairs(*values):
        with Store(project.store_url) as store:
            store.add([A, B])
            rate(store, *values)
        assert main(["pairs", "words", "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        return made["pairs"], made["stored"], made["known"], made["withdrawn"]

    assert pairs(1.0, 0.0) == (2, 2, 0, 0)
    assert pairs(0.9, 0.1) == (2, 0, 2, 0)
    assert pairs(0.1, 0.9) == (2, 2, 0, 0)
    assert pairs(0.5, 0.5) == (0, 0, 0, 2)
