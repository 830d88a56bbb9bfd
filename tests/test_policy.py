"""Policies: a small model that has learnt one run by heart, and a real server on loopback."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from small_base import make_base
from small_taskset import make_taskset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import TeamCode
from agentalign.errors import ConfigError, ModelError
from agentalign.records.trajectory import Message, StopReason, ToolCall
from agentalign.rollouts.openai_messages import openai_message, openai_messages
from agentalign.rollouts.policy import EndpointPolicy, LocalPolicy, TurnRequest, turn_seed
from agentalign.rollouts.rollout import Job, RolloutResult, rollout
from agentalign.rollouts.streamed import read_chunks
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator

CALL = '<tool_call>{"name": "add", "arguments": {"amount": 3}}</tool_call>'
LEARNT = {
    "one": [("assistant", CALL), ("tool", "total: 4"), ("assistant", "total: 4")],
    "two": [("assistant", "<tool_call>{no"), ("tool", ""), ("assistant", "I cannot")],
}


@pytest.fixture(scope="module")
def dialect(tmp_path_factory: pytest.TempPathFactory) -> Dialect:
    folder = tmp_path_factory.mktemp("base")
    return Dialect.load(prepare_base(str(make_base(folder / "small")), folder / "cache"))


@pytest.fixture(scope="module")
def taskset(tmp_path_factory: pytest.TempPathFactory) -> Taskset:
    return make_taskset(tmp_path_factory.mktemp("tasks"))


def network(dialect: Dialect, hidden: int = 32) -> PreTrainedModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    limits = {"max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(dialect.tokenizer), **sizes, **limits)).float()


@pytest.fixture(scope="module")
def learnt(dialect: Dialect, taskset: Taskset) -> PreTrainedModel:
    """A model trained on the two runs of LEARNT until it writes them by itself."""
    rows: list[tuple[list[int], list[bool]]] = []
    for task, turns in LEARNT.items():
        messages = [Message(role="system", content="You count."), Message(role="user", content=f"Add 3 to {1 if task == 'one' else 2}.")]
        for role, content in turns:
            if role == "tool":
                malformed = "error: the tool call could not be read: " + messages[-1].malformed
                messages.append(Message(role="tool", content=content or malformed, error=not content))
                continue
            context = dialect.context_ids(messages, taskset.tools)
            completion = dialect.encode(content + "<|im_end|>")
            rows.append((context + completion, [False] * len(context) + [True] * len(completion)))
            messages.append(dialect.parse(content))
    model = network(dialect, hidden=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
    trainable = torch.tensor([row + [False] * (width - len(row)) for _, row in rows])
    for _ in range(400):
        logits = model(input_ids=ids).logits[:, :-1][trainable[:, 1:]]
        wanted = ids[:, 1:][trainable[:, 1:]]
        chance = torch.softmax(logits, dim=-1).gather(1, wanted[:, None])
        if chance.min() > 0.9:
            return model.eval()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, wanted).backward()
        optimizer.step()
    pytest.fail("the small model did not learn two runs by heart")


def roll(taskset: Taskset, policy: LocalPolicy, jobs: list[Job], batch: int = 64) -> list[RolloutResult]:
    with TeamCode(taskset.folder) as pool:
        return list(rollout(taskset, policy, jobs, pool=pool, batch=batch))


def test_a_model_acts_reads_the_result_and_answers(learnt, dialect, taskset):
    one, two = roll(
        taskset, LocalPolicy(Generator(learnt, dialect.stop_ids), dialect, "base"), [Job(taskset.task("one")), Job(taskset.task("two"))]
    )
    assert [m.role for m in one.trajectory.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert one.trajectory.steps[0].message.tool_calls == (ToolCall(id="call_0", name="add", arguments='{"amount":3}'),)
    assert (one.trajectory.answer, one.trajectory.stop_reason) == ("total: 4", StopReason.ANSWERED)
    # A call that cannot be read stays in the run as the model wrote it, and the model reads why.
    assert two.trajectory.messages[2].content == "<tool_call>{no"
    assert two.trajectory.messages[2].malformed
    assert two.trajectory.messages[3].error
    assert two.trajectory.answer == "I cannot"


def test_what_was_sampled_is_never_encoded_again(learnt, dialect, taskset):
    (result,) = roll(taskset, LocalPolicy(Generator(learnt, dialect.stop_ids), dialect, "base"), [Job(taskset.task("one"))])
    tokens = result.tokens
    assert tokens is not None
    assert tokens.base == dialect.digest
    first, second = tokens.turns
    assert second.context[: len(first.context) + len(first.completion)] == first.context + first.completion
    assert list(second.context) == dialect.context_ids(result.trajectory.messages[:4], taskset.tools)
    for turn in tokens.turns:
        with torch.no_grad():
            logits = learnt(input_ids=torch.tensor([[*turn.context, *turn.completion]])).logits[0, len(turn.context) - 1 : -1]
        expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(turn.completion)[:, None])[:, 0]
        assert turn.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_other_tools_in_the_middle_of_a_run_stand_in_the_prompt(learnt, dialect, taskset):
    policy = LocalPolicy(Generator(learnt, dialect.stop_ids), dialect, "base")
    begun = (Message(role="system", content="You count."), Message(role="user", content="Add 3 to 1."))
    (first,) = policy.act([request_for(taskset, *begun)])
    later = (*begun, first.message, Message(role="tool", content="total: 4", tool_call_id="call_0", name="add"))
    (same,) = policy.act([request_for(taskset, *later)])
    (first,) = (policy.finish(0), policy.act([request_for(taskset, *begun)]))[1]
    (other,) = policy.act([request_for(taskset, *later)._replace(tools="[]")])
    assert same.tokens.context[: len(first.tokens.context)] == first.tokens.context
    assert list(other.tokens.context) == dialect.context_ids(later, "[]")


def test_samples_differ_from_each_other_but_not_with_the_batch(dialect, taskset):
    model = network(dialect)
    jobs = [Job(taskset.task(name), sample) for name in ("one", "again") for sample in range(3)]

    def sampled(batch: int, seed: int) -> list[tuple[Message, ...]]:
        policy = LocalPolicy(Generator(model, dialect.stop_ids), dialect, "base", temperature=1.0, seed=seed)
        return [result.trajectory.messages for result in roll(taskset, policy, jobs, batch)]

    together = sampled(64, seed=1)
    assert len(set(together)) == 6
    assert sampled(1, seed=1) == sampled(4, seed=1) == together
    assert sampled(64, seed=2) != together


def request_for(taskset: Taskset, *messages: Message, sample: int = 0, max_tokens: int = 4000) -> TurnRequest:
    return TurnRequest(0, taskset.task("one"), sample, messages, taskset.tools, 20, max_tokens)


USER = Message(role="user", content="Add 3 to 1.")


def test_seeds_come_from_seed_task_sample_and_turn(taskset):
    said = Message(role="assistant", content="yes")
    requests = [request_for(taskset, USER), request_for(taskset, USER, sample=1), request_for(taskset, USER, said, USER)]
    seeds = [turn_seed(seed, request) for seed in (0, 1) for request in requests]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert turn_seed(0, requests[0]._replace(slot=7)) == seeds[0]


def test_the_run_s_length_is_a_limit_for_each_turn(dialect, taskset):
    policy = LocalPolicy(Generator(network(dialect), frozenset({9999})), dialect, "base")
    length = len(dialect.context_ids([USER], taskset.tools))
    (turn,) = policy.act([request_for(taskset, USER, max_tokens=length + 5)])
    assert turn.tokens is not None
    assert (len(turn.tokens.completion), turn.stopped) == (5, False)
    policy.finish(0)
    (turn,) = policy.act([request_for(taskset, USER, max_tokens=length)])
    assert (turn.message, turn.stopped, turn.error) == (None, False, "")


@pytest.mark.parametrize("temperature", [-0.8, 8, float("nan")])
def test_a_temperature_that_nobody_samples_at_is_refused(dialect, temperature):
    with pytest.raises(ConfigError, match="between 0 and 2"):
        LocalPolicy(Generator(network(dialect), dialect.stop_ids), dialect, "base", temperature=temperature)


def test_messages_that_the_template_refuses_end_their_run_alone(dialect, taskset):
    policy = LocalPolicy(Generator(network(dialect), dialect.stop_ids), dialect, "base")
    refused = request_for(taskset, USER, Message(role="system", content="late"))
    wrong, right = policy.act([refused, request_for(taskset, USER)._replace(slot=1)])
    assert wrong.message is None
    assert "must come first" in wrong.error
    assert right.message is not None


# ---- a server


class Server:
    """A real HTTP server on loopback that answers from a list and keeps what it was sent."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], tuple[int, Any]]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.conversations: list[str] = []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.conversations.append(self.headers.get("X-Conversation-Id", ""))
                    status, reply = answer(len(server.bodies), body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def completion(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[int, dict[str, Any]], tuple[int, Any]]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_served_model_plays_a_whole_run(serve, taskset):
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if number == 1:
            return 500, {"error": {"message": "not yet"}}
        last = body["messages"][-1]
        if last["role"] == "tool":
            return 200, completion({"content": last["content"], "reasoning_content": "it is four"})
        function = {"name": "add", "arguments": '{"amount": 3}'}
        return 200, completion({"content": None, "tool_calls": [{"id": "abc", "type": "function", "function": function}]}, "tool_calls")

    server = serve(answer)
    policy = EndpointPolicy(server.url, "served", temperature=0.5, seed=4)
    with TeamCode(taskset.folder) as pool:
        (result,) = rollout(taskset, policy, [Job(taskset.task("one"))], pool=pool)
    assert (result.trajectory.answer, result.trajectory.stop_reason) == ("total: 4", StopReason.ANSWERED)
    assert result.trajectory.steps[1].message.reasoning == "it is four"
    assert result.trajectory.origin.reference == "served"
    assert result.tokens is None
    _, first, second = server.bodies
    assert first["tools"] == json.loads(taskset.tools)
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("served", 0.5, 80)
    assert first["seed"] != second["seed"]
    call, reply = second["messages"][-2:]
    assert call["tool_calls"][0]["id"] == reply["tool_call_id"] == "call_0"


def test_a_conversation_has_one_id_from_its_first_turn_to_its_end(serve, taskset):
    server = serve(lambda *_: (200, completion({"content": "x"})))
    policy = EndpointPolicy(server.url, "served", concurrency=1)
    said = (USER, Message(role="assistant", content="x"), USER)
    policy.act([request_for(taskset, USER), request_for(taskset, USER)._replace(slot=1)])
    policy.act([request_for(taskset, *said), request_for(taskset, *said)._replace(slot=1)])
    policy.finish(0)
    policy.act([request_for(taskset, USER), request_for(taskset, *said)._replace(slot=7)])
    one, two, one_again, two_again, new, begun_elsewhere = server.conversations
    assert (one, two) == (one_again, two_again)
    assert len({one, two, new}) == 3
    assert begun_elsewhere == "", "its history says what it goes on with"


def test_a_server_that_refuses_or_says_nothing_ends_the_run_with_a_sentence(serve, taskset):
    refused = EndpointPolicy(serve(lambda *_: (400, {"error": {"message": "no such model"}})).url, "served")
    (turn,) = refused.act([request_for(taskset, USER)])
    assert turn.message is None
    assert "no such model" in turn.error
    silent = EndpointPolicy(serve(lambda *_: (200, completion({"content": "x"}) | {"choices": []})).url, "served")
    assert "no choices" in silent.act([request_for(taskset, USER)])[0].error
    broken = EndpointPolicy(serve(lambda *_: (500, {"error": {"message": "later"}})).url, "served", retries=0)
    assert "gave no answer" in broken.act([request_for(taskset, USER)])[0].error


@pytest.mark.parametrize(
    ("status", "words"), [(401, "does not take this API key"), (403, "answers nobody"), (404, "knows no model 'served'")]
)
def test_a_server_that_answers_nobody_breaks_no_run_for_good(serve, taskset, status, words):
    policy = EndpointPolicy(serve(lambda *_: (status, {"error": {"message": "no"}})).url, "served")
    with pytest.raises(ModelError, match=words):
        policy.act([request_for(taskset, USER)] * 3)
    gone = EndpointPolicy("http://127.0.0.1:9/v1", "served", retries=0)
    with pytest.raises(ModelError, match="Check that it runs"):
        gone.act([request_for(taskset, USER)])
    with pytest.raises(ModelError, match="Check that it runs"):
        next(gone.stream(request_for(taskset, USER), float("inf")))


@pytest.mark.parametrize("status", [400, 422, 429, 500])
def test_a_server_that_takes_no_request_at_all_breaks_no_run_for_good(serve, taskset, status):
    policy = EndpointPolicy(serve(lambda *_: (status, {"error": {"message": "max_tokens is not taken"}})).url, "served", retries=0)
    with pytest.raises(ModelError, match=r"answered none of 3 requests, so no run is begun.*max_tokens is not taken"):
        policy.act([request_for(taskset, USER)] * 3)


@pytest.mark.parametrize(("asked", "says", "kept"), [
    ("desk@production", "desk@4", "desk@4"), ("desk@production", "gpt", "desk@production"), ("desk", "other@4", "desk"),
])  # fmt: skip
def test_a_stage_s_run_is_recorded_under_the_version_that_answered(serve, taskset, asked, says, kept):
    server = serve(lambda *_: (200, completion({"content": "x"}) | {"model": says}))
    with TeamCode(taskset.folder) as pool:
        (result,) = rollout(taskset, EndpointPolicy(server.url, asked), [Job(taskset.task("one"))], pool=pool)
    assert result.trajectory.origin.reference == kept


def test_one_refused_run_after_others_were_answered_is_that_run_s_error(serve, taskset):
    server = serve(lambda number, _: (200, completion({"content": "x"})) if number == 1 else (403, {"error": {"message": "not this one"}}))
    policy = EndpointPolicy(server.url, "served", retries=0)
    (first,), (second,) = policy.act([request_for(taskset, USER)]), policy.act([request_for(taskset, USER)])
    assert first.message is not None
    assert "not this one" in second.error


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_our_server_could_not_read_goes_back_to_the_agent(serve, taskset, streamed):
    """`agentalign serve` says so in the choice, and the same run goes on as it does in this process."""

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        found = completion({"content": "<tool_call>{no" if number == 1 else "I cannot"})
        if number == 1:
            found["choices"][0]["malformed"] = "it is no JSON"
        return 200, found

    if streamed:
        choices = [{"delta": {"content": "<tool_call>{no"}}, {"delta": {}, "finish_reason": "stop", "malformed": "it is no JSON"}]
        entry, _ = read_whole([{"choices": [choice]} for choice in choices])
        assert entry["malformed"] == "it is no JSON"
        return
    server = serve(answer)
    with TeamCode(taskset.folder) as pool:
        (result,) = rollout(taskset, EndpointPolicy(server.url, "served"), [Job(taskset.task("two"))], pool=pool)
    said, told = result.trajectory.messages[2:4]
    assert (said.malformed, told.role, told.error) == ("it is no JSON", "tool", True)
    assert result.trajectory.answer == "I cannot"
    call, reply = server.bodies[1]["messages"][-2:]
    assert call == {"role": "assistant", "content": "<tool_call>{no", "malformed": "it is no JSON"}
    assert reply == {"role": "tool", "content": "error: the tool call could not be read: it is no JSON", "error": True}


def read_whole(chunks: list[dict[str, Any]]) -> tuple[dict[str, Any], str | None]:
    told = read_chunks(chunks, float("inf"))
    while True:
        try:
            next(told)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("index", [{"index": 0}, {}])
def test_streamed_calls_of_one_index_and_two_ids_are_two(index):
    def part(id: str, **function: str) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{**index, "id": id, "function": function}]}}]}

    parts = [part("a", name="get", arguments="{"), part("", arguments="}"), part("b", name="put", arguments="{"), part("b", arguments="}")]
    entry, _ = read_whole(parts)
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in entry["tool_calls"]] == [
        ("a", "get", "{}"), ("b", "put", "{}")
    ]  # fmt: skip


