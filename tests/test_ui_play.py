"""The playground over HTTP, with a model of toy size that really calls its tool: chats, decisions, replay, blindness, and what is kept."""

import json
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
from agentalign.records.trajectory import StopReason
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


def test_every_call_waits_and_a_changed_one_is_what_was_done_with_the_agents_own_kept_beside_it(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task())
    (lane,) = rests(ada, id)["lanes"]
    (call,) = lane["proposals"]
    assert (lane["state"], call["state"], call["result"]) == ("asking", "asked", None)
    assert ada.post(f"/api/play/chats/{id}/say", json={"words": "hurry"}).status_code == 422
    refused = decide(ada, id, call["id"], "edit", arguments='{"item": 3}')
    assert refused.status_code == 422 and "order" in refused.json()["detail"]
    assert decide(ada, id, call["id"], "edit", arguments='{"item": "kite", "colour": "plaid"}').status_code == 200
    chat = rests(ada, id)
    assert chat["lanes"][0]["changes"][0] == "step 0: order edited"
    if chat["lanes"][0]["proposals"]:  # the model may try again; it is told no
        again = chat["lanes"][0]["proposals"][0]["id"]
        assert decide(ada, id, again, "deny", words="Say sorry.").status_code == 200
        chat = rests(ada, id)
    assert decide(ada, id, call["id"], "approve").status_code == 422
    (run,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    found, tokens = store.trajectory(run), store.tokens(run)
    step = found.steps[0]
    assert step.message.tool_calls[0].arguments == '{"colour":"plaid","item":"kite"}'
    assert (step.results[0].content, step.results[0].error) == ("no such item.", True)
    assert found.task_id is None, "checks would hold against the agent what a person did"
    did = json.loads(found.metadata)["chat"]["changes"][0]
    assert (did["did"], did["call"], did["arguments"]) == ("edited", call["id"], call["arguments"])
    assert tokens is None or step.message_index not in [turn.message_index for turn in tokens.turns]


def test_a_denied_call_is_answered_with_the_reason_and_was_never_made(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task())
    call = rests(ada, id)["lanes"][0]["proposals"][0]["id"]
    decide(ada, id, call, "deny", words="Not today.")
    chat = rests(ada, id)
    (result,) = [c for entry in chat["lanes"][0]["entries"] for c in entry["calls"] if c["result"]][:1]
    assert result["error"] and result["result"] == "error: a person did not allow this call. Not today."


def test_a_recorded_run_answers_the_calls_that_it_holds_and_the_person_the_others(ada: TestClient, store: Store, project: Project) -> None:
    taskset = load_taskset(TINY.parent / "toy_desk")
    task = taskset.task(clear_task())
    with WorkerPool(taskset, 1) as pool:
        (result,) = rollout(taskset, ExpertPolicy(pool), [Job(task)], origin_kind="expert", pool=pool, batch=1)
    expert = result.trajectory
    told = expert.model_copy(update={"id": ""}).model_dump()
    told["messages"] = [m | ({"content": "ready at noon"} if m["role"] == "tool" else {}) for m in told["messages"]]
    recorded = type(expert).model_validate(told)
    store.add([recorded])
    id = begin(ada, tools="replay", run=recorded.id, taskset="", ask=False)
    chat = rests(ada, id)
    (call,) = [call for entry in chat["lanes"][0]["entries"] for call in entry["calls"]]
    assert (call["result"], call["error"]) == ("ready at noon", False)
    assert chat["lanes"][0]["changes"] == ["step 0: order replayed"]
    other = next(one for one in taskset.tasks("train") if one.family != "unclear" and one.values["item"] != task.values["item"])
    stranger = expert.model_copy(update={"id": ""}).model_dump()
    stranger["messages"][1]["content"] = f"I want a {other.values['colour']} {other.values['item']}."
    source = type(expert).model_validate(stranger)
    store.add([source])
    id = begin(ada, tools="replay", run=source.id, taskset="", ask=False)
    (asked,) = rests(ada, id)["lanes"][0]["proposals"]
    assert asked["state"] == "wanting"
    assert decide(ada, id, asked["id"], "answer", words="sold out", error=True).status_code == 200
    answered = [call for entry in rests(ada, id)["lanes"][0]["entries"] for call in entry["calls"]]
    assert (answered[0]["result"], answered[0]["error"]) == ("sold out", True)


def test_own_words_on_a_task_are_no_attempt_at_it(ada: TestClient, store: Store) -> None:
    task = clear_task()
    id = begin(ada, task=task, words="I want a red kite.", ask=False)
    rests(ada, id)
    (run,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    found = store.trajectory(run)
    assert (found.task_id, found.messages[1].content) == (None, "I want a red kite.")
    assert json.loads(found.metadata)["chat"]["world_of"] == task


def test_nobody_is_told_who_is_on_which_side_before_the_vote(ada: TestClient, store: Store) -> None:
    id = begin(ada, sides=["toy_desk@1", "toy_desk@2"], task=clear_task(), ask=False)
    seen = [ada.get(f"/api/play/chats/{id}").text]
    rests(ada, id)
    seen += [ada.get(f"/api/play/chats/{id}").text]
    seen += [json.dumps(row) for row in ada.get("/api/play").json()["chats"] if row["id"] == id]
    for text in seen:
        assert "toy_desk@" not in text, text
    assert json.loads(seen[1])["runs"] == []
    assert not list(store.trajectories(RunFilter(origin_kind="chat", policy="toy_desk@2")))
    assert ada.post(f"/api/play/chats/{id}/keep", json={"marks": []}).status_code == 422
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"choice": "right_far", "note": "shorter"}).json()
    assert sorted(kept["names"]) == ["toy_desk@1", "toy_desk@2"]
    left, right = kept["runs"]
    assert [store.trajectory(run).origin.reference for run in kept["runs"]] == kept["names"]
    assert store.trajectory(left).same_task_key() == store.trajectory(right).same_task_key()
    (vote,) = store.preferences("toy_desk", source="human")
    assert ([item.trajectory for item in vote.items], vote.left, vote.strength, vote.rater) == ([right, left], left, 3.0, "ada")
    ada.post(f"/api/play/chats/{id}/keep", json={"choice": "left"})
    assert len(store.preferences("toy_desk", source="human")) == 1


