"""Which preferences may be learned from, and what several on the same runs come to."""

from pathlib import Path

import pytest

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.errors import DataError
from agentalign.recipes.preferences import choose_preferences, net_order, settled
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


def learned(work):
    """(better, worse, strength, source) of what recipes would learn."""
    runs = {run_of(1, "train").id: "one", run_of(2, "train").id: "two"}
    found = settled(*choose_preferences(work, "overall"))
    return [(runs[p.items[0].trajectory], runs[p.items[1].trajectory], p.strength, p.source) for p in found if p.decided]


def by(rater, preference, **rest):
    return preference.model_copy(update={"rater": rater, "id": f"{rater}-{preference.id}", **rest})


def test_a_persons_choice_overrules_the_pair_that_scores_made(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    scores = by("overall", prefer(one, two, "2026-01-01"), source="scores")
    work.store.add_preferences([scores, prefer(two, one, "2026-01-02")])
    assert learned(work) == [("two", "one", 1.0, "human")]
    work.store.add_preferences([by("overall", prefer(one, two, "2026-01-03"), source="scores", note="again")])
    assert learned(work) == [("two", "one", 1.0, "human")], "whoever speaks later, people come first"


@pytest.mark.parametrize("answer", ["tie", "both_bad"])
def test_a_persons_tie_silences_scores_and_judges(work, answer):
    one, two = run_of(1, "train"), run_of(2, "train")
    words = [by("overall", prefer(one, two, "2026-01-01"), source="scores"), by("qwen", prefer(one, two, "2026-01-01"), source="judge")]
    work.store.add_preferences(words)
    assert learned(work) == [("one", "two", 1.0, "judge")]
    work.store.add_preferences([prefer(one, two, "2026-01-02", **{answer: True})])
    with pytest.raises(DataError, match="all 3 preferences cancel out: those who count most are evenly split, or call a tie"):
        learned(work)


def test_who_cannot_judge_overrules_nobody(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    scores = by("overall", prefer(one, two, "2026-01-01"), source="scores")
    work.store.add_preferences([scores, prefer(two, one, "2026-01-02", cant_judge=True)])
    assert learned(work) == [("one", "two", 1.0, "scores")]


def test_of_several_people_the_majority_counts_and_the_less_the_closer_it_is(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    work.store.add_preferences([by("ann", prefer(one, two, "2026-01-01")), by("bob", prefer(two, one, "2026-01-01"))])
    with pytest.raises(DataError, match="all 2 preferences cancel out"):
        learned(work)
    work.store.add_preferences([by("cem", prefer(two, one, "2026-01-01"))])
    assert learned(work) == [("two", "one", pytest.approx(1 / 3), "human")]
    work.store.add_preferences([by("eva", prefer(one, two, "2026-01-01", strength=3.0))])
    assert learned(work) == [("one", "two", pytest.approx(2 / 4), "human")], "far better weighs more than slightly"


def test_rankings_that_differ_come_to_one(work):
    assert net_order([("abc", 1.0), ("abc", 3.0)]) == (("a", "b", "c"), 2.0)
    order, strength = net_order([("abc", 1.0), ("bac", 1.0), ("abc", 1.0)])
    assert order == ("a", "b", "c")
    assert strength == pytest.approx((3 + 1 + 3) / 9)
    assert net_order([("abc", 1.0), ("bac", 1.0)]) is None, "a and b are even"
    assert net_order([("ab", 0.0)]) is None


def test_a_vote_that_comes_while_a_training_is_down_changes_nothing_of_what_it_began_with(work):
    one, two = run_of(1, "train"), run_of(2, "train")
    work.store.add_preferences([by("overall", prefer(one, two, "2026-01-01"), source="scores")])
    began, _ = choose_preferences(work, "overall")
    work.store.add_preferences([prefer(two, one, "2026-01-02")])
    now, runs = choose_preferences(work, "overall")
    assert {p.id for p in began} < {p.id for p in now}
    assert settled([p for p in now if p in began], runs) == began