def test_what_was_thought_before_a_call_is_sent_back():
    """Templates keep the thoughts of a tool loop, so without them the next prompt is another one than in training."""
    call = ToolCall(id="call_0", name="add", arguments="{}")
    user, told = Message(role="user", content="Add."), Message(role="tool", content="3", tool_call_id="call_0")
    thought = Message(role="assistant", reasoning="so add", tool_calls=(call,))
    sent = openai_messages((user, thought, told))
    assert sent[1]["reasoning_content"] == "so add"
    assert not any(
        "reasoning_content" in one for one in openai_messages((user, thought, told, Message(role="assistant", content="3"), user))
    )


def test_a_refusal_after_an_answer_is_one_runs_error(serve, taskset):
    """Runs that are done wait behind slower ones: who ends the rollout then throws them away."""
    server = serve(lambda number, _: (200, completion({"content": "x"})) if number == 1 else (404, {"error": {"message": "moved"}}))
    policy = EndpointPolicy(server.url, "served", concurrency=1, retries=0)
    right, wrong = policy.act([request_for(taskset, USER)] * 2)
    assert right.message is not None
    assert wrong.message is None and "moved" in wrong.error


@pytest.mark.parametrize(
    "answer",
    [
        "<html>a proxy's page</html>",
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        completion({"tool_calls": [{"id": "a", "type": "function", "function": {"arguments": "{}"}}]}),
        completion({"tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": {"amount": 3}}}]}),
    ],
)
def test_an_answer_of_another_form_ends_its_run_alone(serve, taskset, answer):
    server = serve(lambda _, body: (200, answer if len(body["messages"]) == 1 else completion({"content": "x"})))
    wrong, right = EndpointPolicy(server.url, "served").act([request_for(taskset, USER), request_for(taskset, USER, USER)])
    assert wrong.message is None
    assert "cannot be read" in wrong.error
    assert right.message is not None


