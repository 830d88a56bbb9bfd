"""Comparing criterion by criterion: what is asked, what each answer becomes, and that nothing said is lost or told to others."""

import secrets
from pathlib import Path
from typing import Any

import pytest
from small_desk import HOME, make_desk, make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.exchange.ratings import preference_table, rating_lines, read_rating_line
from agentalign.records.preference import in_force
from agentalign.scoring.agreement_report import stored_panel
from agentalign.scoring.cases import Question
from agentalign.scoring.habits import habits
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui.api import create_api
from agentalign.ui.compare import Answer

CRITERIA = """
tone: {description: Is the agent friendly?, scale: [1, 5], chips: [cold, vague]}
helpful: {description: Is the customer helped?, kind: judge}
good_step: {description: Is this step right?, level: step}
solved: {description: Was the task done?, check: solved}
"""
CHOICES: tuple[Answer, ...] = ("left_far", "left", "tie", "right", "right_far", "both_bad", "cant_judge")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_desk(tmp_path)
    (project.tasks / "desk" / "criteria.yaml").write_text(CRITERIA)
    return project


_, store, client = desk_fixtures()


def add_pair(store: Store, task: str = "t1") -> None:
    store.add([make_run(answer=f"Yes {task}.", policy="desk@7", task=task), make_run(answer=f"No {task}.", policy="base", task=task)])


