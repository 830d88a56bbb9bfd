"""An adapter in an application: load it by name and stage, then chat, or let it work with tools until it is done.

    agent = agentalign.load_agent("order_desk@production")
    reply = agent.chat([{"role": "user", "content": "Where is order W1042?"}], tools=schemas)

Messages go in and come out as the OpenAI API writes them. What was asked next in one conversation costs only its new tokens.
Surprise: `chat` without `tools` offers those of the taskset it was trained on, because without them it is not the same agent.
"""

import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import JsonValue

from agentalign.config.project import Project
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.tool import Tool, run_tool
from agentalign.environments.worker import WorkerPool
from agentalign.errors import ConfigError, DataError, ModelError, ToolError
from agentalign.exchange.chat import read_messages, read_tools, write_message
from agentalign.records.base import now
from agentalign.records.trajectory import Message, Origin, StopReason, Trajectory
from agentalign.rollouts.bundle import adapter_policy
from agentalign.rollouts.policy import EndpointPolicy, Policy, PolicyTurn, TurnRequest
from agentalign.rollouts.rollout import Job, rollout
from agentalign.store.registry import Registry

Backend = Literal["local", "openai"]
_SLOT = 0


def load_agent(
    ref: str,
    project: Project | Path | str | None = None,
    *,
    backend: Backend = "local",
    base_url: str = "",
    api_key: str = "none",
    temperature: float = 0.0,
    device: str = "auto",
) -> "Agent":
    """Load a policy adapter, checked against its card, ready to answer.

    Args:
        ref: "name@production", "name@3", or "name" for the newest version.
        project: the project or its folder; default: the one around the current folder.
        backend: "local" runs it in this process; "openai" asks a server (vLLM with `agentalign export`) that serves it under its name.
        base_url: of the server, such as "http://localhost:8000/v1".
        temperature: 0 always takes the likeliest token.
        device: "auto", "cpu" or "cuda".
    """
    home = project if isinstance(project, Project) else Project.find(Path(project) if project else None)
    card, _ = Registry(home.adapters).resolve(ref)
    policy: Policy
    if backend == "openai":
        if not base_url:
            raise ConfigError("backend 'openai' needs the server's base_url. Give e.g. base_url=\"http://localhost:8000/v1\".")
        policy = EndpointPolicy(base_url, card.name, api_key=api_key, temperature=temperature)
    elif backend == "local":
        policy = adapter_policy(home, card.ref, temperature=temperature, device=device)
    else:
        raise ConfigError(f"there is no backend '{backend}'. Choose 'local' or 'openai'.")
    return Agent(policy, load_taskset(find_taskset(card.taskset, home.tasks)), card.ref)


