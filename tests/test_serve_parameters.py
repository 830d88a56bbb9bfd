"""Parameters of a request that change the answer: stop texts, several answers, penalties. What is not honoured is in test_serve."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

import json

from small_server import ORDER, SYSTEM, TINY, Running, add_soft_adapter, promote, running

from agentalign.config.project import Project
from agentalign.deployment.serve import Settings
from agentalign.deployment.serving.chat import Limits
from agentalign.environments.task import Task
from agentalign.exchange.chat import read_messages
from agentalign.records.trajectory import Message
from agentalign.rollouts.openai_messages import openai_message
from agentalign.rollouts.policy import EndpointPolicy, PolicyTurn, TurnRequest

ASK = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "I want a red bako."}]
ODD = {"model": "odd", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = Project.create(tmp_path_factory.mktemp("project"))
    add_soft_adapter(project, TINY, name="toy_desk", std=0.003, seed=1)
    add_soft_adapter(project, TINY, name="odd", std=0.5, seed=3)
    promote(project, "toy_desk@1")
    with running(project, settings=Settings(running=4, waiting=8, limits=Limits(max_tokens=200, max_context=900))) as found:
        yield found


def chunks(server: Running, **more: Any) -> list[dict[str, Any]]:
    body = {"stream": True, "stream_options": {"include_usage": True}, **more}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        found = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


@pytest.fixture(scope="module")
def story(server: Running) -> str:
    text = server.chat(**ODD)["choices"][0]["message"]["content"]
    assert len(text) > 40
    return str(text)


@pytest.mark.parametrize(("place", "length"), [(3, 1), (9, 4), (17, 7), (26, 2), (33, 5)])
def test_an_answer_ends_before_a_stop_text_whole_and_streamed(server: Running, story: str, place: int, length: int) -> None:
    word = story[place : place + length].strip()
    asked = {**ODD, "stop": [word, "never said \u2603"] if place % 2 else word}
    expected = story[: story.index(word)]
    reply = server.chat(**asked)
    assert (reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]) == (expected, "stop")
    assert reply["usage"]["completion_tokens"] < 60, "nothing is written behind it"
    told, ends = "", []
    for chunk in chunks(server, **asked):
        for choice in chunk["choices"]:
            told += choice["delta"].get("content") or ""
            ends.append(choice["finish_reason"])
            assert expected.startswith(told), "no part of the stop text is ever sent"
    assert told == expected
    assert [end for end in ends if end] == ["stop"]


def test_text_that_only_begins_like_a_stop_text_is_sent(server: Running, story: str) -> None:
    asked = {**ODD, "stop": [story[10:14] + "\u2603", story[-3:] + "\u2603"]}
    told = "".join(choice["delta"].get("content") or "" for chunk in chunks(server, **asked) for choice in chunk["choices"])
    assert told == story == server.chat(**asked)["choices"][0]["message"]["content"]


def test_a_stop_text_inside_a_call_ends_nothing(server: Running) -> None:
    free = server.chat(messages=ASK, tools=[ORDER])["choices"][0]
    assert free["finish_reason"] == "tool_calls"
    assert server.chat(messages=ASK, tools=[ORDER], stop=["\n", "{", "bako", "order"])["choices"][0] == free


def test_a_stop_text_inside_a_call_that_cannot_be_read_cuts_nothing(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = '<tool_call>\n{"name": "order", "arguments": {bad}}\n</tool_call>'
    monkeypatch.setattr(server.served.chat, "text", lambda _ids: broken)
    choice = server.chat(messages=ASK, tools=[ORDER], stop=["\n", "order"])["choices"][0]
    assert choice["malformed"]
    assert choice["message"]["content"] == broken
    assert "tool_calls" not in choice["message"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_policy_behind_this_server_reads_that_its_call_was_not_readable(
    server: Running, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    broken = '<tool_call>\n{"name": "order", "arguments": {bad}}\n</tool_call>'
    user, dialect = Message(role="user", content="I want a red bako."), server.served.chat.dialect
    policy = EndpointPolicy(f"{server.url}/v1", "toy_desk@production", retries=0)

    def act(*messages: Message) -> PolicyTurn:
        request = TurnRequest(0, Task(id="t", split=""), 0, messages, json.dumps([ORDER]), 40, 900)
        told = policy.stream(request, math.inf)
        while streamed:
            try:
                next(told)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
        return policy.act([request])[0]

    with monkeypatch.context() as patch:
        patch.setattr(server.served.chat, "text", lambda _ids: broken)
        said = act(user).message
    assert said is not None
    assert (said.content, bool(said.malformed)) == (broken, True)
    told = Message(role="tool", content="error: it is no JSON", error=True)
    turn = act(user, said, told)
    assert turn.message is not None, turn.error
    entries = [openai_message(message, own=True) for message in (user, said, told)]
    read, tools = read_messages(entries)[0], json.dumps([ORDER])
    assert dialect.context_ids(read, tools) == dialect.context_ids((user, said, told), tools), "the prompt of a run in this process"


def test_a_conversation_goes_on_after_a_stop_text(server: Running, story: str) -> None:
    """What was sampled behind the stop text must not stand in the next prompt, though its ids were remembered once."""
    word = story[9:13].strip()
    said = server.chat(**ODD, stop=word)["choices"][0]["message"]
    more = [*ODD["messages"], said, {"role": "user", "content": "And then?"}]
    reply = server.chat(**{**ODD, "messages": more}, return_token_ids=True)
    dialect = server.served.chat.dialect
    assert reply["prompt_token_ids"] == dialect.context_ids(read_messages(list(more))[0], "[]")


def test_several_answers_are_what_each_would_be_alone(server: Running) -> None:
    asked = {**ODD, "temperature": 1.0, "max_tokens": 20}
    alone = [server.chat(**asked, seed=seed)["choices"][0] for seed in (7, 8, 9)]
    reply = server.chat(**asked, seed=7, n=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [{**choice, "index": 0} for choice in reply["choices"]] == alone
    assert len({choice["message"]["content"] for choice in reply["choices"]}) == 3
    usage = reply["usage"]
    assert usage["completion_tokens"] == sum(server.chat(**asked, seed=seed)["usage"]["completion_tokens"] for seed in (7, 8, 9))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    texts, ends = ["", "", ""], [0, 0, 0]
    streamed = chunks(server, **asked, seed=7, n=3)
    for choice in (choice for chunk in streamed for choice in chunk["choices"]):
        texts[choice["index"]] += choice["delta"].get("content") or ""
        ends[choice["index"]] += bool(choice["finish_reason"])
    assert texts == [choice["message"]["content"] for choice in alone]
    assert ends == [1, 1, 1]
    assert streamed[-1]["usage"]["completion_tokens"] == usage["completion_tokens"]


def test_the_prompt_of_several_answers_is_computed_once_and_they_end_though_few_fit_the_batch(server: Running) -> None:
    batch, computed = server.served.chat.worker._batch, []
    compute = batch._compute

    def counting(pieces: Any) -> Any:
        computed.append(sum(piece.size for piece in pieces))
        return compute(pieces)

    batch._compute = counting
    try:
        prompt = {"messages": [{"role": "user", "content": "count " * 60}], "model": "odd", "max_tokens": 3, "temperature": 1.0}
        reply = server.chat(**prompt, n=8)
    finally:
        batch._compute = compute
    assert [choice["index"] for choice in reply["choices"]] == list(range(8))
    assert sum(computed) < reply["usage"]["prompt_tokens"] + 8 * 3 + 8
    assert not any(server.served.chat.adapters._used.values()), "the adapter is free again"


def test_penalties_count_what_was_written_and_change_no_log_prob(server: Running) -> None:
    """Each id is the likeliest after the penalties that the API defines, computed here from the model's own log-probs."""
    free = server.chat(**ODD, return_token_ids=True)["choices"][0]["token_ids"]
    assert len(set(free)) < len(free) - 5, "it repeats itself"
    for more in ({"frequency_penalty": 1.5}, {"presence_penalty": 2.0}, {"presence_penalty": -1.0, "frequency_penalty": 0.5}):
        choice = server.chat(**ODD, **more, logprobs=True, top_logprobs=20, return_token_ids=True)["choices"][0]
        ids, dialect, seen = choice["token_ids"], server.served.chat.dialect, 0
        assert ids != free
        for i, entry in enumerate(choice["logprobs"]["content"]):
            texts = {dialect.decode([token]): token for token in ids[:i]}

            def bent(one: dict[str, Any], texts: Any = texts, before: Any = ids[:i], more: Any = more) -> float:
                times = before.count(texts.get(one["token"], -1))
                return float(one["logprob"]) - more.get("frequency_penalty", 0) * times - more.get("presence_penalty", 0) * (times > 0)

            shown = {one["token"]: one["logprob"] for one in entry["top_logprobs"]}
            if entry["token"] in shown:
                assert shown[entry["token"]] == pytest.approx(entry["logprob"]), "the model's own log-prob"
                assert bent(entry) >= max(map(bent, entry["top_logprobs"])) - 1e-4
                seen += 1
        assert seen > 20


def test_penalties_of_nothing_change_nothing(server: Running, story: str) -> None:
    assert server.chat(**ODD, frequency_penalty=0, presence_penalty=0.0, stop=[], n=1)["choices"][0]["message"]["content"] == story
