"""What is kept of a chat: a changed call as a correction that trainings see, once, with the agent's own call beside it."""

import json
import sqlite3
from contextlib import closing

import pytest
from small_desk import HOME
from small_play import PASSWORD, begin, clear_task, decide, deny_all, play_fixtures, rests
from small_server import SYSTEM, TINY
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from agentalign.config.dpo import DPOConfig
from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.recipes import dpo, sft
from agentalign.recipes.data import render_runs, sft_batches
from agentalign.recipes.preferences import choose_preferences
from agentalign.recipes.workspace import open_workspace
from agentalign.records.preference import Item
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory, TurnTokens
from agentalign.scoring.stored import make_pairs, score_stored
from agentalign.scoring.to_compare import comparable
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect
from agentalign.ui.api import create_api
from agentalign.ui.play_keep import changed_turns
from agentalign.ui.play_lane import About, Lane, Proposal

project, store, clients, ada = play_fixtures()
PLAID = '{"colour":"plaid","item":"kite"}'
ORDER = load_taskset(TINY.parent / "toy_desk").tools


def changed(client: TestClient, **more: object) -> tuple[str, str]:
    """A chat in which the first call was changed and any further one is denied: (its id, the call as the agent wrote it)."""
    id = begin(client, task=clear_task(), **more)
    (call,) = rests(client, id)["lanes"][0]["proposals"]
    assert decide(client, id, call["id"], "edit", arguments=PLAID).status_code == 200
    deny_all(client, id)
    return id, call["arguments"]


def of_chat(store: Store, chat: str, kind: str) -> list[Trajectory]:
    return [run for run in store.trajectories(RunFilter(origin_kind=kind)) if run.origin.task == chat]


def test_a_changed_call_becomes_a_correction_that_stands_over_the_agents_own(ada: TestClient, store: Store, project: Project) -> None:
    id, wrote = changed(ada)
    assert rests(ada, id)["lanes"][0]["changed"]
    kept = ada.post(f"/api/play/chats/{id}/keep", json={}).json()
    (run,) = of_chat(store, id, "chat")
    (proposal,) = of_chat(store, id, "proposal")
    (corrected,) = of_chat(store, id, "correction")
    assert (kept["runs"], kept["proposals"]) == ([run.id], [proposal.id])
    # The chat as it went, the agent's own call beside it, and the call that was made.
    assert run.steps[0].message.tool_calls[0].arguments == PLAID
    assert (proposal.parent, proposal.origin.reference) == ((run.id, 0), "chat"), "the adapter is named by the run, which a queue may hide"
    assert proposal.steps[0].message.tool_calls[0].arguments == wrote != PLAID
    assert (corrected.parent, corrected.origin.reference, corrected.is_corrected_step) == ((proposal.id, 0), "ada", True)
    assert corrected.messages == run.messages[: len(corrected.messages)]
    tokens = store.tokens(proposal.id)
    dialect = Dialect.load(open_base(project))
    assert tokens is not None and dialect.parse_ids(tokens.turns[-1].completion).tool_calls[0].arguments == wrote
    (pair,) = [p for p in store.preferences("toy_desk", source="correction") if p.items[0].trajectory == corrected.id]
    assert pair.items == (Item(corrected.id, 0), Item(proposal.id, 0))
    assert (pair.rater, pair.decided) == ("ada", True)
    # It is found from the run's page, shown as the person's own correction, and may be taken back there.
    assert [(one["id"], one["step"], one["kind"]) for one in ada.get(f"/api/runs/{run.id}/links").json()["children"]] == [
        (proposal.id, 0, "proposal")
    ]
    (shown,) = ada.get(f"/api/runs/{proposal.id}/corrections").json()["corrections"]
    assert shown["entry"]["calls"][0]["arguments"] == PLAID
    back = ada.post("/api/corrections/withdrawn", json={"key": "k" * 8, "trajectory": proposal.id, "step": 0})
    assert back.status_code == 200, back.text


def open_base(project: Project):  # type: ignore[no-untyped-def]
    with open_workspace(SFTConfig(taskset="toy_desk", base=str(TINY), quantization="none"), project) as work:
        return work.base


