"""What a rater's key costs the server, in statements and answers: counts hold on any machine, milliseconds do not."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from small_desk import HOME, make_run
from small_ui import desk_fixtures
from sqlalchemy import event
from sqlalchemy.engine import Engine
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui.api import create_api

PASSWORD = "correct horse battery"
project = desk_fixtures().project


@pytest.fixture
def store(project: Project) -> Iterator[Store]:
    with Store(project.store_url) as store:
        store.accounts.set("ada", "rater", PASSWORD)
        yield store


@pytest.fixture
def ada(project: Project, store: Store) -> Iterator[TestClient]:
    """Somebody on a team's server, which asks the accounts at every request."""
    app = create_api(project, rater="nobody", team=True, rules=Rules(gold_rate=0.0, repeat_rate=0.0))
    with TestClient(app, base_url=HOME, follow_redirects=False) as client:
        assert client.post("/api/login", json={"name": "ada", "password": PASSWORD}).status_code == 200
        yield client


@contextmanager
def statements() -> Iterator[list[str]]:
    """The SQL that runs meanwhile, in this process."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def long_run(n_steps: int, sample: int = 0) -> Trajectory:
    said = [Message(role="user", content="Go on."), *(Message(role="assistant", content=f"Step {step}.") for step in range(n_steps))]
    return Trajectory(taskset="desk", messages=tuple(said), origin=Origin(kind="rollout", reference="base", sample=sample))


def mark(run: str, **more: object) -> dict[str, object]:
    return {"key": secrets.token_hex(8), "trajectory": run, "criterion": "tone@1", "value": 4, **more}


def test_a_save_costs_few_statements_and_never_reads_the_run(ada: TestClient, store: Store) -> None:
    short, long = long_run(2), long_run(500, 1)
    store.add([short, long])
    counts = []
    for run in (short, long):
        ada.post("/api/scores", json=mark(run.id))
        with statements() as found:
            assert ada.post("/api/scores", json=mark(run.id)).json()["saved"] is True
        assert not [statement for statement in found if "bodies" in statement]
        counts.append(len(found))
    # Whoever asks, the run's taskset, and one transaction: three BEGINs, and nine statements.
    assert counts[0] == counts[1] <= 12
    assert sum(statement == "BEGIN IMMEDIATE" for statement in found) == 1


def test_a_run_and_its_corrections_are_read_from_the_store_once(ada: TestClient, store: Store) -> None:
    run = long_run(20)
    store.add([run])
    with statements() as found:
        for path in ("", "/corrections", "", "/corrections"):
            assert ada.get(f"/api/runs/{run.id}{path}").status_code == 200
    assert sum("bodies.record" in statement for statement in found) == 1


def test_a_finished_run_brings_the_next_one_in_the_same_answer(ada: TestClient, store: Store) -> None:
    runs = [make_run(answer=f"Answer {number} \ud800.", sample=number, policy="desk@9") for number in range(2)]
    store.add(runs)
    store.queue_items.add([run.id for run in runs], overlap=1)
    first = ada.post("/api/queue/next", json={}).json()
    assert first["run"]["id"] == first["current"]["run"] and first["run"]["hidden"] and first["run"]["policy"] == ""
    assert first["run"]["timeline"] == ada.get(f"/api/runs/{first['current']['run']}").json()["timeline"]
    ada.post("/api/scores", json=mark(first["current"]["run"]))
    body = {"key": secrets.token_hex(8), "next": True}
    done = ada.post(f"/api/queue/{first['current']['assignment']}/done", json=body).json()
    assert done["saved"] is True and not done["known"]
    second = done["next"]
    assert {first["current"]["run"], second["run"]["id"]} == {run.id for run in runs} and "desk@9" not in str(second)
    # The same word again, after a lost answer: the run is finished once, and the one in hand is the same.
    again = ada.post(f"/api/queue/{first['current']['assignment']}/done", json=body).json()
    assert again["known"] is True and again["next"]["current"]["assignment"] == second["current"]["assignment"]
    assert [item.live for item in store.queue_items.items() if item.trajectory == second["run"]["id"]] == [1]
    # Without the wish nothing is taken, and after the last one nothing is left.
    skipped = ada.post(f"/api/queue/{second['current']['assignment']}/skip", json={**body, "reason": "I know them", "next": False}).json()
    assert skipped["saved"] is True and "next" not in skipped
    assert ada.post("/api/queue/next", json={}).json()["run"] is None


def test_a_finished_run_is_acknowledged_where_the_next_cannot_be_taken(
    ada: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentalign.errors import StoreError
    from agentalign.store.queue import Queue

    run = make_run()
    store.add([run])
    store.queue_items.add([run.id])
    hand = ada.post("/api/queue/next", json={}).json()["current"]
    ada.post("/api/scores", json=mark(run.id))

    def full(*_arguments: object) -> None:
        raise StoreError("no room left")

    monkeypatch.setattr(Queue, "take", full)
    said = ada.post(f"/api/queue/{hand['assignment']}/done", json={"key": secrets.token_hex(8), "next": True})
    assert said.status_code == 200 and said.json()["saved"] is True and said.json()["next"] is None
    assert [item.done for item in store.queue_items.items()] == [1]