def draw(client: TestClient, **wanted: Any) -> dict[str, Any]:
    answer = client.post("/api/compare", json=wanted or {"taskset": "desk"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def vote(client: TestClient, drawn: dict[str, Any], choice: str, criterion: str = "overall", **more: Any) -> Any:
    body = {"key": secrets.token_hex(8), "draw": drawn["draw"], "choice": choice, "criterion": criterion, **more}
    return client.post("/api/preferences", json=body)


def test_a_pair_is_asked_about_by_every_criterion_that_people_can_answer_about_whole_runs(client: TestClient, store: Store) -> None:
    add_pair(store)
    assert [criterion["key"] for criterion in draw(client)["criteria"]] == ["tone@1", "helpful@1"]


@pytest.mark.parametrize("choice", CHOICES)
def test_an_answer_comes_back_in_the_sides_it_was_given_in(client: TestClient, store: Store, choice: Answer) -> None:
    add_pair(store)
    drawn = draw(client)
    assert drawn["answers"] == []
    assert vote(client, drawn, choice, "tone@1", note="warmer", chips=["vague", "cold"]).status_code == 200
    again = draw(client)
    assert again["draw"] == drawn["draw"], "a pair without an overall answer is still open"
    assert again["answers"] == [{"criterion": "tone@1", "choice": choice, "note": "warmer", "chips": ["cold", "vague"]}]


def test_each_criterion_becomes_a_preference_of_its_own_and_overall_closes_the_pair(client: TestClient, store: Store) -> None:
    add_pair(store)
    drawn = draw(client)
    for criterion, choice in (("tone@1", "left_far"), ("helpful@1", "both_bad"), ("overall", "right")):
        assert vote(client, drawn, choice, criterion).status_code == 200
    tone, helpful, overall = store.preferences("desk")
    assert tone.left == overall.left == tone.items[0].trajectory == overall.items[1].trajectory
    assert (tone.criterion, tone.strength, helpful.both_bad, overall.strength) == ("tone@1", 3, True, 1)
    assert [p.criterion for p in store.preferences("desk", criterion="overall")] == ["overall"], "what recipes learn from by default"
    assert draw(client)["draw"] is None
    lines = list(rating_lines(store.preferences("desk")))
    assert [read_rating_line(line, "exported") for line in lines] == [tone, helpful, overall]
    table = "".join(preference_table(store.preferences("desk")))
    assert "tone@1" in table
    assert "helpful@1" in table


def test_what_is_not_asked_about_pairs_is_refused(client: TestClient, store: Store) -> None:
    add_pair(store)
    drawn = draw(client)
    for criterion in ("good_step@1", "solved@1", "tone@2", ""):
        answer = vote(client, drawn, "tie", criterion)
        assert answer.status_code == 422
        assert "is not asked about pairs" in answer.json()["detail"]
    assert vote(client, drawn, "much_better").status_code == 422
    for criterion, chip in (("tone@1", "rude"), ("helpful@1", "cold"), ("overall", "cold")):
        refused = vote(client, drawn, "tie", criterion, chips=[chip])
        assert (refused.status_code, f"has no chip '{chip}'" in refused.json()["detail"]) == (422, True)
    assert store.preferences("desk") == []


def test_an_answer_that_was_taken_back_counts_nowhere_and_opens_the_pair_again(client: TestClient, store: Store) -> None:
    add_pair(store)
    drawn = draw(client)
    for choice in ("left", "withdrawn"):
        vote(client, drawn, choice)
        vote(client, drawn, choice, "tone@1")
    assert [p.decided for p in in_force(store.preferences("desk"))] == [False, False]
    assert draw(client)["answers"] == []
    found = stored_panel(store, "desk")
    assert found.answers == {}
    (person,) = habits(found, [])
    assert person.pairs == 0
    vote(client, drawn, "right")
    (case,) = stored_panel(store, "desk").answers
    assert case.question == Question("overall", "pair")


def test_who_cannot_judge_is_asked_no_more_counts_nowhere_and_is_exported_with_reasons(client: TestClient, store: Store) -> None:
    add_pair(store)
    drawn = draw(client)
    vote(client, drawn, "cant_judge", "tone@1", chips=["vague"], note="=1+1")
    vote(client, drawn, "left_far")
    vote(client, drawn, "cant_judge")
    assert draw(client)["draw"] is None, "they have looked"
    said = store.preferences("desk")
    assert [(p.criterion, p.cant_judge, p.decided, p.strength) for p in in_force(said)] == [
        ("tone@1", True, False, 1),
        ("overall", True, False, 1),
    ]
    assert stored_panel(store, "desk").answers == {}
    assert [read_rating_line(line, "exported") for line in rating_lines(said)] == said
    header, first, *_ = preference_table(said)
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert [cells[f'"{name}"'].strip('"') for name in ("cant_judge", "chips", "note")] == ["True", "vague", "'=1+1"]
    assert client.get("/api/export/preferences.csv").text.startswith(header)


# ---- pairs in the queue


def hand(client: TestClient) -> Any:
    return client.post("/api/queue/next", json={}).json()["current"]


def done(client: TestClient, assignment: str) -> Any:
    return client.post(f"/api/queue/{assignment}/done", json={"key": secrets.token_hex(8)})


def queue_pairs(store: Store, tasks: int) -> None:
    for number in range(tasks):
        add_pair(store, f"t{number}")
    rows = store.runs(limit=100).rows
    store.pairs.add([(one.id, two.id) for one in rows for two in rows if one.task_id == two.task_id and one.id < two.id])


def test_a_pair_from_the_queue_tells_nothing_and_is_finished_when_every_person_question_is_answered(
    client: TestClient, store: Store
) -> None:
    queue_pairs(store, 1)
    assert draw(client)["draw"] is None, "what waits in the queue is not given out beside it"
    taken = hand(client)
    assert taken["run"] is None
    answer = client.post("/api/compare", json={"assignment": taken["assignment"]})
    for row in store.runs().rows:
        assert row.id not in answer.text
        assert row.policy not in answer.text
        assert row.id not in client.get("/api/runs").text, "both runs are left out of lists"
    drawn = answer.json()
    assert drawn["draw"] == taken["assignment"]
    vote(client, drawn, "left")
    refused = done(client, taken["assignment"])
    assert (refused.status_code, "not answered yet: tone@1" in refused.json()["detail"]) == (422, True)
    vote(client, drawn, "tie", "tone@1")
    assert done(client, taken["assignment"]).json()["saved"] is True
    assert hand(client) is None
    assert {p.left for p in store.preferences("desk")} == {store.queue_items.assignments([_item(store)])[0].on_left}


def _item(store: Store) -> str:
    (item,) = store.queue_items.items()
    return f"{item.trajectory}+{item.other}"


def test_a_repeat_is_swapped_shows_nothing_said_before_and_tells_self_consistency(project: Project, store: Store) -> None:
    queue_pairs(store, 1)
    app = create_api(project, rater="solo", rules=Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=0))
    with TestClient(app, base_url=HOME) as client:
        client.get("/")
        lefts = []
        for _time in range(2):
            taken = hand(client)
            drawn = draw(client, assignment=taken["assignment"])
            assert drawn["answers"] == []
            assert set(taken) == {"assignment", "run", "state", "left", "lease"}, "a repeat looks like any other"
            lefts.append(drawn["left"]["timeline"][-1]["text"])
            vote(client, drawn, "left", "tone@1")
            vote(client, drawn, "left")  # always the left side, whatever stands there
            assert done(client, taken["assignment"]).status_code == 200
    assert len(set(lefts)) == 2
    (person,) = habits(stored_panel(store, "desk"), [])
    assert person.swapped is not None
    assert (person.swapped.share, person.swapped.n, person.pairs) == (0.0, 1, 1)
    assert person.left is not None
    assert (person.left.share, person.left.n) == (1.0, 2)


def test_someone_elses_pair_does_not_exist(project: Project, store: Store) -> None:
    queue_pairs(store, 1)
    with (
        TestClient(create_api(project, rater="ada"), base_url=HOME) as ada,
        TestClient(create_api(project, rater="bob"), base_url=HOME) as bob,
    ):
        for client in (ada, bob):
            client.get("/")
        theirs = hand(ada)["assignment"]
        assert bob.post("/api/compare", json={"assignment": theirs}).status_code == 404
        assert vote(bob, {"draw": theirs}, "left").status_code == 404
    assert store.preferences("desk") == []


# ---- a lead fills the queue


def add_pairs(client: TestClient, **wanted: Any) -> Any:
    return client.post("/api/queue/pairs", json={"taskset": "desk", **wanted})


def test_a_lead_queues_so_many_pairs_of_each_task_of_a_family(client: TestClient, store: Store) -> None:
    for task in ("t1", "t2"):
        store.add([make_run(answer=f"{task} {sample}", policy=f"desk@{sample}", task=task, sample=sample) for sample in range(3)])
    assert add_pairs(client, family="refunds").status_code == 422
    assert add_pairs(client, split="dev").status_code == 422
    assert add_pairs(client, per_task=2, overlap=3, family="cancelling").json() == {"added": 4, "changed": 0}
    items = store.queue_items.items()
    assert {item.overlap for item in items} == {3}
    assert {store.trajectory(item.trajectory).task_id for item in items} == {"t1", "t2"}
    assert all(item.other for item in items)
    assert add_pairs(client, per_task=2).json() == {"added": 0, "changed": 4}, "the same pairs again"
    for wrong in ({"per_task": 0}, {"per_task": 21}, {"overlap": 0}, {"taskset": "x" * 501}, {"policy": "desk@1"}):
        assert add_pairs(client, **wrong).status_code == 422


def test_a_lead_makes_a_pair_known_by_the_answers_given_before(project: Project, client: TestClient, store: Store) -> None:
    add_pair(store)
    drawn = draw(client)
    known = {"key": secrets.token_hex(8), "draw": drawn["draw"]}
    refused = client.post("/api/queue/pairs/gold", json=known)
    assert (refused.status_code, "all in all" in refused.json()["detail"]) == (422, True)
    for criterion, choice in (("tone@1", "tie"), ("helpful@1", "cant_judge"), ("overall", "right_far")):
        vote(client, drawn, choice, criterion)
    for was_there in (False, True):
        given = client.post("/api/queue/pairs/gold", json=known)
        assert given.json() == {"saved": True, "id": drawn["draw"], "known": was_there}
    (item,) = store.queue_items.items()
    assert (item.is_gold, item.gold_by) == (True, "rater")
    assert [known["gold_by"] for known in client.get("/api/queue/items").json()["items"]] == ["rater"]
    with TestClient(create_api(project, rater="bob", rules=Rules(gold_rate=1.0)), base_url=HOME) as bob:
        bob.get("/")
        assert bob.post("/api/queue/pairs/gold", json=known).status_code == 404
        taken = hand(bob)
        theirs = draw(bob, assignment=taken["assignment"])
        is_mirrored = theirs["left"] != drawn["left"]
        vote(bob, theirs, "left" if is_mirrored else "right")
        vote(bob, theirs, "cant_judge", "tone@1")
        assert done(bob, taken["assignment"]).status_code == 200
    marks = {mark.criterion: (mark.person, mark.given == mark.expected, mark.given) for mark in store.queue_items.gold_marks()}
    assert marks["overall"][:2] == ("bob", True)
    assert marks["tone@1"] == ("bob", False, None)
    assert set(marks) == {"overall", "tone@1"}, "what the lead could not judge is no known answer"
