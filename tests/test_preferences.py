"""Which preferences may be learned from: decided, newest, and of runs that are not for judging."""

from pathlib import Path

import pytest

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.errors import DataError
from agentalign.recipes.preferences import choose_preferences
from agentalign.recipes.workspace import open_workspace
from agentalign.records.preference import Item, Preference, in_force
from agentalign.records.trajectory import Message, Origin, Trajectory

FIXTURES = Path(__file__).parent / "fixtures"


def run_of(number, split):
    return Trajectory(
        taskset="toy_desk", messages=(Message(role="user", content="hi"), Message(role="assistant", content=str(number))), split=split,
        origin=Origin(kind="rollout", reference="base", sample=number), task_id="t",
    )  # fmt: skip


@pytest.fixture
def work(tmp_path):
    project = Project.create(tmp_path)
    project.tasks.mkdir(exist_ok=True)
    (project.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    with open_workspace(SFTConfig(taskset="toy_desk", base=str(FIXTURES / "tiny")), project) as found:
        found.store.add([run_of(1, "train"), run_of(2, "train"), run_of(3, "test")])
        yield found


def prefer(better, worse, time, **rest):
    items = (Item(better.id), Item(worse.id))
    return Preference(taskset="toy_desk", items=items, source="human", rater="me", time=time, **rest)


def test_newest_answer_of_a_rater_counts(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    work.store.add_preferences([prefer(one, two, "2026-01-01"), prefer(two, one, "2026-01-02")])
    found, runs = choose_preferences(work, "overall")
    assert [p.items[0].trajectory for p in found] == [two.id]
    assert set(runs) == {one.id, two.id}


def test_later_tie_withdraws_a_decision(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    work.store.add_preferences([prefer(one, two, "2026-01-01"), prefer(one, two, "2026-01-02", tie=True)])
    with pytest.raises(DataError, match="no decided preferences"):
        choose_preferences(work, "overall")


def test_preference_on_a_test_run_stays_out(work):
    work.store.add_preferences([prefer(run_of(1, "train"), run_of(3, "test"), "2026-01-01")])
    with pytest.raises(DataError, match="among train runs"):
        choose_preferences(work, "overall")


def test_a_decision_sets_aside_what_raters_preferred_and_is_learned_from_in_their_place(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    votes = [prefer(one, two, "2026-01-01"), prefer(one, two, "2026-01-02").model_copy(update={"rater": "you", "id": "b" * 32})]
    decision = Preference(taskset="toy_desk", items=(Item(two.id), Item(one.id)), source="adjudicator", rater="lead", note="see step 2")
    work.store.add_preferences([*votes, decision])
    (found,), _ = choose_preferences(work, "overall")
    assert found == decision
    assert len(work.store.preferences("toy_desk")) == 3, "nothing was overwritten"
    work.store.add_preferences([prefer(one, two, "2026-01-09")])
    assert choose_preferences(work, "overall")[0] == [decision], "who votes later does not undo a decision"
    work.store.add_preferences([decision.model_copy(update={"tie": True, "id": "c" * 32})])
    with pytest.raises(DataError, match="no decided preferences"):
        choose_preferences(work, "overall")


def test_a_decision_on_one_criterion_is_none_on_another():
    one, two = run_of(1, "train"), run_of(2, "train")
    vote = prefer(one, two, "2026-01-01", criterion="tone@1")
    decision = Preference(taskset="toy_desk", items=(Item(two.id), Item(one.id)), source="adjudicator", rater="lead")
    assert in_force([vote, decision]) == [vote, decision]
