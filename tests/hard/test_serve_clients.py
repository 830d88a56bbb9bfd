"""Real clients against a real server: the openai SDK, three agent frameworks, and a fuzzer that reads the served OpenAPI."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")
sys.path.insert(0, str(Path(__file__).parents[1]))

from small_server import ORDER, SYSTEM, TINY, Running, add_soft_adapter, promote, running

from agentalign.config.project import Project
from agentalign.deployment.serve import Settings
from agentalign.deployment.serving.chat import Limits

pytestmark = pytest.mark.hard
WISH = "I want a red bako."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    project = Project.create(tmp_path_factory.mktemp("project"))
    add_soft_adapter(project, TINY, name="toy_desk", std=0.003, seed=1)
    promote(project, "toy_desk@1")
    with running(project, settings=Settings(limits=Limits(max_tokens=64, max_context=900))) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_the_openai_sdk_chats_calls_and_takes_results(client: OpenAI) -> None:
    messages: list = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": WISH}]
    first = client.chat.completions.create(model="toy_desk@production", messages=messages, tools=[ORDER], logprobs=True, top_logprobs=1)
    (call,) = first.choices[0].message.tool_calls or ()
    assert json.loads(call.function.arguments) == {"item": "bako", "colour": "red"}
    assert first.model == "toy_desk@1"
    assert first.choices[0].logprobs is not None
    # The SDK's own object goes back as it came.
    again = [*messages, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "ticket zida"}]
    second = client.chat.completions.create(model="toy_desk@production", messages=again, tools=[ORDER])
    assert second.choices[0].message.content == "Your ticket zida."
    assert second.usage is not None
    assert [model.id for model in client.models.list()]
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="toy_desk", messages=messages, n=2)
    assert refused.value.param == "n"
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model="toy_desk", messages=messages, top_p=0.5)
    assert refused.value.param == "top_p"


def test_the_openai_sdk_asks_for_several_answers_with_stop_texts_and_penalties(client: OpenAI) -> None:
    messages: list = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "I want a bako."}]
    free = client.chat.completions.create(model="toy_desk@production", messages=messages).choices[0].message.content or ""
    word = free[len(free) // 2 :].split()[0]
    cut = client.chat.completions.create(model="toy_desk@production", messages=messages, stop=[word, "\n\n"])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (free[: free.index(word)].rstrip("\n"), "stop")
    several = client.chat.completions.create(
        model="toy_desk@production", messages=messages, n=3, temperature=1.5, seed=1, presence_penalty=0.5, frequency_penalty=-0.5
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    with client.chat.completions.stream(model="toy_desk@production", messages=messages, n=3, temperature=1.5, seed=1, stop="q") as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    assert len(whole.choices) == 3
    assert not any("q" in (choice.message.content or "") for choice in whole.choices)


def test_the_openai_sdk_streams_text_and_calls(client: OpenAI) -> None:
    messages: list = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": WISH}]
    with client.chat.completions.stream(model="toy_desk@production", messages=messages, tools=[ORDER]) as stream:
        for _ in stream:
            pass
        whole = stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls] == ["order"]
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "ticket zida"}
    talk: list = [*messages, whole.choices[0].message.model_dump(include={"role", "content", "tool_calls"}), result]
    chunks = list(client.chat.completions.create(model="toy_desk@production", messages=talk, tools=[ORDER], stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == "Your ticket zida." and len(pieces) > 1


def test_a_pydantic_ai_agent_works_to_the_end(server: Running) -> None:
    pytest.importorskip("pydantic_ai", reason="agent frameworks are an extra: pip install 'agentalign[frameworks]'")
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    asked = []

    def order(item: str, colour: str) -> str:
        """Order an item."""
        asked.append((item, colour))
        return "ticket zida"

    async def work() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            model = OpenAIChatModel("toy_desk@production", provider=OpenAIProvider(openai_client=client))
            habits = {"seed": 3, "top_p": 1.0, "max_tokens": 40}
            return (await Agent(model, system_prompt=SYSTEM, tools=[order], model_settings=habits).run(WISH)).output

    said = asyncio.run(work())
    assert asked == [("bako", "red")]
    assert said == "Your ticket zida."


def test_an_openai_agents_agent_works_to_the_end(server: Running) -> None:
    pytest.importorskip("agents", reason="agent frameworks are an extra: pip install 'agentalign[frameworks]'")
    pytest.importorskip("llguidance", reason="its tools are strict, which needs llguidance: pip install 'agentalign[constrained]'")
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    asked = []

    @function_tool
    def order(item: str, colour: str) -> str:
        """Order an item."""
        asked.append((item, colour))
        return "ticket zida"

    async def work() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            model = OpenAIChatCompletionsModel(model="toy_desk@production", openai_client=client)
            done = await Runner.run(Agent(name="desk", instructions=SYSTEM, tools=[order], model=model), WISH)
        return str(done.final_output)

    said = asyncio.run(work())
    assert asked == [("bako", "red")]
    assert said == "Your ticket zida."


@pytest.mark.parametrize("streaming", [False, True])
def test_a_langgraph_agent_works_to_the_end(server: Running, streaming: bool) -> None:
    for package in ("langgraph", "langchain_openai"):
        pytest.importorskip(package, reason="agent frameworks are an extra: pip install 'agentalign[frameworks]'")
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    asked = []

    @tool
    def order(item: str, colour: str) -> str:
        """Order an item."""
        asked.append((item, colour))
        return "ticket zida"

    settings = {"stop": ["\n\nObservation:"], "temperature": 0, "max_retries": 0, "streaming": streaming, "stream_usage": True}
    settings |= {"top_p": 0.95, "seed": 3}  # by habit
    model = ChatOpenAI(model="toy_desk@production", base_url=f"{server.url}/v1", api_key="none", **settings).bind_tools([order])

    def act(state: MessagesState) -> dict:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", act)
    graph.add_node("tools", ToolNode([order]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    done = graph.compile().invoke({"messages": [SystemMessage(SYSTEM), HumanMessage(WISH)]})
    assert asked == [("bako", "red")]
    assert done["messages"][-1].content == "Your ticket zida."
    assert done["messages"][-1].response_metadata["finish_reason"] == "stop"


def test_no_request_that_the_openapi_allows_or_forbids_breaks_the_server(server: Running) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="the fuzzer is in the dev extra")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def run(case) -> None:
            nonlocal tried
            tried += 1
            answer = case.call(timeout=60)
            assert answer.status_code < 500, answer.text

        run()
    assert tried >= 150
    assert server.client.get("/health").status_code == 200
