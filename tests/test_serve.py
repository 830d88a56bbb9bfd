"""The server as its clients see it: adapters by name, tools, streams, constraints, refusals."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

from small_server import ORDER, SYSTEM, TINY, Running, add_soft_adapter, promote, running

from agentalign.config.project import Project
from agentalign.deployment.endpoint import Endpoint
from agentalign.deployment.serve import Settings, read_keys, serve
from agentalign.deployment.serving.chat import Limits
from agentalign.errors import ConfigError, ModelError, RegistryError
from agentalign.rollouts.policy import EndpointPolicy
from agentalign.training import constraints

needs_llguidance = pytest.mark.skipif(not constraints.installed(), reason="llguidance is an extra: pip install 'agentalign[constrained]'")
ASK = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "I want a red bako."}]
FREE = {"messages": ASK, "tools": [ORDER]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("project"))
    for seed in (1, 2):
        add_soft_adapter(project, TINY, name="toy_desk", std=0.01, seed=seed)
    add_soft_adapter(project, TINY, name="odd", std=0.5, seed=3)
    promote(project, "toy_desk@1")
    return project


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Running]:
    with running(project, settings=Settings(limits=Limits(max_tokens=200, max_context=900))) as found:
        yield found


def test_a_call_comes_as_tool_calls_and_its_result_leads_to_an_answer(server: Running) -> None:
    first = server.chat(**FREE)
    choice = first["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert first["model"] == "toy_desk@1", "the version that answered, not the stage"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "order"
    assert set(json.loads(call["function"]["arguments"])) == {"item", "colour"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "ticket zida"}
    second = server.chat(messages=[*ASK, choice["message"], result], tools=[ORDER])
    assert second["choices"][0]["finish_reason"] == "stop"
    assert second["choices"][0]["message"]["content"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 2


def lines(server: Running, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "toy_desk@production", "stream": True, "stream_options": {"include_usage": True}, **more}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        found = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


@pytest.mark.parametrize("asked", [FREE, {"messages": [ASK[0], {"role": "user", "content": "I want a bako."}], "tools": [ORDER]}])
def test_a_stream_says_what_the_whole_answer_says_and_no_part_of_a_call_as_text(server: Running, asked: dict[str, Any]) -> None:
    whole = server.chat(**asked)
    chunks = lines(server, **asked)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text == (whole["choices"][0]["message"]["content"] or "")
    assert "<tool" not in text
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls == [call["function"] for call in whole["choices"][0]["message"].get("tool_calls", ())]
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]]
    assert ends[-1] == whole["choices"][0]["finish_reason"]
    assert not any(ends[:-1])
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_call_that_was_cut_is_not_shown_as_text(server: Running) -> None:
    cut = server.chat(**FREE, max_tokens=8)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert not cut["choices"][0]["message"]["content"]
    assert "tool_call" in cut["choices"][0]["malformed"]


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": None}])
def test_where_no_call_may_be_none_is_written(server: Running, more: dict[str, Any]) -> None:
    reply = server.chat(**{**FREE, **more}, max_tokens=60)
    assert "tool_calls" not in reply["choices"][0]["message"]
    assert "<tool_call>" not in reply["choices"][0]["message"]["content"]


@needs_llguidance
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "refund"}}])
def test_a_required_or_named_call_is_made(server: Running, choice: Any) -> None:
    fields = {"type": "object", "properties": {"order": {"enum": ["W1", "W2"]}}, "required": ["order"], "additionalProperties": False}
    refund = {"type": "function", "function": {"name": "refund", "strict": True, "parameters": fields}}
    reply = server.chat(model="odd", messages=ASK, tools=[ORDER, refund], tool_choice=choice, temperature=1, seed=3)
    message = reply["choices"][0]["message"]
    if reply["choices"][0]["finish_reason"] != "length":
        calls = [call["function"] for call in message["tool_calls"]]
        assert {call["name"] for call in calls} <= ({"refund"} if choice != "required" else {"order", "refund"})
        assert all(json.loads(call["arguments"])["order"] in ("W1", "W2") for call in calls if call["name"] == "refund")
    named = server.chat(model="odd", messages=ASK, tools=[refund], tool_choice=choice, temperature=1, seed=4)
    assert json.loads(named["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])["order"] in ("W1", "W2")


@needs_llguidance
def test_an_answer_has_the_shape_that_was_asked_for(server: Running) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["sure", "n"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for model in ("toy_desk@1", "toy_desk", "base"):
        reply = server.chat(model=model, messages=ASK, response_format=form)
        value = json.loads(reply["choices"][0]["message"]["content"])
        assert isinstance(value["sure"], bool)
        assert value["n"] in (1, 2)
        assert reply["choices"][0]["finish_reason"] == "stop"


@needs_llguidance
def test_strict_tools_and_a_single_call_bind_only_calls(server: Running) -> None:
    strict = json.loads(json.dumps(ORDER))
    strict["function"] |= {"strict": True}
    free, bound = server.chat(**FREE), server.chat(messages=ASK, tools=[strict], parallel_tool_calls=False)
    assert bound["choices"][0]["message"]["tool_calls"] == free["choices"][0]["message"]["tool_calls"]
    talk = {"messages": [ASK[0], {"role": "user", "content": "I want a bako."}]}
    assert server.chat(**talk, tools=[strict])["choices"][0]["message"] == server.chat(**talk, tools=[ORDER])["choices"][0]["message"]


@needs_llguidance
def test_a_schema_that_cannot_be_kept_is_refused_by_name(server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    error = server.chat(response_format=form, expect=400)["error"]
    assert error["param"] == "response_format"
    assert "not" in error["message"]


def test_without_llguidance_what_needs_it_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentalign.training.constraints.installed", lambda: False)
    for more, param in (
        ({"tool_choice": "required", "tools": [ORDER]}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"parallel_tool_calls": False, "tools": [ORDER]}, "parallel_tool_calls"),
    ):
        error = server.chat(**more, expect=400)["error"]
        assert error["param"] == param
        assert "agentalign[constrained]" in error["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty"), ({"presence_penalty": -3}, "presence_penalty"),
        ({"n": 2}, "n"), ({"n": 9, "temperature": 1}, "n"), ({"stop": ["a", "b", "c", "d", "e"]}, "stop"), ({"stop": [""]}, "stop"),
        ({"stop": "x" * 300}, "stop"), ({"stop": 5}, "stop"),
        ({"logit_bias": {"5": 1}}, "logit_bias"), ({"top_p": 0.5}, "top_p"), ({"top_p": 0.5, "temperature": None}, "top_p"),
        ({"top_logprobs": 5}, "top_logprobs"), ({"top_logprobs": 5, "logprobs": False}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"service_tier": "auto"}, "service_tier"), ({"temperature": 3}, "temperature"), ({"max_tokens": 10**6}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"), ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"), ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(server: Running, more: dict[str, Any], param: str) -> None:
    assert server.chat(**more, expect=400)["error"]["param"] == param


def test_values_that_ask_for_nothing_are_taken(server: Running) -> None:
    server.chat(frequency_penalty=0, presence_penalty=0.0, n=1, logit_bias={}, store=False, stop=None, user="u", max_completion_tokens=2)
    server.chat(top_p=1, top_logprobs=0, stream_options={"include_usage": False}, stream=False, max_tokens=2)


@pytest.mark.parametrize(
    "more", [{"seed": 3}, {"seed": 4, "temperature": 0, "top_p": 0.5}, {"top_p": 0.01, "temperature": 0.7}, {"temperature": 1e-40}]
)
def test_a_seed_and_an_explicit_temperature_of_nothing_get_the_likeliest_answer(server: Running, more: dict[str, Any]) -> None:
    """What they ask for is kept: the same answer each time, and of the likeliest ids the one that is left."""
    assert server.chat(**FREE, **more)["choices"] == server.chat(**FREE)["choices"]


@pytest.mark.parametrize("model", ["nobody", "toy_desk@9", "../x", "/etc/passwd", "http://x/y", "toy_desk@candidate", "a\x00b"])
def test_names_that_no_adapter_has_are_404(server: Running, model: str) -> None:
    error = server.chat(model=model, expect=404)["error"]
    assert error["code"] == "model_not_found"


def test_models_lists_versions_stages_and_the_base(server: Running) -> None:
    rows = {row["id"]: row["root"] for row in server.client.get("/v1/models").json()["data"]}
    assert rows == {
        "toy_desk": "toy_desk@2", "toy_desk@1": "toy_desk@1", "toy_desk@2": "toy_desk@2", "toy_desk@production": "toy_desk@1",
        "odd": "odd@1", "odd@1": "odd@1", "base": "base",
    }  # fmt: skip


def test_logprobs_and_token_ids_are_those_of_the_model(server: Running) -> None:
    reply = server.chat(**FREE, logprobs=True, top_logprobs=2, return_token_ids=True)
    choice, dialect = reply["choices"][0], server.served.chat.dialect
    assert len(choice["token_ids"]) == len(choice["token_logprobs"]) == reply["usage"]["completion_tokens"]
    entries = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == pytest.approx(choice["token_logprobs"][: len(entries)])
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in entries), "greedy"
    assert reply["prompt_token_ids"] == dialect.context_ids(*_as_messages(ASK, [ORDER]))
    assert [entry["id"] for entry in entries] == choice["token_ids"][: len(entries)]
    told = server.chat(**FREE, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in told] == [f"token_id:{entry['id']}" for entry in entries]


def _as_messages(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> tuple[Any, str]:
    from agentalign.exchange.chat import read_messages, read_tools

    return read_messages(list(messages))[0], read_tools(list(tools), {})


def test_many_at_once_under_different_adapters_say_what_each_says_alone(server: Running) -> None:
    asked = [{"model": model, "messages": ASK, "tools": [ORDER], "max_tokens": 30, "temperature": 0.8, "seed": seed}
             for seed in range(4) for model in ("toy_desk@1", "toy_desk@2", "odd", "base")]  # fmt: skip
    alone = [server.chat(**one)["choices"][0] for one in asked]
    together: list[Any] = [None] * len(asked)

    def ask(i: int) -> None:
        together[i] = server.chat(**asked[i])["choices"][0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_metrics_count_what_was_answered(server: Running) -> None:
    server.chat(max_tokens=2)
    text = server.client.get("/metrics").text
    assert 'agentalign_requests_total{adapter="toy_desk@1",status="200"}' in text
    assert "agentalign_running 0.0" in text


def test_a_stranger_to_this_machine_is_refused(server: Running) -> None:
    assert server.client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert server.client.post("/v1/chat/completions", json={}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert server.client.post("/v1/chat/completions", content=b"x" * (2 << 20)).status_code == 413
    assert server.client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert server.client.get("/nowhere").json()["error"]["message"]


def test_keys_open_everything_but_health(project: Project) -> None:
    with running(project, keys=("a-key-of-enough-length",)) as locked:
        assert locked.client.get("/v1/models").status_code == 401
        with pytest.raises(ModelError, match="API key"):
            EndpointPolicy(f"{locked.url}/v1", "").served()
        with pytest.raises(ModelError, match="AGENTALIGN_API_KEY"):
            Endpoint(f"{locked.url}/v1", api_key="none", max_new_tokens=1, dialect=locked.served.chat.dialect).models()
        assert locked.client.get("/metrics", headers={"Authorization": "Bearer a-key-of-enough-lengtH"}).status_code == 401
        assert locked.client.get("/health").status_code == 200
        assert locked.client.get("/v1/models", headers={"Authorization": "Bearer a-key-of-enough-length"}).status_code == 200


def test_one_key_does_not_learn_from_the_cache_what_another_one_said(project: Project) -> None:
    keys = ("a-key-of-enough-length", "another-key-of-enough-length")
    with running(project, keys=keys) as locked:

        def cached(key: str) -> int:
            body = {"model": "toy_desk@1", "messages": ASK, "max_tokens": 1}
            reply = locked.client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            return int(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        assert [cached(key) > 0 for key in (keys[0], keys[1], keys[0], keys[1])] == [False, False, True, True]


def test_a_server_for_others_wants_keys(project: Project) -> None:
    with pytest.raises(ConfigError, match="AGENTALIGN_API_KEYS"):
        serve(project, host="0.0.0.0", environment={})
    with pytest.raises(ConfigError, match="guessed"):
        read_keys({"AGENTALIGN_API_KEYS": "short"})


def test_without_anything_in_production_a_name_is_wanted(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = Project.create(tmp_path_factory.mktemp("empty"))
    with pytest.raises(RegistryError, match="in production"):
        serve(empty, port=0, environment={})
