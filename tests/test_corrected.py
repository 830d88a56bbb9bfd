"""A step that a person wrote anew, from the route that saves it to the batch that a training learns from."""

import json
import secrets

import pytest
from small_base import make_base
from small_desk import make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient

from agentalign.config.dpo import DPOConfig
from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.errors import DataError
from agentalign.recipes import dpo, sft
from agentalign.recipes.data import render_runs, sft_batches
from agentalign.recipes.preferences import choose_preferences
from agentalign.recipes.workspace import open_workspace
from agentalign.records.criterion import Score
from agentalign.records.preference import Item
from agentalign.records.trajectory import Message, Origin, TokenRecord, ToolCall, Trajectory, TurnTokens
from agentalign.scoring.corrected import Act, correct_step, correction_pair, inherited_tokens, standing
from agentalign.scoring.stored import make_pairs, score_stored
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect

TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": "cancel", "parameters": {
            "type": "object", "properties": {"order_id": {"type": "string"}, "why": {"type": "string"}}, "required": ["order_id"],
            "additionalProperties": False}}},
        {"type": "function", "function": {"name": "track", "parameters": {"type": "object", "properties": {}}}},
    ]
)  # fmt: skip
CALL = (("cancel", '{"order_id": "W2"}'),)


def desk_run(**fields: str) -> Trajectory:
    run = make_run(**fields)  # type: ignore[arg-type]
    return Trajectory(**{**{name: getattr(run, name) for name in Trajectory.model_fields if name != "id"}, "tools": TOOLS})


project, store, client = desk_fixtures()


def correction(run: Trajectory, step: int = 0, **fields: object) -> dict[str, object]:
    calls = [{"name": name, "arguments": arguments} for name, arguments in CALL]
    return {"key": secrets.token_hex(8), "trajectory": run.id, "step": step, "calls": calls, **fields}


# ---- the record


def test_a_correction_is_a_run_that_ends_with_the_step_and_leaves_the_original_alone() -> None:
    run = desk_run()
    found = correct_step(run, 0, Act("One moment.", "", CALL), "anna")
    assert found.messages[:2] == run.messages[:2]
    assert (found.messages[2].content, found.messages[2].tool_calls[0].arguments) == ("One moment.", '{"order_id":"W2"}')
    assert found.messages[2].tool_calls[0].id == run.messages[2].tool_calls[0].id, "nothing differs but what was corrected"
    assert len(found.messages) == 3
    assert (found.parent, found.origin.kind, found.origin.reference) == ((run.id, 0), "correction", "anna")
    assert (found.task_id, found.split, found.tools) == (run.task_id, run.split, run.tools)
    assert found.is_corrected_step
    assert not run.is_corrected_step
    last = correct_step(run, 1, Act("It is cancelled.", "", ()), "anna")
    assert [m.content for m in last.messages[3:]] == ["cancelled", "It is cancelled."]


