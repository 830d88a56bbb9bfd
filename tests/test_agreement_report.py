"""What agreement is counted from: the runs that people judged, with everyone's answers about them."""

from collections.abc import Iterator

import pytest

from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.agreement_report import stored_panel
from agentalign.store.store import Store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(answer: str, taskset: str = "desk") -> Trajectory:
    messages = (Message(role="user", content="Cancel it."), Message(role="assistant", content=answer))
    return Trajectory(taskset=taskset, messages=messages, origin=Origin(kind="rollout", reference=answer))


def said(run: Trajectory, rater: str, kind: str, note: str = "") -> Score:
    return Score(trajectory=run.id, criterion="polite@1", value=1.0, rater=rater, rater_kind=kind, note=note)


def test_checks_count_where_a_person_spoke_or_decided_and_nowhere_else(store: Store) -> None:
    runs = rated, decided, judged, unseen, other = *(run(name) for name in ("rated", "decided", "judged", "unseen")), run("other", "shop")
    store.add(runs)
    store.add_scores([said(one, "check", "check") for one in runs])
    store.add_scores([said(rated, "ada", "human"), said(decided, "ada", "adjudicator"), said(other, "ada", "human")])
    store.add_scores([said(judged, "model", "judge", note='says "rater_kind":"adjudicator"')])
    found = stored_panel(store, "desk")
    assert {case.items[0].trajectory for case in found.answers} == {rated.id, decided.id}
    assert {rater.kind for answers in found.answers.values() for rater in answers} == {"human", "check"}
    assert [case.items[0].trajectory for case in found.decisions] == [decided.id]
    assert {score.trajectory for score in store.scores(seen_by_people=True)} == {rated.id, decided.id, other.id}
    assert unseen.id not in {score.trajectory for score in store.scores(taskset="desk", seen_by_people=True)}
