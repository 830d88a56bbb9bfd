"""The playground over HTTP, with a model of toy size that really calls its tool: chats, decisions, replay, blindness, and what is kept."""

import json
import shutil
import weakref
from typing import Any

import pytest
from small_play import begin, clear_task, decide, deny_all, play_fixtures, rests, until
from small_server import TINY, add_soft_adapter, held
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.deployment.serving import engine as serving
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.records.trajectory import StopReason
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect

project, store, clients, ada = play_fixtures()


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
    assert lea.get(f"/api/play/chats/{id}").status_code == 404
    for what in ("stop", "keep", "rewrite", "branch", "discard"):
        body = {"side": 0, "step": 0} if what == "branch" else {}
        assert lea.post(f"/api/play/chats/{id}/{what}", json=body).status_code == 404, what
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
    assert lane["state"] == "failed" and "no model is loaded" in lane["problem"]
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


# ---- going back


def test_the_last_turn_is_written_once_more_from_the_same_state(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task())
    before = rests(ada, id)["lanes"][0]
    for number in (1, 2):
        assert ada.post(f"/api/play/chats/{id}/rewrite", json={}).status_code == 200
        lane = rests(ada, id)["lanes"][0]
        assert [change.split(": ")[1] for change in lane["changes"]] == ["turn rewritten"] * number
        assert [entry["text"] for entry in lane["entries"][:2]] == [entry["text"] for entry in before["entries"][:2]]
        if not lane["can_rewrite"]:  # drawn at temperature 1, a toy model also writes what nobody can read
            break
    deny_all(ada, id)
    (run,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    found, tokens = store.trajectory(run), store.tokens(run)
    did = [change for change in json.loads(found.metadata)["chat"]["changes"] if change["did"] == "rewritten"]
    assert (did[0]["step"], {change["temperature"] for change in did}) == (0, {1.0})
    assert found.task_id is None, "what was drawn until it pleased is no attempt"
    assert tokens is not None and len({turn.message_index for turn in tokens.turns}) == len(tokens.turns)


def test_a_reply_is_written_once_more_in_a_world_that_was_taken_back_with_it(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task(), ask=False)
    before = rests(ada, id)["lanes"][0]
    assert before["can_rewrite"] and before["entries"][-1]["text"]
    assert ada.post(f"/api/play/chats/{id}/rewrite", json={}).status_code == 200
    after = rests(ada, id)["lanes"][0]
    assert after["state"] in ("ready", "over"), after["problem"]
    assert after["entries"][: len(before["entries"]) - 1] == before["entries"][:-1]
    ada.post(f"/api/play/chats/{id}/say", json={"words": "Thanks."})
    ada.post(f"/api/play/chats/{id}/stop", json={})
    if [entry["kind"] for entry in rests(ada, id)["lanes"][0]["entries"]][-1] == "user":
        refused = ada.post(f"/api/play/chats/{id}/rewrite", json={})
        assert refused.status_code == 422 and "somebody spoke since" in refused.json()["detail"]


def test_a_branch_shares_what_was_said_and_its_run_knows_where_it_left(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task(), ask=False)
    before = rests(ada, id)["lanes"][0]["entries"]
    last = before[-1]["step"]
    branch = ada.post(f"/api/play/chats/{id}/branch", json={"side": 0, "step": last}).json()["id"]
    chat = rests(ada, branch)
    lane = chat["lanes"][0]
    assert (lane["state"], lane["can_go_on"], lane["problem"]) == ("stopped", True, ""), chat
    assert (chat["branch"], chat["draft"], lane["entries"]) == ([id, last], "", before[:-1])
    assert ada.post(f"/api/play/chats/{branch}/resume", json={}).status_code == 200
    assert rests(ada, branch)["lanes"][0]["entries"] == before, "at temperature 0 the same adapter says the same to the same"
    refused = ada.post(f"/api/play/chats/{branch}/keep", json={})
    assert refused.status_code == 422 and "still open" in refused.json()["detail"]
    (parent,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    (run,) = ada.post(f"/api/play/chats/{branch}/keep", json={}).json()["runs"]
    found, tokens = store.trajectory(run), store.tokens(run)
    assert (found.parent, found.task_id) == ((parent, last), None)
    assert json.loads(found.metadata)["chat"]["branch_of"] == {"chat": id, "step": last}
    assert tokens is not None and [turn.message_index for turn in tokens.turns] == [step.message_index for step in found.steps]
    assert [one["id"] for one in ada.get(f"/api/runs/{parent}/links").json()["children"]] == [run]


def test_the_words_at_a_branch_are_the_persons_to_change(ada: TestClient, store: Store) -> None:
    id = begin(ada, tools="hand", words="I want a red kite.", ask=False)
    rests(ada, id)
    branch = ada.post(f"/api/play/chats/{id}/branch", json={"side": 0, "step": 0}).json()["id"]
    chat = rests(ada, branch)
    assert (chat["draft"], chat["lanes"][0]["state"], [entry["kind"] for entry in chat["lanes"][0]["entries"]]) == (
        "I want a red kite.",
        "ready",
        ["system"],
    )
    assert ada.post(f"/api/play/chats/{branch}/resume", json={}).status_code == 422
    assert ada.post(f"/api/play/chats/{branch}/say", json={"words": "I want a blue ball."}).status_code == 200
    chat = rests(ada, branch)
    assert (chat["draft"], [e["text"] for e in chat["lanes"][0]["entries"] if e["kind"] == "user"]) == ("", ["I want a blue ball."])
    ada.post(f"/api/play/chats/{id}/discard")
    (run,) = ada.post(f"/api/play/chats/{branch}/keep", json={}).json()["runs"]
    assert store.trajectory(run).parent is None, "what it left was not kept"
    assert ada.post(f"/api/play/chats/{branch}/branch", json={"side": 0, "step": 7}).status_code == 422


def test_a_blind_side_has_no_branch_before_the_vote(ada: TestClient) -> None:
    id = begin(ada, sides=["toy_desk@1", "toy_desk@2"], tools="hand", words="I want a red kite.")
    rests(ada, id)
    refused = ada.post(f"/api/play/chats/{id}/branch", json={"side": 1, "step": 0})
    assert refused.status_code == 422 and "Vote first" in refused.json()["detail"]
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"choice": "tie"}).json()
    branch = ada.post(f"/api/play/chats/{id}/branch", json={"side": 1, "step": 0}).json()["id"]
    assert rests(ada, branch)["names"] == [kept["names"][1]]