@pytest.mark.parametrize(
    ("step", "act", "reason"),
    [
        (2, Act("Hello.", "", ()), "2 steps, so there is no step 2"),
        (0, Act(" ", "", ()), "says nothing and calls nothing"),
        (0, Act("", "", (("refund", "{}"),)), "not offered a tool 'refund'. Use one of: cancel, track"),
        (0, Act("", "", (("cancel", "{"),)), "the arguments are not JSON"),
        (0, Act("", "", (("cancel", "[1]"),)), "must be an object"),
        (0, Act("", "", (("cancel", "{}"),)), "cancel: missing argument 'order_id'"),
        (0, Act("", "", (("cancel", '{"order_id": 7}'),)), "argument 'order_id': 7 is not of type 'string'"),
        (0, Act("", "", (("cancel", '{"order_id": "W1", "fast": true}'),)), "unknown argument 'fast'; it takes order_id, why"),
        (0, Act("", "", (("cancel", '{"order_id": "\\ud800"}'),)), "half a character"),
        (0, Act("", "", (("track", '{"a": NaN}'),)), "NaN"),
        (0, Act("", "", (("cancel", '{ "order_id" : "W1" }'),)), "says just what the agent's did"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_correction_is_refused_with_the_reason(step: int, act: Act, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        correct_step(desk_run(), step, act, "anna")
    assert reason in str(refused.value)


def test_a_correction_is_not_corrected_again() -> None:
    once = correct_step(desk_run(), 0, Act("", "", CALL), "anna")
    with pytest.raises(DataError, match="itself a corrected step"):
        correct_step(once, 0, Act("Hello.", "", ()), "anna")


def test_hostile_schemas_and_runs_without_tools_are_answered_with_a_sentence() -> None:
    run = make_run()
    assert correct_step(run, 0, Act("", "", CALL), "anna").messages[-1].tool_calls[0].name == "cancel", "a tool that the run called"
    fields = {name: getattr(run, name) for name in Trajectory.model_fields if name not in ("id", "tools")}
    for parameters in ({"$ref": "http://203.0.113.1/x"}, {"type": 7}, {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}):
        tools = json.dumps([{"type": "function", "function": {"name": "cancel", "parameters": parameters}}])
        with pytest.raises(DataError, match="cancel"):
            correct_step(Trajectory(**fields, tools=tools), 0, Act("", "", CALL), "anna")
    for tools in ("not json", "7", '[1, {"function": 2}, {"function": {"name": 3}}]'):
        assert correct_step(Trajectory(**fields, tools=tools), 0, Act("", "", CALL), "anna").is_corrected_step


def test_a_strangers_regular_expression_is_never_run_and_the_rest_of_the_schema_is() -> None:
    fields = {name: getattr(make_run(), name) for name in Trajectory.model_fields if name not in ("id", "tools")}
    for more in ({"properties": {"order_id": {"type": "string", "pattern": "^X$"}}}, {"patternProperties": {"^X$": {}}}):
        parameters = {"type": "object", "required": ["order_id"], "properties": {"order_id": {}}, "additionalProperties": False} | more
        run = Trajectory(**fields, tools=json.dumps([{"type": "function", "function": {"name": "cancel", "parameters": parameters}}]))
        assert correct_step(run, 0, Act("", "", CALL), "anna").is_corrected_step, "run, the expression would have refused this"
        with pytest.raises(DataError, match="missing argument 'order_id'"):
            correct_step(run, 0, Act("", "", (("cancel", "{}"),)), "anna")
    parameters = {"type": "object", "properties": {"order_id": {}}, "additionalProperties": False}
    run = Trajectory(**fields, tools=json.dumps([{"type": "function", "function": {"name": "cancel", "parameters": parameters}}]))
    with pytest.raises(DataError, match="unknown argument 'other'"):
        correct_step(run, 0, Act("", "", (("cancel", '{"other": 1}'),)), "anna")


def test_further_calls_get_ids_that_are_new_in_the_run() -> None:
    calls = (ToolCall(id="call_0", name="track"), ToolCall(id="call_1", name="track"))
    messages = (
        Message(role="user", content="?"),
        Message(role="assistant", tool_calls=calls[:1]),
        Message(role="assistant", tool_calls=calls[1:]),
    )
    run = Trajectory(taskset="desk", messages=messages, tools=TOOLS, origin=Origin(kind="import", reference="f"))
    found = correct_step(run, 1, Act("", "", (("track", "{}"), ("cancel", '{"order_id": "W1"}'))), "anna")
    assert [call.id for call in found.messages[-1].tool_calls] == ["call_1", "call_2"]


def test_the_state_before_a_correction_keeps_the_tokens_the_agent_saw() -> None:
    run = desk_run()
    turns = tuple(TurnTokens(message_index=i, context=(1, i), completion=(2,), logprobs=()) for i in (2, 4))
    original = TokenRecord(trajectory=run.id, base="b" * 32, turns=turns)
    first, last = (correct_step(run, step, Act("Other.", "", ()), "anna") for step in (0, 1))
    assert inherited_tokens(first, original) == []
    assert inherited_tokens(last, original) == [TokenRecord(trajectory=last.id, base="b" * 32, turns=turns[:1])]
    assert inherited_tokens(last, None) == []


def test_of_an_author_and_step_the_newest_word_stands_unless_it_takes_back() -> None:
    run = desk_run()
    one, two = (correct_step(run, 0, Act(text, "", ()), "anna") for text in ("One.", "Two."))
    other = correct_step(run, 0, Act("One.", "", ()), "paul")
    words = [correction_pair(run_, run, id=f"word-{n:05}") for n, run_ in enumerate((one, two, other))]
    assert set(standing([one, two, other], words)) == {two.id, other.id}
    back = correction_pair(two, run, id="back-00000", withdrawn=True)
    assert set(standing([one, two, other], [*words, back])) == {other.id}, "what the withdrawn one had replaced does not come back"
    again = correction_pair(one, run, id="again-0000")
    assert set(standing([one, two, other], [*words, back, again])) == {one.id, other.id}
    assert set(standing([one, two], [])) == {two.id}, "imported ones without a word: the newest"


# ---- from the route to the batch


def test_a_correction_becomes_a_step_level_pair_and_training_data(client: TestClient, store: Store, project: Project) -> None:
    run = desk_run()
    store.add([run])
    before = store.trajectory(run.id)
    sent = correction(run, 1, content="It is cancelled; the money is back in 3 days.", calls=[], note="says when")
    assert [client.post("/api/corrections", json=sent).json()["known"] for _ in range(2)] == [False, True]
    (corrected,) = store.trajectories(RunFilter(origin_kind="correction"))
    assert store.trajectory(run.id) == before
    (pair,) = store.preferences("desk")
    assert pair.items == (Item(corrected.id, 1), Item(run.id, 1))
    assert (pair.source, pair.rater, pair.note, pair.decided) == ("correction", "rater", "says when", True)
    (shown,) = client.get(f"/api/runs/{run.id}/corrections").json()["corrections"]
    assert (shown["step"], shown["entry"]["text"]) == (1, corrected.answer)

    base = str(make_base(project.root / "base"))
    config = SFTConfig(taskset="desk", base=base, quantization="none")
    with open_workspace(config, project) as work:
        dialect = Dialect.load(work.base)
        data = render_runs(sft.choose_runs(work, config), work.store, dialect, config)
        assert list(data.rendered) == [corrected.id]
        (micro,) = sft_batches(list(data.rendered.values()), max_tokens=10_000)
        tree = micro.tree
        learned = dialect.decode(tree.tokens[tree.labels].tolist())
        assert learned == "It is cancelled; the money is back in 3 days.<|im_end|>", "the agent's own first turn is context, not a lesson"
        assert "<tool_call>" in dialect.decode(tree.tokens.tolist())
        assert micro.counts["sft"] == len(tree.labels) == data.rendered[corrected.id].n_trainable

        preferences, runs = choose_preferences(work, "overall")
        both = render_runs(list(runs.values()), work.store, dialect, config)
        settings = DPOConfig(taskset="desk", base=base, credit="turn")
        (found,) = dpo.make_pairs(preferences, runs, both, settings, {corrected.id})
        chosen, rejected = (dialect.decode([*side.turns[0].context, *side.turns[0].completion]) for side in (found.chosen, found.rejected))
        assert chosen.endswith(learned)
        assert "cancelled" in chosen
        assert rejected.endswith("Done.<|im_end|>")
        assert len(found.chosen.turns) == len(found.rejected.turns) == 1
        batches = dpo.pair_batches([found], [], both.rendered, 10_000)
        anchor = int(batches[0].data.anchors[0])
        inside = batches[0].tree
        own = inside.tokens[inside.labels[inside.occurrences[inside.occurrence_run == anchor]]]
        assert dialect.decode(own.tolist()) == learned, "the anchor holds on to the corrected step alone"


def test_a_corrected_step_is_no_whole_run_to_checks_and_pairs(client: TestClient, store: Store, project: Project) -> None:
    runs = [desk_run(), desk_run(answer="No.")]
    store.add(runs)
    assert client.post("/api/corrections", json=correction(runs[0])).status_code == 200
    (corrected,) = store.trajectories(RunFilter(origin_kind="correction"))
    (project.tasks / "desk" / "criteria.py").write_text("def solved(trajectory, task):\n    return True\n")
    taskset = load_taskset("desk", project.tasks)
    with TeamCode(taskset.folder) as pool:
        assert score_stored(store, taskset, pool=pool).runs == 2
    store.add_scores([Score(trajectory=corrected.id, criterion="tone@1", value=5, rater="paul", rater_kind="human")])
    made = make_pairs(store, taskset, margin=0.0, split=None)
    assert [p.items for p in made.preferences if corrected.id in {item.trajectory for item in p.items}] == [
        (Item(corrected.id, 0), Item(runs[0].id, 0))
    ]
    assert made.counts["source"] == {"correction": 1}
    assert len(store.preferences("desk")) == 1, "the pair that was saved with the correction, not a second one"
    assert client.post("/api/compare", json={"taskset": "desk"}).json()["open"] == 1, "the two whole runs"


def test_a_correction_that_was_taken_back_teaches_nothing(client: TestClient, store: Store, project: Project) -> None:
    run = desk_run()
    store.add([run])
    client.post("/api/corrections", json=correction(run))
    back = {"key": secrets.token_hex(8), "trajectory": run.id, "step": 0}
    assert [client.post("/api/corrections/withdrawn", json=back).json()["known"] for _ in range(2)] == [False, True]
    assert client.get(f"/api/runs/{run.id}/corrections").json()["corrections"] == []
    config = SFTConfig(taskset="desk", base=str(make_base(project.root / "base")))
    with open_workspace(config, project) as work:
        with pytest.raises(DataError, match="nothing to learn from"):
            sft.choose_runs(work, config)
        with pytest.raises(DataError, match="no decided preferences"):
            choose_preferences(work, "overall")
    assert make_pairs(store, load_taskset("desk", project.tasks), split=None).preferences == []
    assert client.post("/api/corrections", json=correction(run)).json()["saved"], "and may be given again"
    with open_workspace(config, project) as work:
        assert len(sft.choose_runs(work, config)) == 1


def test_a_correction_that_replaces_another_is_the_only_one_learned_from(client: TestClient, store: Store, project: Project) -> None:
    run = desk_run()
    store.add([run])
    client.post("/api/corrections", json=correction(run))
    second = client.post("/api/corrections", json=correction(run, content="Which order?", calls=[])).json()["id"]
    config = SFTConfig(taskset="desk", base=str(make_base(project.root / "base")))
    with open_workspace(config, project) as work:
        assert [one.id for one in sft.choose_runs(work, config)] == [second]
        assert [p.items[0].trajectory for p in choose_preferences(work, "overall")[0]] == [second]


def test_corrections_of_others_are_neither_shown_nor_taken_back(client: TestClient, store: Store) -> None:
    run = desk_run()
    paul = correct_step(run, 0, Act("", "", CALL), "paul")
    store.add([run, paul])
    store.add_preferences([correction_pair(paul, run)])
    assert client.get(f"/api/runs/{run.id}/corrections").json() == {"corrections": [], "tools": ["cancel", "track"]}
    back = client.post("/api/corrections/withdrawn", json={"key": "k" * 8, "trajectory": run.id, "step": 0})
    assert (back.status_code, "you have not corrected" in back.json()["detail"]) == (422, True)
    wrong = client.post("/api/corrections", json=correction(run, rater="paul"))
    assert wrong.status_code == 422
    refused = client.post("/api/corrections", json=correction(run, calls=[{"name": "cancel", "arguments": "{}"}]))
    assert refused.json()["detail"].startswith("cancel: missing argument 'order_id'")
    assert len(store.preferences("desk")) == 1
