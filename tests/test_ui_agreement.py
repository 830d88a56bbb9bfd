"""The routes of the agreement screen: who may see it, what it shows, and decisions that overwrite nothing."""

import secrets

import pytest
from small_desk import HOME, make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from agentalign.config.project import Project
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui.api import create_api
from agentalign.ui.auth import PERSON, Person

TONE = {"taskset": "desk", "criterion": "tone@1", "kind": "mark"}
PAIR = {"taskset": "desk", "criterion": "overall", "kind": "pair"}


project, store, client = desk_fixtures(rater="lead")


@pytest.fixture
def disputed(store: Store) -> list[str]:
    """Two runs of one task that ada and bob marked; they disagree on the first, and on which is better."""
    runs = [make_run(answer="Yes."), make_run(answer="No.", policy="desk@9")]
    store.add(runs)
    first, second = (run.id for run in runs)
    values = {("ada", first): 1, ("bob", first): 5, ("ada", second): 3, ("bob", second): 3}
    store.add_scores(
        [
            Score(trajectory=run, criterion="tone@1", value=v, rater=who, rater_kind="human", note=f"by {who}")
            for (who, run), v in values.items()
        ]
    )
    for who, better, worse in (("ada", first, second), ("bob", second, first)):
        store.add_preferences([Preference(taskset="desk", items=(Item(better), Item(worse)), source="human", rater=who, left=first)])
    return [first, second]