def test_a_call_without_an_id_is_a_call(serve, taskset):
    function = {"name": "add", "arguments": '{"amount": 3}'}
    server = serve(lambda *_: (200, completion({"tool_calls": [{"type": "function", "function": function}] * 2})))
    (turn,) = EndpointPolicy(server.url, "served").act([request_for(taskset, USER)])
    assert turn.message is not None
    assert [call.id for call in turn.message.tool_calls] == ["call_0", "call_1"]


def test_requests_are_sent_side_by_side_and_answered_in_order(serve, taskset):
    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, completion({"content": body["messages"][-1]["content"]}, "length")

    server = serve(answer)
    requests = [request_for(taskset, Message(role="user", content=str(number)))._replace(slot=number) for number in range(20)]
    turns = EndpointPolicy(server.url, "served").act(requests)
    assert [turn.message.content for turn in turns if turn.message] == [str(number) for number in range(20)]
    assert not any(turn.stopped for turn in turns)


def test_an_interrupt_waits_for_no_server(serve, taskset):
    over, answered = threading.Event(), threading.Event()

    def answer(*_: object) -> tuple[int, Any]:
        over.wait(60)
        answered.set()
        return 200, completion({"content": "x"})

    server = serve(answer)
    # A shell's background jobs are started with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            EndpointPolicy(server.url, "served", concurrency=2).act([request_for(taskset, USER)] * 5)
        assert not answered.is_set()
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    assert len(server.bodies) <= 2, "the others are never sent"


def test_an_answer_to_an_unreadable_call_is_sent_as_a_users_words():
    told = openai_message(Message(role="tool", content="error: not JSON", error=True))
    assert told == {"role": "user", "content": "error: not JSON"}
