"""An adapter in an application: load it by name and stage, then chat, or let it work with tools until it is done.

    agent = agentalign.load_agent("order_desk@production")
    reply = agent.chat([{"role": "user", "content": "Where is order W1042?"}], tools=schemas)

Messages go in and come out as the OpenAI API writes them. What was asked next in one conversation costs only its new tokens. With `record`,
what it did goes back into the project's store, to be looked at and rated: every `run` when it ends, a conversation when the next begins.
Surprise: `chat` without `tools` offers those of the taskset it was trained on, because without them it is not the same agent.
"""

import json
import logging
import math
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
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
from agentalign.rollouts.policy import EndpointPolicy, Policy, PolicyTurn, Streamed, StreamingPolicy, TurnRequest
from agentalign.rollouts.rollout import Job, numbered, rollout
from agentalign.store.registry import Registry
from agentalign.store.store import Store

logger = logging.getLogger("agentalign")
Backend = Literal["local", "openai"]
_SLOT = 0


def load_agent(
    ref: str,
    project: Project | Path | str | None = None,
    *,
    backend: Backend = "local",
    base_url: str = "",
    model: str = "",
    api_key: str = "none",
    temperature: float = 0.0,
    device: str = "auto",
    seconds: float | None = None,
    record: bool = False,
) -> "Agent":
    """Load a policy adapter, checked against its card, ready to answer.

    Args:
        ref: "name@production", "name@3", or "name" for the newest version.
        project: the project or its folder; default: the one around the current folder.
        backend: "local" runs it in this process; "openai" asks a server (`agentalign serve`, or vLLM with `agentalign export`).
        base_url: of the server, such as "http://localhost:8000/v1".
        model: its name on that server; default: `ref` where it serves that, else the version, else the bare name.
        temperature: 0 always takes the likeliest token.
        device: "auto", "cpu" or "cuda".
        seconds: most time of one answer of `chat` and `stream`, and of a whole `run`; None: a run has the taskset's max_seconds.
        record: keep what it does in the project's store, under origin kind "capture", or "rollout" for tasks of the taskset.
    """
    home = project if isinstance(project, Project) else Project.find(Path(project) if project else None)
    card, _ = Registry(home.adapters).resolve(ref)
    taskset = load_taskset(find_taskset(card.taskset, home.tasks))
    policy: Policy
    if backend == "openai":
        if not base_url:
            raise ConfigError("backend 'openai' needs the server's base_url. Give e.g. base_url=\"http://localhost:8000/v1\".")
        served = model or _served_name(base_url, api_key, (ref, card.ref, card.name))
        policy = EndpointPolicy(base_url, served, api_key=api_key, temperature=temperature)
    elif backend == "local":
        policy = adapter_policy(home, card.ref, temperature=temperature, device=device)
    else:
        raise ConfigError(f"there is no backend '{backend}'. Choose 'local' or 'openai'.")
    # A server decides itself which version has a stage: what it says of its answers is what runs are recorded under.
    return Agent(policy, taskset, card.ref if backend == "local" else ref, seconds=seconds, keep=_keeper(home) if record else None)


def _served_name(url: str, api_key: str, names: Sequence[str]) -> str:
    served = EndpointPolicy(url, "", api_key=api_key, seconds=30, retries=1).served()
    for name in names:
        if name in served:
            return name
    raise ConfigError(f"{url} serves none of {', '.join(dict.fromkeys(names))}; it serves {', '.join(served[:10])}. Name one with model=.")


def _keeper(project: Project) -> "Callable[[Trajectory], None]":
    def keep(run: Trajectory) -> None:
        with Store(project.store_url) as store:
            store.add([run])

    return keep


