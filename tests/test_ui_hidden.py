"""What the pages tell of a run that is open in one's queue: nothing by its relatives, and nothing of what one said the first time."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from small_desk import HOME, make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import standing
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui.api import create_api

project, store, client = desk_fixtures()


@contextmanager
def rating(project: Project, repeat_rate: float) -> Iterator[TestClient]:
    app = create_api(project, rater="solo", rules=Rules(gold_rate=0.0, repeat_rate=repeat_rate, repeat_after=0))
    with TestClient(app, base_url=HOME) as client:
        client.get("/")
        yield client


def take(client: TestClient) -> dict[str, Any]:
    hand: dict[str, Any] = client.post("/api/queue/next", json={}).json()["current"]
    return hand


def end(client: TestClient, hand: dict[str, Any]) -> None:
    said = {"key": secrets.token_hex(8), "trajectory": hand["run"], "criterion": "tone@1", "value": 4}
    assert client.post("/api/scores", json=said).json()["saved"]
    assert client.post(f"/api/queue/{hand['assignment']}/done", json={"key": secrets.token_hex(8)}).json()["saved"]


def branch_of(parent: Trajectory) -> Trajectory:
    fields = parent.model_dump(exclude={"id"}) | {"messages": parent.messages[:3], "parent": (parent.id, 0)}
    return Trajectory.model_validate(fields)


def test_no_relative_tells_of_a_branch_in_ones_hands(project: Project, store: Store) -> None:
    chat, plain = make_run(policy="secret@7"), make_run(policy="other@1", sample=1)
    branch, sibling = branch_of(chat), branch_of(chat.model_copy(update={"family": "another"}))
    store.add([chat, plain, branch, sibling])
    store.queue_items.add([branch.id])
    with rating(project, 0.0) as client:
        assert branch.id in client.get(f"/api/runs/{chat.id}/links").text
        hand = take(client)
        assert hand["run"] == branch.id
        for relative in (chat, branch, sibling):
            assert client.get(f"/api/runs/{relative.id}/links").status_code == 409
            assert client.get(f"/api/runs/{relative.id}/tokens").status_code == 409
            assert "secret@7" not in client.get(f"/api/runs/{relative.id}").text
        assert [row["id"] for row in client.get("/api/runs").json()["rows"]] == [plain.id]
        assert client.get("/api/runs", params={"parent": chat.id}).json()["rows"] == []
        end(client, hand)
        children = client.get(f"/api/runs/{chat.id}/links").json()["children"]
        assert {child["id"] for child in children} == {branch.id, sibling.id}
        assert "secret@7" in client.get(f"/api/runs/{branch.id}").text


def test_a_hidden_run_is_not_compared_with_one_that_somebody_chose(project: Project, store: Store) -> None:
    known, asked = make_run(policy="known@1"), make_run(answer="No.", policy="secret@7")
    store.add([known, asked])
    store.queue_items.add([asked.id])
    with rating(project, 0.0) as client:
        assert client.post("/api/compare", json={"runs": [known.id, asked.id]}).status_code == 200
        hand = take(client)
        for pair in ([known.id, asked.id], [asked.id, known.id]):
            refused = client.post("/api/compare", json={"runs": pair})
            assert (refused.status_code, "open in your queue" in refused.json()["detail"]) == (409, True)
        end(client, hand)
        assert client.post("/api/compare", json={"runs": [known.id, asked.id]}).status_code == 200


def test_a_correction_of_the_first_time_is_not_shown_in_a_repeat_and_stands_through_it(project: Project, store: Store) -> None:
    run = make_run()
    store.add([run])
    store.queue_items.add([run.id])

    def correct(client: TestClient, content: str) -> str:
        said = {"key": secrets.token_hex(8), "trajectory": run.id, "step": 1, "content": content}
        id: str = client.post("/api/corrections", json=said).json()["id"]
        return id

    def shown(client: TestClient) -> list[str]:
        return [one["run"] for one in client.get(f"/api/runs/{run.id}/corrections").json()["corrections"]]

    def learned() -> set[str]:
        runs = [one for one in store.trajectories() if one.is_corrected_step]
        return set(standing(runs, store.preferences("desk")))

    with rating(project, 1.0) as client:
        hand = take(client)
        first = correct(client, "It is cancelled.")
        assert shown(client) == [first], "of the run in hand one's own corrections are there after a reload"
        end(client, hand)
        assert shown(client) == [first]
        again = take(client)
        assert again["run"] == run.id
        assert shown(client) == []
        back = {"key": secrets.token_hex(8), "trajectory": run.id, "step": 1}
        refused = client.post("/api/corrections/withdrawn", json=back)
        assert (refused.status_code, "you have not corrected step 1" in refused.json()["detail"]) == (422, True)
        assert learned() == {first}
        second = correct(client, "Cancelled; the money is back in 3 days.")
        assert (shown(client), learned()) == ([second], {second})
        assert [client.post("/api/corrections/withdrawn", json=back).json()["known"] for _ in range(2)] == [False, True]
        assert (shown(client), learned()) == ([], {first}), "what one takes back is what one sees"
        end(client, again)
        assert shown(client) == [first]
        assert client.post("/api/corrections/withdrawn", json=back | {"key": secrets.token_hex(8)}).json()["saved"]
        assert (shown(client), learned()) == ([], set())
