"""The playground over HTTP with a model of toy size that really calls its tool: a project, two people, and what their pages ask for."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_desk import HOME
from small_server import TINY, add_soft_adapter
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.environments.taskset import load_taskset
from agentalign.store.store import Store
from agentalign.ui.api import create_api

PASSWORD = "correct horse battery"
PATIENCE = 120


def make_play(folder: Path) -> Project:
    """A project with the toy desk and two adapters of its base."""
    found = Project.create(folder)
    (found.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    for seed in (1, 2):
        add_soft_adapter(found, TINY, name="toy_desk", std=0.001, seed=seed)
    return found


class PlayFixtures(NamedTuple):
    """To be given names in a test module."""

    project: Any
    store: Any
    clients: Any
    """By name: ada, a rater, and lea, a lead. toy_desk@1 is loaded."""
    ada: Any
    """Her client; what she leaves open is discarded."""


def play_fixtures() -> PlayFixtures:
    """The fixtures of a module: its project, its store, its people."""

    @pytest.fixture(scope="module")
    def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
        found = make_play(tmp_path_factory.mktemp("play"))
        with Store(found.store_url) as store:
            for name, role in (("ada", "rater"), ("lea", "lead")):
                store.accounts.set(name, role, PASSWORD)  # type: ignore[arg-type]
        return found

    @pytest.fixture(scope="module")
    def store(project: Project) -> Iterator[Store]:
        with Store(project.store_url) as store:
            yield store

    @pytest.fixture(scope="module")
    def clients(project: Project) -> Iterator[dict[str, TestClient]]:
        app = create_api(project, rater="nobody", team=True)
        with TestClient(app, base_url=HOME) as ada:
            lea = TestClient(app, base_url=HOME)
            for name, client in (("ada", ada), ("lea", lea)):
                assert client.post("/api/login", json={"name": name, "password": PASSWORD}).status_code == 200
            assert ada.post("/api/play/chats", json={"sides": ["base"], "tools": "hand", "words": "hi"}).status_code == 422
            assert ada.post("/api/play/model", json={"adapter": "toy_desk@1"}).status_code == 403
            assert lea.post("/api/play/model", json={"adapter": "toy_desk@1"}).json() == {"begun": True}
            until(lambda: lea.get("/api/play").json()["model"], lambda model: model["state"] != "loading")
            model = lea.get("/api/play").json()["model"]
            assert (model["state"], model["sides"]) == ("ready", ["toy_desk@1", "toy_desk@2", "base"]), model
            yield {"ada": ada, "lea": lea}

    @pytest.fixture
    def ada(clients: dict[str, TestClient]) -> Iterator[TestClient]:
        yield clients["ada"]
        for row in clients["ada"].get("/api/play").json()["chats"]:
            clients["ada"].post(f"/api/play/chats/{row['id']}/discard")

    return PlayFixtures(project, store, clients, ada)


def until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """What is seen, once it is good; whatever the machine is doing, it is waited for."""
    end = time.monotonic() + PATIENCE
    while not good(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def rests(client: TestClient, id: str) -> dict[str, Any]:
    """The chat, when no side is at work."""
    busy = ("opening", "writing", "calling")
    at_rest: dict[str, Any] = until(
        lambda: client.get(f"/api/play/chats/{id}").json(), lambda chat: all(lane["state"] not in busy for lane in chat["lanes"])
    )
    return at_rest


def begin(client: TestClient, **more: Any) -> str:
    answer = client.post("/api/play/chats", json={"sides": ["toy_desk@1"], "taskset": "toy_desk", "tools": "live", **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def clear_task() -> str:
    return next(task.id for task in load_taskset(TINY.parent / "toy_desk").tasks("train") if task.family != "unclear")


def decide(client: TestClient, id: str, call: str, decision: str, **more: Any) -> Any:
    return client.post(f"/api/play/chats/{id}/call", json={"side": 0, "call": call, "decision": decision, **more})


def deny_all(client: TestClient, id: str, side: int = 0) -> None:
    """Until the side asks for nothing more."""
    while waiting := [p for p in rests(client, id)["lanes"][side]["proposals"] if p["state"] in ("asked", "wanting")]:
        answer = client.post(f"/api/play/chats/{id}/call", json={"side": side, "call": waiting[0]["id"], "decision": "deny"})
        assert answer.status_code == 200, answer.text