def test_trainings_learn_from_it_and_from_nothing_else_of_the_chat(ada: TestClient, store: Store, project: Project) -> None:
    id, wrote = changed(ada)
    ada.post(f"/api/play/chats/{id}/keep", json={})
    (proposal,), (corrected,) = of_chat(store, id, "proposal"), of_chat(store, id, "correction")
    taskset = load_taskset("toy_desk", project.tasks)
    with TeamCode(taskset.folder) as pool:
        score_stored(store, taskset, pool=pool)
    assert store.scores([proposal.id, corrected.id]) == [], "nothing was acted out after them that a check could look at"
    made = make_pairs(store, taskset, margin=0.0)
    assert [p.items for p in made.preferences if {item.trajectory for item in p.items} & {proposal.id, corrected.id}] == [
        (Item(corrected.id, 0), Item(proposal.id, 0))
    ]
    shown = {row.id for group in comparable(store, RunFilter(taskset="toy_desk"), 100) for pair in group for row in pair}
    assert not shown & {proposal.id, corrected.id}

    config = SFTConfig(taskset="toy_desk", base=str(TINY), quantization="none")
    with open_workspace(config, project) as work:
        chosen = [run for run in sft.choose_runs(work, config) if run.origin.task == id]
        assert [run.id for run in chosen] == [corrected.id]
        dialect = Dialect.load(work.base)
        (micro,) = sft_batches(list(render_runs(chosen, store, dialect, config).rendered.values()), max_tokens=10_000)
        learned = dialect.parse_ids(micro.tree.tokens[micro.tree.labels].tolist())
        assert learned.tool_calls[0].arguments == PLAID
        preferences, runs = choose_preferences(work, "overall")
        own = [p for p in preferences if p.items[0].trajectory == corrected.id]
        both = render_runs([runs[item.trajectory] for item in own[0].items], store, dialect, config)
        (pair,) = dpo.make_pairs(own, runs, both, DPOConfig(taskset="toy_desk", base=str(TINY), credit="turn"), {corrected.id})
    for side, item, arguments in zip((pair.chosen, pair.rejected), own[0].items, (PLAID, wrote), strict=True):
        turn, whole = side.turns[0], both.rendered[item.trajectory].turns[0].completion
        assert [*turn.context, *turn.completion][-len(whole) :] == list(whole), "tokens that both begin with are context"
        assert dialect.parse_ids(whole).tool_calls[0].arguments == arguments


def test_of_a_chat_whose_vote_cannot_be_stored_nothing_is_and_it_goes_on(ada: TestClient, store: Store, project: Project) -> None:
    id = begin(ada, sides=["toy_desk@1", "toy_desk@2"], task=clear_task())
    for side in (0, 1):
        deny_all(ada, id, side)
    with closing(sqlite3.connect(project.store_url.removeprefix("sqlite:///"))) as full:
        full.execute("CREATE TRIGGER full BEFORE INSERT ON preferences BEGIN SELECT RAISE(FAIL, 'the disk is full'); END")
        full.commit()
        try:
            with pytest.raises(IntegrityError, match="the disk is full"):
                ada.post(f"/api/play/chats/{id}/keep", json={"choice": "left"})
        finally:
            full.execute("DROP TRIGGER full")
            full.commit()
    assert of_chat(store, id, "chat") == [], "a blind pair would stand in the list of runs with its makers"
    assert ada.post(f"/api/play/chats/{id}/say", json={"words": "Are you there?"}).status_code == 200, "it is not over"
    for side in (0, 1):
        deny_all(ada, id, side)
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"choice": "right"}).json()
    runs = [run.id for run in of_chat(store, id, "chat")]
    assert sorted(kept["runs"]) == sorted(runs) and len(runs) == 2
    assert [p.decided for p in store.preferences("toy_desk", source="human") if {i.trajectory for i in p.items} == set(runs)] == [True]


def test_a_chat_that_is_kept_again_does_not_double(ada: TestClient, store: Store) -> None:
    id, _ = changed(ada)
    first = ada.post(f"/api/play/chats/{id}/keep", json={"marks": [{"criterion": "tone@1", "value": 2}]}).json()
    counts = store.count(RunFilter()), len(store.preferences("toy_desk")), len(store.scores(first["runs"]))
    again = ada.post(f"/api/play/chats/{id}/keep", json={"marks": [{"criterion": "tone@1", "value": 2}], "corrections": False}).json()
    assert (again["runs"], again["proposals"]) == (first["runs"], first["proposals"])
    assert (store.count(RunFilter()), len(store.preferences("toy_desk")), len(store.scores(first["runs"]))) == counts


def test_a_person_who_only_tried_something_corrects_nothing(ada: TestClient, store: Store) -> None:
    id, wrote = changed(ada)
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"corrections": False}).json()
    assert kept["proposals"] == [] == of_chat(store, id, "correction") == of_chat(store, id, "proposal")
    did = json.loads(store.trajectory(kept["runs"][0]).metadata)["chat"]["changes"][0]
    assert (did["did"], did["arguments"]) == ("edited", wrote)


