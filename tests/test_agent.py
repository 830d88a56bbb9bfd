"""Loading an adapter by name, and what it does with messages and tools."""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from small_base import add_adapter, make_base

import agentalign
from agentalign.config.project import Project
from agentalign.deployment.agent import Agent, load_agent
from agentalign.environments.taskset import load_taskset
from agentalign.environments.tool import tool
from agentalign.errors import ConfigError, DataError, ModelError, RegistryError, TasksetError
from agentalign.records.adapter import GateReport
from agentalign.records.trajectory import Message, StopReason, ToolCall, Trajectory
from agentalign.rollouts.policy import PolicyTurn, TurnRequest
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from tests.small_answers import JsonHandler

HELLO = {"role": "user", "content": "Badge 7 is at the door."}


class Script:
    """A policy that says its lines in order and keeps what it was asked."""

    name, tokens_digest = "script", ""

    def __init__(self, *lines: Message | PolicyTurn) -> None:
        self.lines, self.asked, self.finished = list(lines), list[TurnRequest](), 0

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        self.asked += requests
        line = self.lines.pop(0)
        return [line if isinstance(line, PolicyTurn) else PolicyTurn(line)]

    def finish(self, slot: int) -> None:
        self.finished += 1

    def runs_at_once(self, max_tokens: int) -> int:
        return 1


def say(content: str) -> Message:
    return Message(role="assistant", content=content)


def ask(name: str, arguments: str, id: str = "call_0") -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id=id, name=name, arguments=arguments),))


def agent(*lines: Message | PolicyTurn) -> tuple[Agent, Script]:
    script = Script(*lines)
    return Agent(script, load_taskset("hello"), "hello@1"), script


@tool
def add(first: int, second: int) -> int:
    """Add two numbers."""
    return first + second


def test_chat_answers_with_a_message_of_the_openai_form() -> None:
    helper, script = agent(ask("find_name", '{"badge":7}'))
    reply = helper.chat([HELLO])
    assert reply["tool_calls"] == [{"id": "call_0", "type": "function", "function": {"name": "find_name", "arguments": '{"badge":7}'}}]
    assert reply["content"] is None
    assert [message.role for message in script.asked[0].messages] == ["system", "user"]
    assert json.loads(script.asked[0].tools)[0]["function"]["name"] == "find_name"


def test_chat_takes_the_callers_prompt_and_tools_where_given() -> None:
    helper, script = agent(say("Hi."))
    assert helper.chat([{"role": "system", "content": "Be brief."}, HELLO], tools=[]) == {"role": "assistant", "content": "Hi."}
    assert script.asked[0].messages[0].content == "Be brief."
    assert script.asked[0].tools == "[]"


def test_a_conversation_that_goes_on_keeps_its_cache_and_another_does_not() -> None:
    helper, script = agent(ask("find_name", '{"badge":7}'), say("Hello Ada!"), say("Welcome."), say("Bye."))
    first = helper.chat([HELLO])
    begun = script.finished
    second = helper.chat([HELLO, first, {"role": "tool", "tool_call_id": "call_0", "content": "Ada"}])
    assert script.finished == begun
    helper.chat([HELLO, {"role": "assistant", "content": "I said something else."}, HELLO])
    assert script.finished == begun + 1
    helper.chat([HELLO, first, {"role": "tool", "tool_call_id": "call_0", "content": "Ada"}, second, HELLO])
    assert script.finished == begun + 2