def test_sides_are_drawn_by_chance(ada: TestClient) -> None:
    drawn = set()
    for _ in range(24):
        id = begin(ada, sides=["toy_desk@1", "base"], tools="hand", words="I want a red kite.")
        rests(ada, id)
        drawn.add(tuple(ada.post(f"/api/play/chats/{id}/keep", json={"choice": "tie"}).json()["names"]))
        if len(drawn) == 2:
            return
    raise AssertionError(f"24 draws, and always {drawn}")


def test_a_turn_is_stopped_and_taken_up_again(ada: TestClient, clients: dict[str, TestClient]) -> None:
    id = begin(ada, task=clear_task())
    stopped = ada.post(f"/api/play/chats/{id}/stop", json={}).json()
    chat = rests(ada, id)
    assert chat["lanes"][0]["state"] in ("stopped", "asking"), stopped
    if chat["lanes"][0]["state"] == "stopped":
        assert chat["lanes"][0]["can_go_on"] and [entry["kind"] for entry in chat["lanes"][0]["entries"]][-1] == "user"
        assert ada.post(f"/api/play/chats/{id}/keep", json={}).status_code == 422
        assert ada.post(f"/api/play/chats/{id}/resume", json={}).status_code == 200
        assert rests(ada, id)["lanes"][0]["state"] == "asking"
    assert ada.post(f"/api/play/chats/{id}/resume", json={}).status_code == 422


def test_a_chat_is_its_persons_alone_and_only_a_lead_fills_the_queue(clients: dict[str, TestClient], ada: TestClient, store: Store) -> None:
    id = begin(ada, tools="hand", words="I want a red kite.")
    lea = clients["lea"]
    for method, what in (("GET", ""), ("POST", "/stop"), ("POST", "/keep"), ("POST", "/discard")):
        assert lea.request(method, f"/api/play/chats/{id}{what}", json={}).status_code == 404, what
    assert id not in lea.get("/api/play").text
    rests(ada, id)
    assert ada.post(f"/api/play/chats/{id}/keep", json={"queue": True}).status_code == 403
    own = begin(lea, tools="hand", words="I want a blue ball.")
    rests(lea, own)
    (run,) = lea.post(f"/api/play/chats/{own}/keep", json={"queue": True}).json()["runs"]
    assert run in [item.trajectory for item in store.queue_items.items(None, None)]


def test_a_wish_that_cannot_be_is_refused_with_a_sentence(ada: TestClient) -> None:
    def refusal(**more: Any) -> str:
        answer = ada.post("/api/play/chats", json={"sides": ["toy_desk@1"], "taskset": "toy_desk", "tools": "hand", "words": "hi", **more})
        assert answer.status_code == 422, answer.text
        return str(answer.json()["detail"])

    assert "does not go with the model" in refusal(sides=["toy_desk@9"])
    assert "same adapter" in refusal(sides=["base", "base"])
    assert "first words" in refusal(words=" ")
    assert "no task" in refusal(tools="live", task="nowhere")
    assert "Name one" in refusal(tools="replay", words="")
    assert "taskset" in refusal(taskset="../toy_desk")
    for _ in range(3):
        begin(ada, tools="hand", words="hi")
    assert "too many chats" in refusal()


def test_without_its_model_a_chat_says_so_and_can_still_be_kept(clients: dict[str, TestClient], ada: TestClient, store: Store) -> None:
    lea = clients["lea"]
    id = begin(ada, tools="hand", words="I want a red kite.")
    call = rests(ada, id)["lanes"][0]["proposals"][0]["id"]
    assert lea.post("/api/play/model/unload").status_code == 200
    assert lea.get("/api/play").json()["model"]["state"] == "empty"
    decide(ada, id, call, "deny")
    lane = rests(ada, id)["lanes"][0]
    assert lane["state"] == "failed" and lane["problem"]
    (run,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    assert store.trajectory(run).steps[0].results[0].error
    lea.post("/api/play/model", json={"adapter": "toy_desk@2"})
    assert until(lambda: lea.get("/api/play").json()["model"], lambda model: model["state"] != "loading")["state"] == "ready"


def test_the_tasks_own_customer_may_answer_and_only_then_is_it_an_attempt(ada: TestClient, store: Store) -> None:
    task = load_taskset(TINY.parent / "toy_desk").task("train-00104")  # no colour is said, and the model asks for it
    kept = []
    for speaks in (False, True):
        id = begin(ada, task=task.id, ask=False)
        (lane,) = rests(ada, id)["lanes"]
        assert lane["customer"] == f"In {task.values['colour']}, please.", lane
        if speaks:
            assert ada.post(f"/api/play/chats/{id}/customer", json={}).status_code == 200
            (lane,) = rests(ada, id)["lanes"]
            assert (lane["customer"], lane["entries"][3]["text"]) == (None, f"In {task.values['colour']}, please.")
            assert ada.post(f"/api/play/chats/{id}/customer", json={}).status_code == 422
        kept += ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    assert [store.trajectory(run).task_id for run in kept] == [None, task.id]
