"""Imports: every row is stored or refused with a reason, and nothing is stored twice."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import JsonValue

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.exchange.arrow import open_arrow
from agentalign.exchange.chat import read_known_tools
from agentalign.exchange.lines import look_through, read_rows
from agentalign.records.base import canonical_json
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory
from agentalign.rollouts.ingest import IngestReport, ingest, write_runs
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store

DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'store.db'}")


def chat(answer: str, **labels: JsonValue) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}], **labels})


def take(store: Store, path: Path, **options: object) -> IngestReport:
    return ingest(read_rows(path), store, "desk", look_through(path).digest, **options)  # type: ignore[arg-type]


def test_one_bad_row_costs_one_row(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([chat("a"), "{", chat("b"), '{"prompt": "x"}']))
    report = take(store, path)
    assert (report.read, report.stored, report.known) == (4, 2, 0)
    assert [refusal.row for refusal in report.refused] == [2, 4]
    assert "not JSON" in report.refused[0].reason
    assert [run.answer for run in store.trajectories()] == ["a", "b"]


def test_the_same_file_again_stores_nothing(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([chat("a"), chat("a"), chat("b")]))
    first, again = take(store, path), take(store, path)
    assert (first.stored, len(first.duplicates)) == (3, 1)
    assert (again.stored, again.known, len(again.duplicates)) == (0, 3, 0)


def test_exact_duplicates_are_stored_and_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(chat("a"))
    (tmp_path / "two.jsonl").write_text("\n".join([chat("b"), chat("a", model="other"), chat("a")]))
    take(store, tmp_path / "one.jsonl")
    [original] = [run.id for run in store.trajectories()]
    report = take(store, tmp_path / "two.jsonl")
    assert report.stored == 3
    assert [(d.row, d.of) for d in report.duplicates] == [(2, original), (3, original)]


def test_a_row_that_names_a_task_of_the_taskset_is_a_run_of_it(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([chat("a", task_id="t1"), chat("b", task_id="elsewhere")]))
    take(store, path, tasks={"t1": Task(id="t1", split="dev", family="greet")})
    known, other = store.trajectories(RunFilter())
    assert (known.task_id, known.family, known.split) == ("t1", "greet", "dev")
    assert (other.task_id, json.loads(other.metadata)["task_id"]) == (None, "elsewhere")


@pytest.mark.parametrize(
    ("stated", "split"),
    [(None, ""), ("", ""), ("train", "train"), ("dev", "dev"), ("test", "test"), ("Test", "test"), ("validation", "test"), (3, "test")],
)
def test_a_row_of_an_unknown_task_is_held_out_where_it_says_so(store: Store, tmp_path: Path, stated: JsonValue, split: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([chat("a", task_id="elsewhere", split=stated), chat("b")]))
    report = take(store, path, tasks={"t1": Task(id="t1", split="train")})
    first, second = store.trajectories()
    assert (first.split, second.split) == (split, "")
    assert json.loads(first.metadata)["split"] == stated
    assert report.held_out == (split in ("dev", "test"))


def test_a_run_is_held_out_where_its_task_or_its_row_says_so(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([chat("a", task_id="t1", split="train"), chat("b", task_id="t2", split="test"), chat("c", task_id="t2")]))
    report = take(store, path, tasks={"t1": Task(id="t1", split="dev"), "t2": Task(id="t2", split="train")})
    assert [run.split for run in store.trajectories()] == ["dev", "test", "train"]
    assert report.held_out == 1, "that the taskset holds a task out is no news"


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.parquet"])
def test_exported_runs_come_back_with_equal_messages(store: Store, tmp_path: Path, name: str) -> None:
    call = ToolCall(id="call_0", name="look", arguments='{"at":"\\ud800"}')
    messages = (
        Message(role="user", content="a lone \ud800 surrogate"),
        Message(role="assistant", content="<tool_call>{", malformed="it is not JSON", tool_calls=(call,)),
        Message(role="tool", content="error: the tool call could not be read", error=True),
        Message(role="tool", content="nothing there", tool_call_id="call_0", name="look", error=True),
    )
    schema = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    origin = Origin(kind="rollout", reference="base")
    run = Trajectory(
        taskset="desk", messages=messages, tools=json.dumps([schema]), origin=origin, stop_reason=StopReason.ERROR, error="it broke",
        metadata=canonical_json({"task_id": "theirs", "utility": True, "cut": "off here \ud83d"}),
    )  # fmt: skip
    store.add([run])
    assert write_runs(store, RunFilter(), tmp_path / name) == (1, 0)
    assert [path.name for path in tmp_path.glob("*runs*")] == [name]
    with (
        open_arrow(tmp_path / name)
        if name.endswith("parquet")
        else nullcontext((look_through(tmp_path / name), read_rows(tmp_path / name))) as (source, rows)
    ):
        assert ingest(rows, store, "desk", source.digest).stored == 1
    [_, back] = store.trajectories()
    assert back.messages == run.messages
    assert back.content_digest == run.content_digest
    assert (back.stop_reason, back.error) == (StopReason.ERROR, "it broke"), "what broke stays out of pairs"
    labels = json.loads(back.metadata)
    assert (labels["utility"], labels["task_id"], labels["id"]) == (True, "theirs", run.id) and "metadata" not in labels
    assert labels["cut"] == "off here \ud83d", "half a surrogate pair, which no column of text holds"


def test_labels_of_strangers_stay_where_they_were_and_nest_no_deeper_by_going_to_and_fro(store: Store, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text(chat("a", metadata={"utility": True}, origin="a log"))
    take(store, tmp_path / "0.jsonl")
    for number in range(3):
        write_runs(store, RunFilter(), tmp_path / f"{number + 1}.jsonl")
        store = Store(f"sqlite:///{tmp_path / f'{number + 1}.db'}")
        take(store, tmp_path / f"{number + 1}.jsonl")
    [run] = store.trajectories()
    assert json.loads(run.metadata)["metadata"] == {"utility": True}


def test_runs_that_call_tools_which_nobody_offered_are_counted(store: Store, tmp_path: Path) -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}
    rows = [{"messages": [{"role": "user", "content": str(number)}, called]} for number in range(3)]
    rows[0]["tools"] = [{"type": "function", "function": {"name": "look"}}]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), chat("no call")]))
    assert [take(store, path).without_tools for _ in range(2)] == [2, 2]


def test_a_target_that_cannot_be_written_is_said_in_a_sentence(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_runs(store, RunFilter(), tmp_path / "file" / "runs.jsonl")


def test_a_corrected_step_is_exported_as_a_run_only_where_it_is_asked_for(store: Store, tmp_path: Path) -> None:
    call = ToolCall(id="call_0", name="look")
    messages = Message(role="user", content="Where?"), Message(role="assistant", tool_calls=(call,))
    run = Trajectory(taskset="desk", messages=messages, origin=Origin(kind="rollout", reference="base"))
    made = {"messages": messages, "taskset": "desk", "parent": (run.id, 0)}
    corrected = Trajectory(origin=Origin(kind="correction", reference="ada"), **made)  # type: ignore[arg-type]
    proposal = Trajectory(origin=Origin(kind="proposal", reference="base"), **made)  # type: ignore[arg-type]
    store.add([run, corrected, proposal])
    assert write_runs(store, RunFilter(), tmp_path / "all.jsonl") == (1, 2)
    assert write_runs(store, RunFilter(origin_kind="correction"), tmp_path / "corrected.jsonl") == (1, 0)


@pytest.mark.parametrize("reason", ["stop", 7, None, ["error"]])
def test_a_stop_reason_that_is_none_of_ours_is_a_label(store: Store, tmp_path: Path, reason: JsonValue) -> None:
    (tmp_path / "runs.jsonl").write_text(chat("a", stop_reason=reason))
    assert take(store, tmp_path / "runs.jsonl").stored == 1
    [run] = store.trajectories()
    assert run.stop_reason == StopReason.UNKNOWN


@pytest.mark.parametrize(
    ("name", "tools", "rows", "duplicates"),
    [("agentdyn_shopping_github_runs.jsonl.gz", None, 4467, 326), ("bfcl_multi_turn_gold_000-149.jsonl.gz", "bfcl_tools.json", 600, 19)],
)
def test_recorded_runs_of_strangers_are_all_accounted_for(store: Store, name: str, tools: str | None, rows: int, duplicates: int) -> None:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not beside this checkout (../shared/data)")
    known = read_known_tools(json.loads((DATA / tools).read_text())) if tools else None
    report = take(store, DATA / name, known_tools=known)
    assert report.read == report.stored + len(report.refused) == rows
    assert len(report.duplicates) == duplicates
    assert all(refusal.reason for refusal in report.refused)
    assert store.count() == report.stored


def test_a_file_of_pairs_is_refused_row_by_row(store: Store) -> None:
    path = DATA / "agentdojo_gold_pairs_banking_slack_travel.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout (../shared/data)")
    report = take(store, path)
    assert (report.stored, len(report.refused)) == (0, 365)
    assert "no `messages`" in report.refused[0].reason