@pytest.mark.parametrize(
    ("messages", "words"),
    [([], "at least one message"), ([{"role": "user"}], "has no content"), ([{"role": "robot", "content": "x"}], "the role")],
)
def test_messages_that_cannot_be_read_are_refused(messages: list[dict[str, object]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        agent(say("x"))[0].chat(messages)  # type: ignore[arg-type]


def test_a_conversation_without_room_for_an_answer_is_an_error() -> None:
    with pytest.raises(ModelError, match="no room"):
        agent(PolicyTurn(None, stopped=False))[0].chat([HELLO])


def test_run_calls_tools_until_there_is_an_answer(tmp_path: Path) -> None:
    lines = ask("add", '{"first":1,"second":2}'), ask("add", '{"first":1}', "call_1"), ask("fly", "{}", "call_2"), say("It is 3.")
    helper, script = agent(*lines)
    run = helper.run("What is 1 + 2?", [add])
    assert run.messages[3].content == "3"
    assert [m.error for m in run.messages if m.role == "tool"] == [False, True, True]
    assert "missing argument 'second'" in run.messages[5].content
    assert (run.answer, run.stop_reason, run.origin.reference) == ("It is 3.", StopReason.ANSWERED, "hello@1")
    assert json.loads(script.asked[0].tools) == [add.schema]
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        assert store.add([run]).stored == 1


def test_equal_requests_are_different_events() -> None:
    helper, _ = agent(say("Hi."), say("Hi."))
    assert helper.run("Hello").id != helper.run("Hello").id


def test_a_call_that_cannot_be_read_goes_back_to_the_agent() -> None:
    helper, script = agent(Message(role="assistant", content="<tool_call>{", malformed="the JSON ends early"), say("Sorry."))
    run = helper.run("Hello", [add])
    assert run.stop_reason == StopReason.ANSWERED
    assert script.asked[1].messages[-1].error
    assert "the JSON ends early" in script.asked[1].messages[-1].content


def test_run_ends_at_the_tasksets_limits() -> None:
    turns = load_taskset("hello").limits.max_turns
    helper, _ = agent(*[ask("add", '{"first":1,"second":2}', f"call_{i}") for i in range(turns + 1)])
    run = helper.run("Hello", [add])
    assert (len(run.steps), run.stop_reason) == (turns, StopReason.MAX_TURNS)
    helper, _ = agent(PolicyTurn(say("I"), stopped=False))
    assert helper.run("Hello").stop_reason == StopReason.MAX_TOKENS


def test_a_call_without_any_tools_to_call_says_so() -> None:
    with pytest.raises(DataError, match="there are no tools"):
        agent(ask("add", "{}"))[0].run("Hello")


def test_a_task_is_acted_out_in_its_environment() -> None:
    helper, _ = agent(ask("find_name", '{"badge":7}'), say("Hello Ada!"))
    task = helper.taskset.task("train-1")
    run = helper.run(task)
    assert (run.task_id, run.answer, run.stop_reason) == ("train-1", "Hello Ada!", StopReason.ANSWERED)
    assert run.messages[3].content == "Ada"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("project"))
    base = make_base(project.root / "base")
    add_adapter(project, base, seed=1)
    add_adapter(project, base, seed=2)
    add_adapter(project, base, name="hello-reward", kind="reward")
    Registry(project.adapters).promote("hello@1", "production", GateReport(adapter="hello@1", checks=()))
    return project


def test_an_adapter_is_loaded_by_stage_and_answers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with agentalign.load_agent("hello@production", device="cpu") as helper:
        assert helper.name == "hello@1"
        reply = helper.chat([HELLO], max_new_tokens=12)
        assert reply["role"] == "assistant"
        assert reply == helper.chat([HELLO], max_new_tokens=12)


def test_versions_answer_differently(project: Project) -> None:
    words = [load_agent(ref, project, device="cpu").chat([HELLO], max_new_tokens=20)["content"] for ref in ("hello@1", "hello@2")]
    assert words[0] != words[1]


def stranger(project: Project) -> str:
    """An adapter whose card names a path as its taskset."""
    registry = Registry(project.adapters)
    card, folder = registry.resolve("hello@1")
    return registry.save(card.model_copy(update={"name": "stranger", "taskset": "../../tasks/hello"}), folder).ref


@pytest.mark.parametrize(
    ("load", "kind", "words"),
    [
        (lambda p: load_agent("nobody", p), RegistryError, "no adapter"),
        (lambda p: load_agent("hello-reward", p), RegistryError, "gives numbers"),
        (lambda p: load_agent("hello", p, backend="openai"), ConfigError, "base_url"),
        (lambda p: load_agent("hello", p, backend="gguf"), ConfigError, "no backend"),
        (lambda p: load_agent("hello", p.root.parent), ConfigError, "not inside"),
        (
            lambda p: load_agent(stranger(p), p, backend="openai", base_url="http://localhost:1"),
            TasksetError,
            "is not the name of a taskset",
        ),
    ],
)
def test_what_cannot_be_loaded_says_why(project: Project, load: Callable[[Project], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load(project)


def test_what_is_streamed_is_what_chat_says(project: Project) -> None:
    with load_agent("hello@1", project, device="cpu") as helper:
        whole = helper.chat([HELLO], max_new_tokens=30)
        *pieces, last = helper.stream([HELLO], max_new_tokens=30)
        assert last == whole
        assert len(pieces) > 1
        assert "".join(map(str, pieces)) == whole["content"]
        told = helper.stream([HELLO])
        next(told)
        told.close()  # an answer that nobody waits for is no part of the conversation
        assert helper.chat([HELLO], max_new_tokens=30) == whole


def test_a_policy_that_cannot_stream_tells_its_text_at_once_and_no_half_call() -> None:
    helper, _ = agent(say("Hi."), ask("find_name", '{"badge":7}'), Message(role="assistant", content="<tool_call>{", malformed="no end"))
    assert list(helper.stream([HELLO])) == ["Hi.", {"role": "assistant", "content": "Hi."}]
    assert len(list(helper.stream([HELLO]))) == 1
    assert len(list(helper.stream([HELLO]))) == 1


def test_time_that_is_up_ends_an_answer_and_a_run(project: Project) -> None:
    with load_agent("hello@1", project, device="cpu", seconds=1e-9) as helper:
        with pytest.raises(ModelError, match="within 1e-09 seconds"):
            helper.chat([HELLO])
        run = helper.run("Hello")
        assert (run.stop_reason, run.steps) == (StopReason.MAX_SECONDS, ())
    acting = Agent(Script(ask("find_name", '{"badge":7}'), say("Hello Ada!")), load_taskset("hello"), "hello@1", seconds=1e-9)
    assert acting.run(acting.taskset.task("train-1")).stop_reason == StopReason.MAX_SECONDS


def test_runs_and_conversations_go_back_into_the_store(project: Project) -> None:
    with load_agent("hello@1", project, device="cpu", record=True) as helper:
        run = helper.run("Hello", [add])
        first = helper.chat([HELLO], max_new_tokens=9)
        helper.chat([HELLO, first, HELLO], max_new_tokens=9)
        helper.chat([HELLO], max_new_tokens=9)  # another conversation
        acted = helper.run(helper.taskset.task("train-1"))
    with Store(project.store_url) as store:
        kept = {one.id: one for one in store.trajectories()}
    assert kept[run.id] == run
    assert kept[acted.id].origin.kind == "rollout"
    captured = [one for one in kept.values() if one.origin.kind == "capture"]
    assert {one.origin.reference for one in captured} == {"hello@1"}
    assert sorted(len([m for m in one.messages if m.role == "user"]) for one in captured if one.id != run.id) == [1, 2]


def test_half_an_answer_is_told_apart_from_a_whole_one() -> None:
    kept: list[Trajectory] = []
    script = Script(PolicyTurn(say("Hello A"), stopped=False), say("Hello Ada!"))
    helper = Agent(script, load_taskset("hello"), "hello@1", keep=kept.append)
    helper.chat([HELLO], max_new_tokens=2)
    assert helper.cut
    helper.close()
    helper.chat([HELLO])
    assert not helper.cut
    helper.close()
    assert [run.stop_reason for run in kept] == [StopReason.MAX_TOKENS, StopReason.ANSWERED]


def test_a_conversation_that_ends_with_a_call_has_no_known_end() -> None:
    kept: list[Trajectory] = []
    script = Script(ask("find_name", '{"badge":7}'), say("Hello Ada!"))
    helper = Agent(script, load_taskset("hello"), "hello@1", keep=kept.append)
    reply = helper.chat([HELLO])
    helper.close()
    helper.chat([HELLO, reply, {"role": "tool", "tool_call_id": "call_0", "content": "Ada"}])
    helper.close()
    helper.close()
    assert [run.stop_reason for run in kept] == [StopReason.UNKNOWN, StopReason.ANSWERED]


@pytest.mark.parametrize(
    "said",
    [
        Message(role="assistant", content="<tool_call>{", malformed="the JSON ends early"),
        Message(role="assistant", content="Hello Ada!", reasoning="badge 7 is Ada"),
    ],
)
def test_an_answer_that_comes_back_without_what_clients_leave_out_is_still_one_conversation(said: Message) -> None:
    kept: list[Trajectory] = []
    script = Script(said, say("Goodbye."))
    helper = Agent(script, load_taskset("hello"), "hello@1", keep=kept.append)
    reply = helper.chat([HELLO])
    assert reply.get("malformed", "") == said.malformed
    begun = script.finished
    helper.chat([HELLO, {"role": "assistant", "content": reply["content"]}, HELLO])
    assert script.finished == begun, "the cache is kept"
    assert script.asked[1].messages[2] == said
    helper.close()
    (run,) = kept
    assert run.messages[2] == said


def test_an_unreadable_call_can_be_answered_by_a_tool_s_error() -> None:
    helper, script = agent(Message(role="assistant", content="<tool_call>{", malformed="the JSON ends early"), say("Sorry."))
    helper.chat([HELLO, helper.chat([HELLO]), {"role": "tool", "content": "error: the JSON ends early", "error": True}])
    assert script.asked[1].messages[-1] == Message(role="tool", content="error: the JSON ends early", error=True)


def test_call_ids_that_a_server_counts_from_0_in_every_turn_are_one_conversation() -> None:
    kept: list[Trajectory] = []
    script = Script(ask("find_name", '{"badge":7}'), ask("find_name", '{"badge":8}'), say("Hello!"))
    helper = Agent(script, load_taskset("hello"), "hello@1", keep=kept.append)
    history: list[dict[str, object]] = [dict(HELLO)]
    for name in ("Ada", "Bo"):
        reply = helper.chat(history)  # type: ignore[arg-type]
        history += [dict(reply), {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": name}]  # type: ignore[index,call-overload]
    helper.chat(history)  # type: ignore[arg-type]
    helper.close()
    (run,) = kept
    assert [message.tool_call_id for message in run.messages if message.role == "tool"] == ["call_0", "call_1"]


def test_a_run_that_ends_badly_is_no_run_that_is_lost() -> None:
    kept: list[Trajectory] = []

    def working(*lines: Message | PolicyTurn) -> Agent:
        return Agent(Script(ask("add", '{"first":1,"second":2}'), *lines), load_taskset("hello"), "hello@1", keep=kept.append)

    run = working(PolicyTurn(None, stopped=False)).run("Add.", [add])
    assert (run.stop_reason, len(run.messages), kept) == (StopReason.MAX_TOKENS, 4, [run])
    with pytest.raises(ModelError, match="gone"):
        working(PolicyTurn(None, error="gone")).run("Add.", [add])
    assert (kept[-1].stop_reason, kept[-1].messages[-1].content) == (StopReason.ERROR, "3")
    assert "gone" in kept[-1].error

    @tool
    def fall() -> str:
        """Fall."""
        raise LookupError("no floor")

    calls = *ask("add", '{"first":2,"second":2}').tool_calls, *ask("fall", "{}", "call_1").tool_calls
    with pytest.raises(LookupError):
        working(Message(role="assistant", tool_calls=calls)).run("Add.", [add, fall])
    assert "no floor" in kept[-1].error
    assert kept[-1].messages[-1].content == "4", "what a tool did before is in the record"


def test_a_store_that_cannot_be_written_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def full(_: Trajectory) -> None:
        raise OSError("no space left")

    helper = Agent(Script(say("Hi."), say("Hello."), say("Bye.")), load_taskset("hello"), "hello@1", keep=full)
    assert [helper.chat([HELLO])["content"] for _ in range(2)] == ["Hi.", "Hello."]
    assert helper.run("Hello").answer == "Bye."
    assert caplog.text.count("was not recorded: no space left") == 3


class Server(JsonHandler, BaseHTTPRequestHandler):
    """Answers one chat request as an OpenAI-compatible server does, and remembers the model that was asked for."""

    asked: list[str] = []
    served: list[str] = []

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": "us"} for name in self.served]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["model"])
        message = {"role": "assistant", "content": "From the server."}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self.answer(answer | {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]})


@pytest.mark.parametrize(
    ("served", "wanted"),
    [
        (["base", "hello", "hello@1", "hello@production"], "hello@production"),  # `agentalign serve` knows the stages
        (["hello"], "hello"),  # vLLM knows the name that it was started with
    ],
)
def test_a_served_adapter_is_asked_for_by_the_name_that_was_meant(project: Project, served: list[str], wanted: str) -> None:
    Server.asked, Server.served = [], served
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        helper = load_agent("hello@production", project, backend="openai", base_url=url)
        assert helper.chat([HELLO]) == {"role": "assistant", "content": "From the server."}
        with pytest.raises(ModelError, match="broke off"):  # it does not stream, and says so in no way
            list(helper.stream([HELLO]))
        Server.served = ["another"]
        with pytest.raises(ConfigError, match="serves none of hello@2, hello"):
            load_agent("hello@2", project, backend="openai", base_url=url)
        server.shutdown()
        thread.join()
    assert Server.asked == [wanted, wanted]