class Agent:
    """A policy with the prompt, tools and limits of its taskset. One conversation at a time; other threads wait."""

    def __init__(self, policy: Policy, taskset: Taskset, name: str) -> None:
        self.name = name
        """"name@version" that answers."""
        self.taskset = taskset
        self._policy = policy
        self._lock = threading.Lock()
        self._held: tuple[Message, ...] = ()
        """The conversation, its last answer included, that the policy's cache is about."""

    def chat(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[JsonValue] | None = None, *, max_new_tokens: int | None = None
    ) -> dict[str, JsonValue]:
        """The assistant's next message.

        Args:
            messages: the conversation so far, as the OpenAI API writes it. Without a system message the taskset's own is put first.
            tools: function schemas; None offers the taskset's own, an empty list none.
            max_new_tokens: most tokens of the answer; the taskset's limit by default.

        Returns:
            A message with `content` and, where it calls tools, `tool_calls`.

        Raises:
            DataError: messages or tools that cannot be read.
            ModelError: the conversation is too long for the model, or the server gave no answer.
        """
        read, _ = read_messages([dict(message) for message in messages])
        offered = self.taskset.tools if tools is None else read_tools(list(tools), {})
        with self._lock:
            turn = self._turn(self._with_prompt(read), offered, max_new_tokens)
        return write_message(_message(turn))

    def run(self, task: str | Task, tools: Sequence[Tool] | None = None) -> Trajectory:
        """Work on a request until there is an answer, calling tools on the way.

        Args:
            task: what a person asks, or a task of the taskset, which is then acted out in the taskset's environment.
            tools: what the agent may call, made with `@tool`; only for a request in words.

        Returns:
            The whole run, which `Store.add` keeps and people can rate. An exception of a tool that is no ToolError is the caller's.
        """
        with self._lock:
            if isinstance(task, Task):
                return self._act_out(task)
            return self._work(task, {tool.name: tool for tool in tools or ()})

    def close(self) -> None:
        """Forget the conversation."""
        with self._lock:
            self._policy.finish(_SLOT)
            self._held = ()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _act_out(self, task: Task) -> Trajectory:
        self._policy.finish(_SLOT)
        self._held = ()
        with WorkerPool(self.taskset, 1) as pool:
            (result,) = rollout(self.taskset, self._policy, [Job(task)], pool=pool, batch=1)
        return result.trajectory

    def _work(self, request: str, tools: Mapping[str, Tool]) -> Trajectory:
        offered = json.dumps([tool.schema for tool in tools.values()], ensure_ascii=False)
        messages = list(self._with_prompt((Message(role="user", content=request),)))
        stop = StopReason.MAX_TURNS
        for _ in range(self.taskset.limits.max_turns):
            turn = self._turn(tuple(messages), offered, None)
            messages.append(_message(turn))
            if not turn.stopped:
                stop = StopReason.MAX_TOKENS
                break
            if messages[-1].malformed:
                words = f"error: the tool call could not be read: {messages[-1].malformed}"
                messages.append(Message(role="tool", content=words, error=True))
            elif messages[-1].tool_calls:
                messages += _results(messages[-1], tools)
            else:
                stop = StopReason.ANSWERED
                break
        # Equal conversations on two days are two events: the origin needs a name of its own.
        origin = Origin(kind="capture", reference=self.name, task=uuid.uuid4().hex)
        return Trajectory(
            taskset=self.taskset.name, messages=tuple(messages), tools=offered, origin=origin, stop_reason=stop, created=now()
        )  # fmt: skip

    def _turn(self, messages: tuple[Message, ...], tools: str, max_new_tokens: int | None) -> PolicyTurn:
        known = len(self._held)
        new = messages[known:]
        # The policy goes on from its own last words only: any other history is read anew.
        if not known or messages[:known] != self._held or any(message.role == "assistant" for message in new):
            self._policy.finish(_SLOT)
        limits = self.taskset.limits
        request = TurnRequest(
            _SLOT, Task(id="chat", split=""), 0, messages, tools, max_new_tokens or limits.max_turn_tokens, limits.max_tokens
        )  # fmt: skip
        self._held = ()
        (turn,) = self._policy.act([request])
        if turn.message is not None:
            self._held = (*messages, turn.message)
        return turn

    def _with_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.taskset.system_prompt or any(message.role == "system" for message in messages):
            return messages
        return (Message(role="system", content=self.taskset.system_prompt), *messages)


def _message(turn: PolicyTurn) -> Message:
    if turn.error:
        raise ModelError(turn.error.strip().splitlines()[-1])
    if turn.message is None:
        raise ModelError("the conversation leaves no room for an answer. Shorten it, or raise limits.max_tokens in the taskset.")
    return turn.message


def _results(message: Message, tools: Mapping[str, Tool]) -> list[Message]:
    if not tools:
        raise DataError(
            f"the agent called {message.tool_calls[0].name}, but there are no tools to call. Give them: run(text, tools=[...])."
        )
    results = []
    for call in message.tool_calls:
        try:
            results.append(Message(role="tool", content=run_tool(tools, call), tool_call_id=call.id, name=call.name))
        except ToolError as error:
            results.append(Message(role="tool", content=str(error), tool_call_id=call.id, name=call.name, error=True))
    return results
