"""Which preferences may be learned from: decided, newest, and of runs that are not for judging."""

from pathlib import Path

import pytest

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.errors import DataError
from agentalign.recipes.preferences import choose_preferences
from agentalign.recipes.workspace import open_workspace
from agentalign.records.preference import Item, Preference
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