def test_an_edit_that_changes_nothing_is_a_leave(ada: TestClient, store: Store) -> None:
    id = begin(ada, task=clear_task())
    (call,) = rests(ada, id)["lanes"][0]["proposals"]
    laid_out = json.dumps(json.loads(call["arguments"]), indent=2)
    assert decide(ada, id, call["id"], "edit", arguments=laid_out).status_code == 200
    chat = rests(ada, id)
    assert chat["lanes"][0]["changes"] == ["step 0: order approved"] and not chat["lanes"][0]["changed"]
    kept = ada.post(f"/api/play/chats/{id}/keep", json={}).json()
    assert kept["proposals"] == []
    tokens = store.tokens(kept["runs"][0])
    assert tokens is not None and tokens.turns[0].message_index == store.trajectory(kept["runs"][0]).steps[0].message_index


def test_a_blind_pairs_correction_names_nobody_before_the_vote(ada: TestClient, store: Store) -> None:
    id, _ = changed(ada, sides=["toy_desk@1", "toy_desk@2"])
    deny_all(ada, id, side=1)
    assert "toy_desk@" not in ada.get(f"/api/play/chats/{id}").text and not of_chat(store, id, "proposal")
    kept = ada.post(f"/api/play/chats/{id}/keep", json={"choice": "left"}).json()
    (proposal,) = of_chat(store, id, "proposal")
    assert (proposal.parent, proposal.origin.reference) == ((kept["runs"][0], 0), "chat")


# ---- a chat on a recorded run


def imported(store: Store, said: str, **more: object) -> Trajectory:
    """A run of somebody's logs, which a chat may replay."""
    origin = Origin(kind="import", reference="f" * 32, task=str(more))
    then = [
        Message(role="system", content=SYSTEM),
        Message(role="user", content=said),
        Message(role="assistant", content="Of course."),
    ]
    found = Trajectory(taskset="toy_desk", messages=tuple(then), tools=ORDER, origin=origin, **more)  # type: ignore[arg-type]
    store.add([found])
    return found


@pytest.mark.parametrize(("split", "named"), [("test", False), ("dev", False), ("test", True)])
def test_what_is_made_of_a_held_out_run_is_held_out(ada: TestClient, store: Store, project: Project, split: str, named: bool) -> None:
    source = imported(store, "I want a red kite.", split=split, task_id=clear_task() if named else None)
    id = begin(ada, tools="replay", run=source.id, taskset="")
    (call,) = rests(ada, id)["lanes"][0]["proposals"]
    assert decide(ada, id, call["id"], "edit", arguments=PLAID).status_code == 200
    rests(ada, id)
    assert ada.post(f"/api/play/chats/{id}/keep", json={}).status_code == 200
    made = [run for kind in ("chat", "proposal", "correction") for run in of_chat(store, id, kind)]
    assert [run.split for run in made] == [split] * 3
    config = SFTConfig(taskset="toy_desk", base=str(TINY), quantization="none", origins=("correction", "chat"))
    with open_workspace(config, project) as work:
        learned = {run.id for run in sft.choose_runs(work, config)} | set(choose_preferences(work, "overall")[1])
    assert not learned & {run.id for run in made}


def test_a_replay_of_a_run_of_train_is_of_train(ada: TestClient, store: Store) -> None:
    source = imported(store, "I want a red kite, please.", split="train")
    id = begin(ada, tools="replay", run=source.id, taskset="")
    rests(ada, id)
    (run,) = ada.post(f"/api/play/chats/{id}/keep", json={}).json()["runs"]
    assert store.trajectory(run).split == "train"


def test_who_is_forgotten_is_forgotten_in_the_chats_that_replayed_them(ada: TestClient, store: Store) -> None:
    source = imported(store, "I want a red kite. My name is Grace.")
    kept, late = (begin(ada, tools="replay", run=source.id, taskset="") for _ in range(2))
    for id in (kept, late):
        rests(ada, id)
    (run,) = ada.post(f"/api/play/chats/{kept}/keep", json={}).json()["runs"]
    assert store.trajectory(run).parent == (source.id, 0)
    assert set(store.forget([source.id], reason="asked to").runs) == {source.id, run}
    refused = ada.post(f"/api/play/chats/{late}/keep", json={})
    assert refused.status_code == 422 and "forgotten" in refused.json()["detail"]
    assert of_chat(store, late, "chat") == [] and not rests(ada, late)["kept"]


# ---- a turn with several calls