class Agent:
    """A policy with the prompt, tools and limits of its taskset. One conversation at a time; other threads wait."""

    def __init__(
        self, policy: Policy, taskset: Taskset, name: str, *, seconds: float | None = None, keep: Callable[[Trajectory], None] | None = None
    ) -> None:
        self.name = name
        """"name@version" that answers; of a server, the name that was asked for."""
        self.taskset = taskset
        self.cut = False
        """The last answer of `chat` or `stream` reached its limit of tokens, and ends in the middle."""
        self._policy = policy
        self._seconds, self._keep = seconds, keep
        self._lock = threading.Lock()
        self._held: tuple[Message, ...] = ()
        """The conversation, its last answer included, that the policy's cache is about."""
        self._told: tuple[tuple[Message, ...], str, bool] | None = None
        """The conversation of `chat` or `stream` that is not recorded yet, the tools that it was offered, and whether its end was cut."""

    def chat(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[JsonValue] | None = None, *, max_new_tokens: int | None = None
    ) -> dict[str, JsonValue]:
        """The assistant's next message.

        Args:
            messages: the conversation so far, as the OpenAI API writes it. Without a system message the taskset's own is put first.
            tools: function schemas; None offers the taskset's own, an empty list none.
            max_new_tokens: most tokens of the answer; the taskset's limit by default.

        Returns:
            A message with `content` and, where it calls tools, `tool_calls`. One that is longer than may be ends in the middle: `cut`.
            One whose call could not be read has `malformed`, which says why, and the call as text: no answer for a customer. Sent back with
            it, a tool message without an id may tell the agent so.

        Raises:
            DataError: messages or tools that cannot be read.
            ModelError: the conversation is too long for the model, the server gave no answer, or the time is up.
        """
        return next(piece for piece in self._told_by(messages, tools, max_new_tokens, pieces=False) if isinstance(piece, dict))

    def stream(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[JsonValue] | None = None, *, max_new_tokens: int | None = None
    ) -> Generator[str | dict[str, JsonValue], None, None]:
        """The same while it is written: text in pieces, and last the whole message, as `chat` returns it.

        Half a call is never told as text. Until the last piece was taken, or the iterator closed, other threads wait; a turn that was not
        taken to its end is no part of the conversation.
        """
        return self._told_by(messages, tools, max_new_tokens, pieces=True)

    def _told_by(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[JsonValue] | None, max_new_tokens: int | None, *, pieces: bool
    ) -> Generator[str | dict[str, JsonValue], None, None]:
        read, _ = read_messages([dict(message) for message in messages])
        offered = self.taskset.tools if tools is None else read_tools(list(tools), {})
        with self._lock:
            whole, deadline = self._as_told(self._with_prompt(read)), _deadline(self._seconds)
            turn = yield from self._turn(whole, offered, max_new_tokens, deadline, pieces)
            if not turn.stopped and not turn.error and time.monotonic() >= deadline:
                raise ModelError(f"there was no whole answer within {self._seconds:g} seconds. Raise `seconds`, or ask for fewer tokens.")
            message = _message(turn)
            self.cut = not turn.stopped
            self._remember((*whole, message), offered)
        yield write_message(message) | ({"malformed": message.malformed} if message.malformed else {})

    def run(self, task: str | Task, tools: Sequence[Tool] | None = None) -> Trajectory:
        """Work on a request until there is an answer, calling tools on the way.

        Args:
            task: what a person asks, or a task of the taskset, which is then acted out in the taskset's environment.
            tools: what the agent may call, made with `@tool`; only for a request in words.

        Returns:
            The whole run, which people can rate once it is stored (`record`, or `Store.add`). An exception of a tool that is no ToolError
            is the caller's; what was done before it is recorded all the same.
        """
        with self._lock:
            self._forget()
            done = self._act_out(task) if isinstance(task, Task) else self._work(task, {tool.name: tool for tool in tools or ()})
            self._record(done)
            return done

    def close(self) -> None:
        """Forget the conversation; where it records, keep it."""
        with self._lock:
            self._forget()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _act_out(self, task: Task) -> Trajectory:
        limits = self.taskset.limits
        within = limits if self._seconds is None else limits.model_copy(update={"max_seconds": self._seconds})
        taskset = replace(self.taskset, limits=within)
        with WorkerPool(taskset, 1) as pool:
            (result,) = rollout(taskset, self._policy, [Job(task)], pool=pool, batch=1)
        return result.trajectory

    def _work(self, request: str, tools: Mapping[str, Tool]) -> Trajectory:
        offered = json.dumps([tool.schema for tool in tools.values()], ensure_ascii=False)
        messages = list(self._with_prompt((Message(role="user", content=request),)))
        try:
            stop = self._steps(messages, offered, tools)
        except Exception:
            # Its tools may have changed the world: a run that breaks is a record, as in rollouts.
            if messages[-1].role != "user":
                self._record(self._captured(tuple(messages), offered, StopReason.ERROR, traceback.format_exc()))
            raise
        return self._captured(tuple(messages), offered, stop)

    def _steps(self, messages: list[Message], offered: str, tools: Mapping[str, Tool]) -> StopReason:
        """Adds what the agent and its tools say to the messages, until it is over."""
        deadline = _deadline(self.taskset.limits.max_seconds if self._seconds is None else self._seconds)
        for _ in range(self.taskset.limits.max_turns):
            turn = _last(self._turn(tuple(messages), offered, None, deadline, False))
            late = time.monotonic() >= deadline
            if turn.message is not None or turn.error:
                messages.append(_message(turn))
            if turn.message is None or not turn.stopped:
                return StopReason.MAX_SECONDS if late else StopReason.MAX_TOKENS
            if messages[-1].malformed:
                words = f"error: the tool call could not be read: {messages[-1].malformed}"
                messages.append(Message(role="tool", content=words, error=True))
            elif messages[-1].tool_calls:
                messages.extend(_results(messages[-1], tools))  # one by one: those before one that breaks are kept
            else:
                return StopReason.ANSWERED
            if time.monotonic() >= deadline:
                return StopReason.MAX_SECONDS
        return StopReason.MAX_TURNS

    def _captured(self, messages: tuple[Message, ...], tools: str, stop: StopReason, error: str = "") -> Trajectory:
        # Equal conversations on two days are two events: the origin needs a name of its own.
        answered = self._policy.answered if isinstance(self._policy, EndpointPolicy) else ""
        origin = Origin(kind="capture", reference=answered or self.name, task=uuid.uuid4().hex)
        return Trajectory(
            taskset=self.taskset.name, messages=messages, tools=tools, origin=origin, stop_reason=stop, error=error, created=now()
        )

    def _turn(self, messages: tuple[Message, ...], tools: str, max_new_tokens: int | None, deadline: float, pieces: bool) -> Streamed:
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
        # Only what is streamed can be stopped by the clock; a server that cannot stream still answers `chat`.
        if isinstance(self._policy, StreamingPolicy) and (pieces or deadline < math.inf):
            turn = yield from self._policy.stream(request, deadline)
        else:
            (turn,) = self._policy.act([request])
            if turn.message is not None and turn.message.content and not turn.message.malformed:
                yield turn.message.content
        if turn.message is not None:
            # Some servers count call ids from 0 in every turn.
            said = numbered(turn.message, messages)
            turn, self._held = turn._replace(message=said), (*messages, said)
        return turn

    def _as_told(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation with what was said in it as it was said: clients send back neither thoughts nor why a call was not readable."""
        for known in (self._held, self._told[0] if self._told else ()):
            if known and [_sent_back(one) for one in messages[: len(known)]] == [_sent_back(one) for one in known]:
                return (*known, *messages[len(known) :])
        return messages

    def _remember(self, messages: tuple[Message, ...], tools: str) -> None:
        """For the record: a conversation that goes on is one run."""
        if self._keep is None:
            return
        if self._told is not None and (messages[: len(self._told[0])] != self._told[0] or tools != self._told[1]):
            self._record_told()
        self._told = messages, tools, self.cut

    def _record_told(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            messages, tools, cut = told
            open_end = messages[-1].tool_calls or messages[-1].malformed
            stop = StopReason.MAX_TOKENS if cut else StopReason.UNKNOWN if open_end else StopReason.ANSWERED
            self._record(self._captured(messages, tools, stop))

    def _record(self, run: Trajectory) -> None:
        """A store that cannot be written costs the record, not the answer."""
        if self._keep is None:
            return
        try:
            self._keep(run)
        except Exception as error:  # noqa: BLE001 - whatever a full disk or a database says
            logger.warning("a run of %s was not recorded: %s", self.name, " ".join(str(error).split())[:300])

    def _forget(self) -> None:
        self._policy.finish(_SLOT)
        self._held = ()
        self._record_told()

    def _with_prompt(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not self.taskset.system_prompt or any(message.role == "system" for message in messages):
            return messages
        return (Message(role="system", content=self.taskset.system_prompt), *messages)


def _sent_back(message: Message) -> Message:
    return message.model_copy(update={"reasoning": "", "malformed": ""})


def _deadline(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds


def _last(streamed: Streamed) -> PolicyTurn:
    while True:
        try:
            next(streamed)
        except StopIteration as end:
            turn: PolicyTurn = end.value
            return turn


def _message(turn: PolicyTurn) -> Message:
    if turn.error:
        raise ModelError(turn.error.strip().splitlines()[-1])
    if turn.message is None:
        raise ModelError("the conversation leaves no room for an answer. Shorten it, or raise limits.max_tokens in the taskset.")
    return turn.message


def _results(message: Message, tools: Mapping[str, Tool]) -> Iterator[Message]:
    if not tools:
        raise DataError(
            f"the agent called {message.tool_calls[0].name}, but there are no tools to call. Give them: run(text, tools=[...])."
        )
    for call in message.tool_calls:
        try:
            yield Message(role="tool", content=run_tool(tools, call), tool_call_id=call.id, name=call.name)
        except ToolError as error:
            yield Message(role="tool", content=str(error), tool_call_id=call.id, name=call.name, error=True)