def other_desk(project: Project, name: str, *changes: tuple[str, str, str]) -> None:
    """The toy desk under another name, changed: (file, what stands there, what is to stand there)."""
    folder = project.tasks / name
    shutil.copytree(TINY.parent / "toy_desk", folder)
    for file, old, new in (("taskset.yaml", "name: toy_desk", f"name: {name}"), *changes):
        text = (folder / file).read_text("utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), "utf-8")


def test_a_world_that_cannot_be_taken_back_is_not_gone_back_in(ada: TestClient, project: Project) -> None:
    other_desk(project, "once", ("taskset.yaml", "replayable: true", "replayable: false"))
    id = begin(ada, taskset="once", task=clear_task(), ask=False)
    rests(ada, id)
    for what, body in (("branch", {"side": 0, "step": 0}), ("rewrite", {})):
        refused = ada.post(f"/api/play/chats/{id}/{what}", json=body)
        assert refused.status_code == 422 and "replayable: true" in refused.json()["detail"], refused.text


def test_a_world_that_answers_otherwise_than_it_did_is_told_and_not_talked_in(ada: TestClient, project: Project) -> None:
    other_desk(project, "fickle", ("environment.py", "        return text", '        return text + str(__import__("time").time_ns())'))
    id = begin(ada, taskset="fickle", task=clear_task(), ask=False)
    last = rests(ada, id)["lanes"][0]["entries"][-1]["step"]
    branch = ada.post(f"/api/play/chats/{id}/branch", json={"side": 0, "step": last}).json()["id"]
    chat = rests(ada, branch)
    assert "does not answer as it did" in chat["problem"] and chat["lanes"][0]["state"] == "failed"
    assert ada.post(f"/api/play/chats/{branch}/resume", json={}).status_code == 422


def test_no_task_of_the_test_split_is_drawn(ada: TestClient, project: Project) -> None:
    other_desk(project, "held", ("taskset.yaml", "  train: 120\n  dev: 30\n", "  train: 0\n  dev: 0\n"))
    refused = ada.post("/api/play/chats", json={"sides": ["toy_desk@2"], "taskset": "held", "tools": "live"})
    assert refused.status_code == 422 and "outside of its test split" in refused.json()["detail"]


# ---- memory


def load(lead: TestClient, adapter: str) -> None:
    assert lead.post("/api/play/model", json={"adapter": adapter}).status_code == 200
    assert until(lambda: lead.get("/api/play").json()["model"], lambda model: model["state"] != "loading")["state"] == "ready"


def test_a_chat_that_is_discarded_while_its_adapter_is_read_gives_it_back(
    ada: TestClient, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[serving.Engine] = []
    really = serving.open_engine

    def watched(*args: Any, **settings: Any) -> serving.Engine:
        engines.append(really(*args, **settings))
        return engines[-1]

    monkeypatch.setattr(serving, "open_engine", watched)
    clients["lea"].post("/api/play/model/unload")
    load(clients["lea"], "toy_desk@1")
    engine = engines.pop()
    with held(engine.worker):
        id = begin(ada, sides=["toy_desk@2"], task=clear_task())
        until(engine.adapters._loading.locked, bool)
        assert ada.post(f"/api/play/chats/{id}/discard").status_code == 200
    until(lambda: engine.adapters._used.get("toy_desk@2"), lambda users: users == 0)


def test_a_model_that_is_taken_away_is_gone_whoever_chatted_and_before_another_one_is_read(
    ada: TestClient, clients: dict[str, TestClient], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lea = clients["lea"]
    other = shutil.copytree(TINY, project.state / "other")
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "max_position_embeddings": config["max_position_embeddings"] // 2}), "utf-8")
    add_soft_adapter(project, other, name="other", std=0.001, seed=1)
    networks: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []
    really = serving.open_engine

    def watched(*args: Any, **settings: Any) -> serving.Engine:
        alive.append([one() is not None for one in networks])
        found = really(*args, **settings)
        networks.append(weakref.ref(found.generator.model))
        return found

    def chats(side: str) -> str:
        """One that is kept and one that stays open; returns the second."""
        ids = [begin(ada, sides=[side], tools="hand", words="I want a red kite.", ask=False) for _ in range(2)]
        for id in ids:
            rests(ada, id)
        ada.post(f"/api/play/chats/{ids[0]}/keep", json={})
        return ids[1]

    monkeypatch.setattr(serving, "open_engine", watched)
    lea.post("/api/play/model/unload")
    load(lea, "toy_desk@1")
    chats("toy_desk@1")
    load(lea, "other@1")
    assert alive == [[], [False]], "two bases in memory at once"
    open_one = chats("other@1")
    assert lea.post("/api/play/model/unload").status_code == 200
    assert [one() is not None for one in networks] == [False, False], "unloaded, and still in memory"
    (call,) = rests(ada, open_one)["lanes"][0]["proposals"]
    decide(ada, open_one, call["id"], "answer", words="done")
    assert "no model is loaded" in rests(ada, open_one)["lanes"][0]["problem"]
    load(lea, "toy_desk@2")