ABOUT = About(chat="c" * 32, taskset="toy_desk", tools=ORDER, tools_by="hand", task=None, split="", seed=1, temperature=0.0)


def lane_with(*arguments: str) -> Lane:
    """A side whose first turn makes these calls."""
    calls = tuple(ToolCall(id=f"call_{n}", name="order", arguments=text) for n, text in enumerate(arguments))
    messages = [Message(role="user", content="Two kites."), Message(role="assistant", content="Wait.", tool_calls=calls)]
    turn = TurnTokens(message_index=1, context=(1, 2), completion=(3,), logprobs=(-0.5,))
    return Lane("toy_desk@1", 0, messages=messages, turns=[turn], proposals=[Proposal(call, call, "asked") for call in calls])


def change(lane: Lane, place: int, arguments: str) -> None:
    found = lane.proposals[place]
    lane.make(found, ToolCall(id=found.call.id, name="order", arguments=arguments))
    lane.note(found, "edited")


RED, BLUE = '{"colour":"red","item":"kite"}', '{"colour":"blue","item":"kite"}'


def test_a_call_that_was_denied_is_no_part_of_the_correction() -> None:
    lane = lane_with(RED, RED)
    change(lane, 1, BLUE)
    lane.settle(lane.proposals[0], "error: no", error=True)
    lane.note(lane.proposals[0], "denied")
    (found,) = changed_turns(lane, lane.run(ABOUT, None, is_attempt=False), "ada", "b" * 32)
    assert [call.arguments for call in found.corrected.messages[-1].tool_calls] == [BLUE]
    assert [call.arguments for call in found.proposal.messages[-1].tool_calls] == [RED, RED]
    assert found.corrected.messages[-1].content == "Wait."
    assert [(record.trajectory, record.turns[0].completion) for record in found.tokens] == [(found.proposal.id, (3,))]


@pytest.mark.parametrize("other", ['{"item": 7}', "not JSON"])
def test_a_turn_with_another_call_that_fits_no_tool_is_no_example(other: str) -> None:
    lane = lane_with(RED, other)
    change(lane, 0, BLUE)
    assert list(changed_turns(lane, lane.run(ABOUT, None, is_attempt=False), "ada", "b" * 32)) == []


def test_a_later_change_stands_on_the_earlier_one() -> None:
    lane = lane_with(RED)
    change(lane, 0, BLUE)
    second = ToolCall(id="call_1", name="order", arguments=BLUE)
    lane.messages.append(Message(role="tool", content="sold out", tool_call_id="call_0", name="order"))
    lane.messages.append(Message(role="assistant", tool_calls=(second,)))
    lane.turns.append(TurnTokens(message_index=3, context=(4,), completion=(5,), logprobs=(-0.5,)))
    lane.proposals = [Proposal(second, second, "asked")]
    change(lane, 0, RED)
    found = list(changed_turns(lane, lane.run(ABOUT, None, is_attempt=False), "ada", "b" * 32))
    assert [(one.proposal.parent or ("", 0))[1] for one in found] == [0, 1]
    assert found[1].proposal.messages[1].tool_calls[0].arguments == BLUE
    assert [[turn.message_index for turn in record.turns] for one in found for record in one.tokens] == [[1], [3]]


# ---- a restart


def test_after_a_restart_a_chat_is_said_to_have_ended_and_what_was_kept_stands_once(
    ada: TestClient, project: Project, store: Store
) -> None:
    kept, open_one, thrown = (begin(ada, tools="hand", words="I want a red kite.") for _ in range(3))
    for id in (kept, open_one):
        rests(ada, id)
    (run,) = ada.post(f"/api/play/chats/{kept}/keep", json={}).json()["runs"]
    ada.post(f"/api/play/chats/{thrown}/discard")
    assert "it was discarded" in ada.get(f"/api/play/chats/{thrown}").json()["detail"]
    count = store.count(RunFilter())
    with TestClient(create_api(project, rater="nobody", team=True), base_url=HOME) as again:
        assert again.post("/api/login", json={"name": "ada", "password": PASSWORD}).status_code == 200
        for id in (kept, open_one):
            for answer in (again.get(f"/api/play/chats/{id}"), again.post(f"/api/play/chats/{id}/keep", json={})):
                assert answer.status_code == 404
                assert answer.json()["detail"].startswith("the server was started anew, and this chat ended with it; what was kept stands")
        assert again.get("/api/play").json()["chats"] == []
        assert again.get(f"/api/runs/{run}").status_code == 200
    assert store.count(RunFilter()) == count
