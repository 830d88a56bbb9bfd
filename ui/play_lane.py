"""One side of a chat: what was said there, the calls that wait for somebody, and the run that it becomes.

A call that the agent proposes goes through one of a few states: a person is asked for leave, it runs, or a person is asked for its result.
Surprise: a call that a person changed stands in the run as it was made, for that is what the results answer; the agent's own words are
kept in the run's metadata, and the tokens of that turn are let go, since they are not what happened.
"""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from agentalign.environments.task import Task
from agentalign.records.base import canonical_json, now
from agentalign.records.trajectory import Message, Origin, StopReason, TokenRecord, ToolCall, Trajectory, TurnTokens

if TYPE_CHECKING:
    from agentalign.ui.play_turn import Pen

LaneState = Literal["opening", "ready", "writing", "asking", "calling", "stopped", "failed", "over"]
Did = Literal["approved", "edited", "denied", "answered", "replayed"]


@dataclass
class Proposal:
    """A call that the agent wants to make."""

    call: ToolCall
    """As the agent wrote it."""
    made: ToolCall
    """As it is made."""
    state: Literal["asked", "free", "running", "wanting", "done"]
    """Waits for leave; may run; runs; waits for a person to say what came of it; has its result."""
    result: Message | None = None


@dataclass
class Lane:
    """One side. The chat's lock is held by whoever changes it."""

    version: str
    """"name@version" or "base"."""
    slot: int
    state: LaneState = "opening"
    messages: list[Message] = field(default_factory=list)
    turns: list[TurnTokens] = field(default_factory=list)
    last: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Context and completion of the last turn, while it stands as it was sampled."""
    proposals: list[Proposal] = field(default_factory=list)
    changes: list[dict[str, JsonValue]] = field(default_factory=list)
    """What people did to calls, for the run's metadata."""
    problem: str = ""
    stop: StopReason | None = None
    """Why nothing more can be said here."""
    busy: bool = False
    """A thread is at work on it."""
    halted: bool = False
    """It is to rest before it does anything more."""
    attempt: int = 0
    """How often a turn was begun, for its random stream."""
    pen: "Pen | None" = None
    customer: Message | None = None
    """What the task's own customer would say now; None where they have nothing more to say, or there is none."""
    asked_at: int = -1
    """How many messages there were when the customer was asked."""
    has_own_words: bool = False
    """A person said something here that the task's customer had not said."""

    @property
    def steps(self) -> int:
        """Assistant turns so far."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def waits_for_agent(self) -> bool:
        """The last word was not the agent's, or it has calls that are not answered."""
        return bool(self.messages) and (self.messages[-1].role != "assistant" or bool(self.proposals))

    @property
    def can_go_on(self) -> bool:
        """It rests where the agent would have the word."""
        return self.state in ("stopped", "failed") and self.stop is None and self.waits_for_agent

    @property
    def is_attempt(self) -> bool:
        """It went as the task goes by itself: to its end, in the customer's words, and nobody decided what a call does."""
        by_people = any(change["did"] not in ("approved", "replayed") for change in self.changes)
        return (
            not self.has_own_words and not by_people and self.customer is None and self.ended not in (StopReason.UNKNOWN, StopReason.ERROR)
        )

    @property
    def ended(self) -> StopReason:
        """Why the run that it is now ends where it does."""
        last = self.messages[-1]
        answered = last.role == "assistant" and not last.tool_calls and not last.malformed
        return self.stop or (StopReason.ANSWERED if answered else StopReason.UNKNOWN)

    def note(self, proposal: Proposal, did: Did) -> None:
        """Remember what was done to a call."""
        self.changes.append(
            {"step": self.steps - 1, "call": proposal.call.id, "did": did, "name": proposal.call.name, "arguments": proposal.call.arguments}
        )

    def make(self, proposal: Proposal, made: ToolCall) -> None:
        """Put the changed call where the agent's was."""
        proposal.made = made
        place = max(index for index, message in enumerate(self.messages) if message.role == "assistant")
        calls = tuple(made if call.id == made.id else call for call in self.messages[place].tool_calls)
        self.messages[place] = self.messages[place].model_copy(update={"tool_calls": calls})
        self.turns = [turn for turn in self.turns if turn.message_index != place]
        self.last = None

    def settle(self, proposal: Proposal, content: str, *, error: bool) -> None:
        """This is what came of the call."""
        made = proposal.made
        proposal.result = Message(role="tool", content=content, tool_call_id=made.id, name=made.name, error=error)
        proposal.state = "done"

    def run(self, about: "About", seconds: float | None, *, is_attempt: bool) -> Trajectory:
        """What happened here, as a run.

        Args:
            is_attempt: the task may be judged by it. Else its checks would hold against the agent what people did.
        """
        task, stop = about.task, self.ended
        attempted = task if is_attempt else None
        said: dict[str, JsonValue] = {"tools": about.tools_by, "changes": list[JsonValue](self.changes), "temperature": about.temperature}
        labels: dict[str, JsonValue] = {}
        if attempted is not None:
            labels = {"task": json.loads(attempted.data), "tags": list(attempted.tags), "unseen": attempted.unseen}
        elif task is not None:
            said["world_of"] = task.id
        return Trajectory(
            taskset=about.taskset,
            messages=(*self.messages, *(p.result for p in self.proposals if p.result is not None)),
            tools=about.tools,
            origin=Origin(kind="chat", reference=self.version, task=about.chat, seed=about.seed),
            task_id=attempted.id if attempted else None,
            family=attempted.family if attempted else "",
            split=task.split if task else "",
            stop_reason=stop,
            error=self.problem if stop is StopReason.ERROR else "",
            seconds=seconds,
            metadata=canonical_json({"chat": said, **labels}),
            created=now(),
        )

    def record(self, run: Trajectory, base: str) -> list[TokenRecord]:
        """The tokens that the run was sampled as."""
        return [TokenRecord(trajectory=run.id, base=base, turns=tuple(self.turns))] if self.turns else []


@dataclass(frozen=True)
class About:
    """What both sides have in common, as far as their runs say it."""

    chat: str
    taskset: str
    tools: str
    tools_by: Literal["live", "replay", "hand"]
    task: Task | None
    seed: int
    temperature: float
