"""One side of a chat: what was said there, the calls that wait for somebody, and the run that it becomes.

A call that the agent proposes goes through one of a few states: a person is asked for leave, it runs, or a person is asked for its result.
Surprise: a call that a person changed stands in the run as it was made, for that is what the results answer. The agent's own turn with its
tokens stands beside it in `wrote`, since it is not what happened; kept, it becomes a run of its own (`play_keep`).
"""

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import JsonValue

from agentalign.environments.task import Task
from agentalign.records.base import canonical_json, now
from agentalign.records.trajectory import Message, Origin, StopReason, TokenRecord, ToolCall, Trajectory, TurnTokens

if TYPE_CHECKING:
    from agentalign.ui.play_turn import Pen

LaneState = Literal["opening", "ready", "writing", "asking", "calling", "stopped", "failed", "over"]
Did = Literal["approved", "edited", "denied", "answered", "replayed"]
AGAIN_TEMPERATURE = 1.0
"""Of a turn that is written once more where the chat's own temperature is 0, at which the same would come again."""


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


class Wrote(NamedTuple):
    """A turn as the agent wrote it, where a person changed a call of it."""

    message: Message
    tokens: TurnTokens | None


@dataclass
class Lane:
    """One side. The chat's lock is held by whoever changes it."""

    version: str
    """"name@version" or "base"."""
    slot: int
    state: LaneState = "opening"
    messages: list[Message] = field(default_factory=list)
    turns: list[TurnTokens] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    changes: list[dict[str, JsonValue]] = field(default_factory=list)
    """What people did to calls, for the run's metadata."""
    wrote: dict[int, Wrote] = field(default_factory=dict)
    """By place among the messages the turns of which a person changed a call."""
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
    asked: list[tuple[int, ToolCall | None]] = field(default_factory=list)
    """What the world was asked, with how many messages there were: to run a call, or (None) what the customer says."""
    is_ahead: bool = False
    """The world was asked more than the messages tell, and has to be set up anew before it is asked again."""
    rewrites: bool = False
    """The turn that is to be written was there before."""
    has_own_words: bool = False
    """A person said something here that the task's customer had not said."""

    @property
    def steps(self) -> int:
        """Assistant turns so far."""
        return sum(message.role == "assistant" for message in self.messages)

    @property
    def last(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Context and completion of the last turn, while it stands as it was sampled."""
        place = self.last_place
        return next(((turn.context, turn.completion) for turn in self.turns if turn.message_index == place), None)

    @property
    def last_place(self) -> int:
        """Where the agent's last turn stands among the messages; -1 where there is none."""
        return max((index for index, message in enumerate(self.messages) if message.role == "assistant"), default=-1)

    @property
    def can_rewrite(self) -> bool:
        """The last word was the agent's, and nothing came of it yet."""
        place = self.last_place
        if self.busy or place < 0 or self.stop is StopReason.ERROR:
            return False
        turn, after = self.messages[place], self.messages[place + 1 :]
        is_open = bool(self.proposals) and all(proposal.state in ("asked", "wanting") for proposal in self.proposals)
        return is_open if turn.tool_calls else not after or bool(turn.malformed and len(after) == 1)

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
        place = self.last_place
        self.wrote.setdefault(place, Wrote(self.messages[place], next((turn for turn in self.turns if turn.message_index == place), None)))
        calls = tuple(made if call.id == made.id else call for call in self.messages[place].tool_calls)
        self.messages[place] = self.messages[place].model_copy(update={"tool_calls": calls})
        self.turns = [turn for turn in self.turns if turn.message_index != place]

    def cut(self, place: int) -> None:
        """Forget what was said from this place on, and what was done about it."""
        self.messages = self.messages[:place]
        self.turns = [turn for turn in self.turns if turn.message_index < place]
        self.changes = [change for change in self.changes if isinstance(change["step"], int) and change["step"] < self.steps]
        self.wrote = {at: wrote for at, wrote in self.wrote.items() if at < place}
        asked = [(at, call) for at, call in self.asked if at <= place]
        self.is_ahead, self.asked = self.is_ahead or asked != self.asked, asked
        self.proposals, self.customer, self.stop, self.problem = [], None, None, ""

    def rewrite(self, temperature: float) -> None:
        """Take the last turn back; the next one stands where it stood."""
        step = self.steps - 1
        before = [change for change in self.changes if change["step"] == step and change["did"] == "rewritten"]
        self.cut(self.last_place)
        self.rewrites = True
        self.changes += [*before, {"step": step, "did": "rewritten", "name": "turn", "temperature": temperature or AGAIN_TEMPERATURE}]

    def shared(self, place: int) -> "Lane":
        """A side of another chat, with all that was said here before this place; what was corrected in that is kept with this one."""
        found = replace(self, slot=0, state="opening", busy=True, halted=False, pen=None, attempt=0, rewrites=False)
        found.cut(place)
        found.wrote, found.is_ahead = {}, False
        return found

    def settle(self, proposal: Proposal, content: str, *, error: bool) -> None:
        """This is what came of the call."""
        made = proposal.made
        proposal.result = Message(role="tool", content=content, tool_call_id=made.id, name=made.name, error=error)
        proposal.state = "done"

    def run(self, about: "About", seconds: float | None, *, is_attempt: bool = False, parent: tuple[str, int] | None = None) -> Trajectory:
        """What happened here, as a run.

        Args:
            parent: run and step that it branched from, or the run that it replays.
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
        if about.branch is not None:
            said["branch_of"] = {"chat": about.branch[0], "step": about.branch[1]}
        return Trajectory(
            taskset=about.taskset,
            messages=(*self.messages, *(p.result for p in self.proposals if p.result is not None)),
            tools=about.tools,
            origin=Origin(kind="chat", reference=self.version, task=about.chat, seed=about.seed),
            task_id=attempted.id if attempted else None,
            family=attempted.family if attempted else "",
            split=about.split,
            stop_reason=stop,
            error=self.problem if stop is StopReason.ERROR else "",
            seconds=seconds,
            parent=parent,
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
    split: str
    """Of the task, or of the run that is replayed where that is held out of training: what is learned from a copy is learned from both."""
    seed: int
    temperature: float
    branch: tuple[str, int] | None = None
    """Chat and step that it branched from: there they part."""