class AsRater:
    """In the guard's place: someone who may rate and no more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PERSON] = Person("ada", "rater")
        await self.app(scope, receive, send)


def test_everything_about_agreement_is_for_leads(project: Project, store: Store, disputed: list[str]) -> None:
    app = create_api(project, rater="lead")
    app.user_middleware.clear()
    app.add_middleware(AsRater)
    decision = {"key": secrets.token_hex(8), "trajectory": disputed[0], "criterion": "tone@1", "value": 2, "note": "x"}
    with TestClient(app, base_url=HOME) as rater:
        for answer in (
            rater.get("/api/agreement", params={"taskset": "desk"}),
            rater.get("/api/agreement/cases", params=TONE),
            rater.get("/api/agreement/case", params={**TONE, "run": disputed[0]}),
            rater.get("/api/lineage/adapters"),
            rater.get("/api/lineage", params={"ref": "desk@1"}),
            rater.post("/api/decisions", json=decision),
            rater.post(
                "/api/decisions/pair", json={"key": "a" * 8, "draw": "0" * 32, "criterion": "overall", "choice": "tie", "note": "x"}
            ),
        ):
            assert answer.status_code == 403
    assert not [score for score in store.scores() if score.rater_kind == "adjudicator"]


def test_who_was_right_on_known_answers_is_told_and_no_run_is_named(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    store.queue_items.add([run.id], gold={"tone@1": 5.0}, gold_by="lea")
    queue = store.queue(Rules(gold_rate=1.0))
    hand = queue.take("ada")
    assert hand is not None and client.get("/api/agreement", params={"taskset": "desk"}).json()["gold"] == []
    store.add_scores([Score(trajectory=run.id, criterion="tone@1", value=3, rater="ada", rater_kind="human")])
    queue.finish(hand.id, "ada")
    told = {"person": "ada", "criterion": "tone@1", "is_pair": False, "asked": 1, "right": 0, "off": 2.0, "set_by": ["lea"]}
    assert client.get("/api/agreement", params={"taskset": "desk"}).json()["gold"] == [told]
    assert client.get("/api/agreement", params={"taskset": "other"}).json()["gold"] == []


def test_the_report_names_no_case_of_a_run_that_its_lead_rates_blind(client: TestClient, store: Store, disputed: list[str]) -> None:
    first, second = disputed
    judged = [(first, 5.0), (second, 1.0)]
    store.add_scores([Score(trajectory=run, criterion="tone@1", value=v, rater="j", rater_kind="judge") for run, v in judged])

    def named() -> set[str]:
        report = client.get("/api/agreement", params={"taskset": "desk"}).json()
        return {item[0] for q in report["questions"] for m in q["machines"] for one in m["worst"] for item in one["items"]}

    assert named() == {first, second}
    store.queue_items.add([first], overlap=3)
    hand = client.post("/api/queue/next", json={}).json()["current"]
    assert named() == {second}
    assert client.post(f"/api/queue/{hand['assignment']}/skip", json={"key": "k" * 8, "reason": "not mine"}).json()["saved"]
    assert named() == {first, second}


def test_the_report_says_too_few_rather_than_a_number(client: TestClient, disputed: list[str]) -> None:
    report = client.get("/api/agreement", params={"taskset": "desk"}).json()
    tone, pair = report["questions"]
    assert (tone["question"], tone["shared"], tone["split"], tone["open"]) == (["tone@1", "mark"], 2, 1, 1)
    assert (tone["alpha"]["value"], tone["alpha"]["why"], tone["alpha"]["n"]) == (None, "too few", 2)
    assert (pair["question"], pair["split"]) == (["overall", "pair"], 1)
    assert [person["name"] for person in report["people"]] == ["ada", "bob"]


def test_a_lead_who_rates_a_run_blind_sees_no_answers_on_it_and_decides_nothing(
    client: TestClient, store: Store, disputed: list[str]
) -> None:
    first, second = disputed
    store.queue_items.add([first], overlap=3)
    assert client.post("/api/queue/next", json={}).json()["current"]["run"] == first
    for question in (TONE, PAIR):
        told = client.get("/api/agreement/cases", params=question).json()["cases"]
        assert first not in {item[0] for case in told for item in case["items"]}
    assert client.get("/api/agreement/case", params={**TONE, "run": first}).status_code == 409
    assert client.get("/api/agreement/case", params={**PAIR, "run": second, "other": first}).status_code == 409
    decision = {"key": secrets.token_hex(8), "trajectory": first, "criterion": "tone@1", "value": 2, "note": "x"}
    assert client.post("/api/decisions", json=decision).status_code == 409
    assert not [score for score in store.scores() if score.rater_kind == "adjudicator"]


def test_a_decision_is_one_more_record_and_counts_alone(client: TestClient, store: Store, disputed: list[str]) -> None:
    first = disputed[0]
    assert client.get("/api/agreement", params={"taskset": "desk"}).json()["questions"][0]["open"] == 1
    cases = client.get("/api/agreement/cases", params={**TONE, "first": "human:ada", "second": "human:bob"}).json()
    assert cases["cases"][0]["items"][0][0] == first
    shown = client.get("/api/agreement/case", params={**TONE, "run": first}).json()
    assert [(a["rater"][1], a["word"], a["note"]) for a in shown["case"]["answers"]] == [("ada", "1", "by ada"), ("bob", "5", "by bob")]
    assert shown["run"]["timeline"]
    decision = {"key": secrets.token_hex(8), "trajectory": first, "criterion": "tone@1", "value": 2, "note": "curt, but not rude"}
    assert client.post("/api/decisions", json=decision).json()["known"] is False
    assert client.post("/api/decisions", json=decision).json()["known"] is True, "a lost answer makes no second decision"
    marks = [score for score in store.scores([first]) if score.criterion == "tone@1"]
    assert [(s.rater, s.rater_kind, s.value) for s in marks] == [("ada", "human", 1), ("bob", "human", 5), ("lead", "adjudicator", 2)]
    assert marks[-1].note == "curt, but not rude"
    assert client.get(f"/api/runs/{first}").json()["overall"] == pytest.approx(0.1 + 0.9 * 0.25)
    again = client.get("/api/agreement/case", params={**TONE, "run": first}).json()["case"]
    assert (again["decision"]["word"], again["decision"]["rater"]) == ("2", ["adjudicator", "lead"])
    report = client.get("/api/agreement", params={"taskset": "desk"}).json()["questions"][0]
    assert (report["split"], report["open"], report["decided"]) == (1, 0, 1)


@pytest.mark.parametrize("change", [{"note": "  "}, {"note": ""}, {"value": 9}, {"criterion": "tone@7"}, {"step": 0}, {"rater": "eve"}])
def test_a_decision_without_a_reason_or_outside_the_criterion_is_refused(
    client: TestClient, store: Store, disputed: list[str], change: dict[str, object]
) -> None:
    decision = {"key": secrets.token_hex(8), "trajectory": disputed[0], "criterion": "tone@1", "value": 2, "note": "why", **change}
    assert client.post("/api/decisions", json=decision).status_code == 422
    assert not [score for score in store.scores() if score.rater_kind == "adjudicator"]


def test_a_pair_is_decided_blind_on_sides_that_stay(client: TestClient, store: Store, disputed: list[str]) -> None:
    where = {**PAIR, "run": disputed[0], "other": disputed[1]}
    shown = client.get("/api/agreement/case", params=where).json()
    assert client.get("/api/agreement/case", params=where).json()["draw"] == shown["draw"]
    assert "desk@9" not in str(shown["left"]) + str(shown["right"])
    assert {a["word"] for a in shown["case"]["answers"]} == {"first", "second"}
    decision = {"key": secrets.token_hex(8), "draw": shown["draw"], "criterion": "overall", "choice": "left_far", "note": "it answers"}
    assert client.post("/api/decisions/pair", json=decision).status_code == 200
    made = store.preferences("desk", source="adjudicator")
    first, second = sorted(disputed)
    assert [item.trajectory for item in made[0].items] == ([second, first] if shown["swapped"] else [first, second])
    assert (made[0].rater, made[0].note, made[0].strength) == ("lead", "it answers", 3)
    assert len(store.preferences("desk")) == 3
    assert client.post("/api/decisions/pair", json={**decision, "key": "b" * 8, "criterion": "nothing@1"}).status_code == 422


def test_a_case_that_nobody_answered_is_not_there(client: TestClient, disputed: list[str]) -> None:
    assert client.get("/api/agreement/case", params={**TONE, "run": "0" * 32}).status_code == 404
    assert client.get("/api/agreement/case", params={**PAIR, "run": disputed[0]}).status_code == 422
