"""What only a run's page asks for: its relatives, and the address that is sent to others."""

from small_desk import make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient

from agentalign.records.trajectory import Origin, Trajectory
from agentalign.store.store import Store

project, store, client = desk_fixtures()


def forked(parent: Trajectory, step: int, said: str = "No.", kind: str = "correction") -> Trajectory:
    origin = Origin.model_validate({"kind": kind, "reference": said})
    return Trajectory(taskset="desk", messages=parent.messages[:2], origin=origin, parent=(parent.id, step))


def test_a_run_knows_where_it_came_from_and_what_came_from_it(client: TestClient, store: Store) -> None:
    first = make_run()
    second = forked(first, 1)
    third = forked(second, 0, kind="rollout")
    store.add([first, second, third])
    assert client.get(f"/api/runs/{first.id}/links").json() == {
        "parent": None,
        "children": [{"id": second.id, "step": 1, "kind": "correction"}],
    }
    middle = client.get(f"/api/runs/{second.id}/links").json()
    assert middle["parent"] == {"id": first.id, "step": 1, "kind": ""}
    assert middle["children"] == [{"id": third.id, "step": 0, "kind": "rollout"}]


def test_a_parent_that_is_not_in_the_store_is_no_link(client: TestClient, store: Store) -> None:
    orphan = forked(make_run(), 0)
    store.add([orphan])
    assert client.get(f"/api/runs/{orphan.id}/links").json() == {"parent": None, "children": []}


def test_relatives_are_told_to_nobody_without_a_session(client: TestClient, store: Store) -> None:
    client.cookies.clear()
    assert client.get(f"/api/runs/{make_run().id}/links").status_code == 401


def test_the_address_of_a_run_leads_to_the_page_and_nowhere_else(client: TestClient) -> None:
    id = make_run().id
    answer = client.get(f"/run/{id}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/?run={id}")
    for wrong in ("..", "%2f%2fevil.example", id.upper() + "x"):
        assert client.get(f"/run/{wrong}", follow_redirects=False).status_code in (404, 422)
