"""The playground over HTTP, with a model of toy size that really calls its tool: chats, decisions, replay, blindness, and what is kept."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from small_desk import HOME
from small_server import TINY, add_soft_adapter
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.records.trajectory import StopReason, ToolCall
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.ui.api import create_api

PASSWORD = "correct horse battery"
PATIENCE = 120


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project.create(tmp_path_factory.mktemp("play"))
    (found.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    for seed in (1, 2):
        add_soft_adapter(found, TINY, name="toy_desk", std=0.001, seed=seed)
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


def test_a_chat_on_a_task_calls_its_tools_and_becomes_a_run_with_its_tokens(ada: TestClient, project: Project, store: Store) -> None:
    task = clear_task()
    id = begin(ada, task=task, ask=False)
    chat = rests(ada, id)
    (lane,) = chat["lanes"]
    assert lane["state"] == "ready", chat
    called = [call for entry in lane["entries"] for call in entry["calls"]]
    assert called and called[0]["name"] == "order" and called[0]["result"] is not None
    assert ada.get(f"/api/play/chats/{id}", params={"seen": chat["seen"]}).json()["lanes"][0]["entries"] is None
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"marks": [{"criterion": "tone@1", "value": 5}]}).json()
    (run,) = kept["runs"]
    found = store.trajectory(run)
    assert (found.origin.kind, found.origin.reference, found.task_id, found.split) == ("chat", "toy_desk@1", task, "train")
    assert found.stop_reason is StopReason.ANSWERED
    tokens = store.tokens(run)
    assert tokens is not None
    dialect = Dialect.load(prepare_base(str(TINY), project.cache))
    assert tokens.base == dialect.digest
    for turn in tokens.turns:
        assert list(turn.context[: len(dialect.context_ids(found.messages[:2], found.tools))]) == dialect.context_ids(
            found.messages[:2], found.tools
        )
        assert dialect.parse_ids(turn.completion).content == found.messages[turn.message_index].content
        assert len(turn.logprobs) == len(turn.completion)
    assert [(s.rater, s.criterion, s.value) for s in store.scores([run])] == [("ada", "tone@1", 5)]
    again = ada.post(f"/api/play/chats/{id}/keep", json={"marks": [{"criterion": "tone@1", "value": 5}]}).json()
    assert again["runs"] == [run] and len(store.scores([run])) == 1
    assert ada.post(f"/api/play/chats/{id}/say", json={"words": "more"}).status_code == 422
