"""A lead fills the queue over HTTP: runs, two of them as a pair, and runs whose answer is known."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import secrets

from small_desk import make_run
from starlette.testclient import TestClient
from test_queue_api import app, clients, mark, project, store

from agentalign.store.queue import Rules
from agentalign.store.store import Store


def test_a_lead_puts_runs_or_two_as_a_pair_into_the_queue(clients: dict[str, TestClient], store: Store) -> None:
    one, two, other = (make_run(answer=text, task=task) for text, task in (("Yes.", "q1"), ("No.", "q1"), ("Maybe.", "q2")))
    store.add([one, two, other])
    lea, runs = clients["lea"], [one.id, two.id]
    assert lea.post("/api/queue/items", json={"runs": runs, "overlap": 3}).json() == {"added": 2, "changed": 0}
    for added in ({"added": 1, "changed": 0}, {"added": 0, "changed": 1}):
        assert lea.post("/api/queue/items", json={"runs": runs, "overlap": 2, "pair": True}).json() == added
    listed = {(item.trajectory, item.other): item for item in store.queue_items.items()}
    pair = listed[(min(runs), max(runs))]
    assert (pair.overlap, listed[(one.id, None)].overlap, pair.is_gold) == (2, 3, False)
    assert pair.priority > 0, "urgent as its runs are: nobody rated such a run"
    for wrong, word in (
        ([one.id, other.id], "not of one task"),
        ([one.id], "these are 1"),
        ([one.id, one.id], "word for word the same"),
        ([one.id, "0" * 32], "in the store"),
    ):
        refused = lea.post("/api/queue/items", json={"runs": wrong, "pair": True})
        assert (refused.status_code, word in refused.json()["detail"]) == (422, True), refused.text
    assert clients["ada"].post("/api/queue/items", json={"runs": runs, "pair": True}).status_code == 403
    store.queue_items.set_status(["+".join(sorted(runs)), *runs], "closed")


def test_a_lead_makes_a_run_known_by_the_marks_given_before(clients: dict[str, TestClient], store: Store) -> None:
    store.queue_items.set_status([item.trajectory for item in store.queue_items.items(status="open")], "closed")
    run, held = make_run(answer="Known."), make_run(answer="In hand.")
    store.add([run, held])
    lea, known = clients["lea"], {"key": secrets.token_hex(8), "run": run.id}
    mark(clients["bob"], run.id, 2)
    refused = lea.post("/api/queue/items/gold", json=known)
    assert (refused.status_code, "you have given this run no mark" in refused.json()["detail"]) == (422, True)
    mark(lea, run.id, 5)
    for was_there in (False, True):
        assert lea.post("/api/queue/items/gold", json=known).json() == {"saved": True, "id": run.id, "known": was_there}
    always_gold = store.queue(Rules(gold_rate=1.0, repeat_rate=0.0))
    hand = always_gold.take("max")
    assert always_gold.take("lea") is None and hand is not None and hand.kind == "gold"
    assert always_gold.take("bob") is not None, "who rated it before meets it too"
    mark(clients["max"], run.id, 4)
    always_gold.finish(hand.id, "max")
    told = [(met.person, met.expected, met.given, met.set_by) for met in store.queue_items.gold_marks()]
    assert told == [("max", 5.0, 4.0, "lea")]
    back = {"key": secrets.token_hex(8), "trajectory": run.id, "criterion": "tone@1", "status": "withdrawn"}
    assert lea.post("/api/scores", json=back).status_code == 200
    assert lea.post("/api/queue/items/gold", json=known).status_code == 422, "a mark that was taken back is none"
    store.queue_items.add([held.id])
    taken = lea.post("/api/queue/next", json={}).json()["current"]
    mark(lea, held.id)
    assert lea.post("/api/queue/items/gold", json=known | {"run": held.id}).status_code == 409
    assert lea.post(f"/api/queue/{taken['assignment']}/done", json={"key": secrets.token_hex(8)}).status_code == 200
    assert clients["ada"].post("/api/queue/items/gold", json=known).status_code == 403
    store.forget([run.id, held.id], reason="of this test alone")
