"""A chat with one adapter, or with two side by side: what its person may do when, and the runs that come of it.

Every act of the person is a change of the sides under their lock; the sides then act by themselves (`play_sides`). Surprise: which adapter
stands on which side is drawn when the chat begins and told to nobody until there is a vote; `names` is the only way to it.
"""

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from agentalign.environments.taskset import Taskset
from agentalign.errors import DataError
from agentalign.records.trajectory import Message, TokenRecord, ToolCall, Trajectory
from agentalign.scoring.corrected import offered_tools, require_fit
from agentalign.ui.play_lane import About, Lane, Proposal
from agentalign.ui.play_sides import Sides

if TYPE_CHECKING:
    from agentalign.ui.play_model import Loaded

Decision = Literal["approve", "edit", "deny", "answer"]
NO_REWIND = "taskset '{}' does not say `replayable: true`, so its world cannot be taken back. Begin another chat."


class Branch(NamedTuple):
    """Where a chat leaves another one."""

    chat: "Chat"
    side: int
    step: int
    past: Lane
    words: str
    """What its person said next."""

    def run(self) -> tuple[str, int] | None:
        """Run and step that it left; None where that chat was discarded.

        Raises:
            DataError: that is not decided yet, and a run cannot be told later where it came from.
        """
        if self.chat.kept:
            return self.chat.runs[self.side].id, self.step
        if not self.chat.sides.closed:
            raise DataError("this chat branched from another one, which is still open. Keep or discard that one first; then keep this one.")
        return None


class Chat:
    """One conversation of one person."""

    def __init__(
        self,
        owner: str,
        about: About,
        taskset: Taskset,
        versions: Sequence[str],
        *,
        source: Trajectory | None,
        ask: bool,
        model: "Loaded",
        branched: Branch | None = None,
    ) -> None:
        self.owner, self.about, self.ask = owner, about, ask
        self.touched = self._began = time.monotonic()
        self.runs: tuple[Trajectory, ...] = ()
        """What it was kept as; then it is over."""
        self.proposals: tuple[str, ...] = ()
        """Ids of the runs that hold what was corrected in it."""
        self.kept = False
        drawn = list(versions)
        if len(drawn) == 2 and secrets.randbits(1):
            drawn.reverse()
        self.taskset, self.source = taskset, source
        self._branched = branched
        self.draft = "" if branched is None else branched.words
        """What was said next where it branched; for its person to say otherwise."""
        past = None if branched is None else branched.past
        self.sides = Sides(about, taskset, drawn, source=source, ask=ask, model=model, past=past)
        self.lock, self.lanes = self.sides.lock, self.sides.lanes

    @property
    def id(self) -> str:
        """Names it."""
        return self.about.chat

    @property
    def blind(self) -> bool:
        """Nobody may be told who is on which side."""
        return len(self.lanes) == 2 and not self.kept

    @property
    def names(self) -> list[str]:
        """Who is on which side; empty while nobody may be told."""
        return [] if self.blind else [lane.version for lane in self.lanes]

    def say(self, words: str) -> None:
        """The person's next words, to every side."""
        with self.lock:
            self._require_going()
            if not words.strip():
                raise DataError("there are no words to send. Write some.")
            if any(lane.state not in ("ready", "stopped") or lane.proposals for lane in self.lanes):
                raise DataError("the agent is not done yet, or can say no more. Wait, answer its calls, or stop it; then speak.")
            for lane in self.lanes:
                lane.messages.append(Message(role="user", content=words))
                lane.customer, lane.has_own_words = None, True
            self.draft = ""
            self.sides.go(self.lanes)

    def let_customer_say(self) -> None:
        """Let the task's customer answer, on every side where they have something to say."""
        with self.lock:
            self._require_going()
            lanes = [lane for lane in self.lanes if lane.customer is not None and lane.state == "ready"]
            if not lanes:
                raise DataError("the task's customer has nothing to say now. Say something yourself, or keep the chat.")
            for lane in lanes:
                lane.messages += [lane.customer] if lane.customer is not None else []
                lane.customer = None
            self.sides.go(lanes)

    def decide(self, side: int, call: str, decision: Decision, arguments: str, words: str, *, error: bool) -> None:
        """What is to become of a call.

        Raises:
            DataError: it does not wait for this, or the changed call does not fit its tool.
        """
        with self.lock:
            self._require_going()
            lane = self.lanes[side] if side < len(self.lanes) else None
            found = next((p for p in (lane.proposals if lane else ()) if p.call.id == call), None)
            if lane is None or found is None or found.state not in ("asked", "wanting"):
                raise DataError("this call was decided already, or is not of this side. Reload the page and decide one that waits.")
            if decision == "answer":
                lane.settle(found, words, error=error)
                lane.note(found, "answered")
            elif decision == "deny":
                lane.settle(found, f"error: a person did not allow this call. {words}".strip(), error=True)
                lane.note(found, "denied")
            elif found.state == "wanting":
                raise DataError("this call has its leave, and waits for its result. Write that, or deny it.")
            else:
                if decision == "edit":
                    self._edit(lane, found, arguments)
                found.state = "free"
                lane.note(found, "approved" if found.made == found.call else "edited")
            self.sides.go([lane])

    def halt(self) -> None:
        """Let every side rest where it is."""
        self.sides.halt()

    def resume(self) -> None:
        """Let the sides that were stopped, or could not go on, try again."""
        with self.lock:
            self._require_going()
            lanes = [lane for lane in self.lanes if not lane.busy and lane.can_go_on]
            if not lanes:
                raise DataError("there is nothing to go on with: the agent has said its word. Say something.")
            self.sides.go(lanes)

    def rewrite(self) -> None:
        """Have the last turn written once more, on every side where nothing came of it yet."""
        with self.lock:
            self._require_going()
            lanes = [lane for lane in self.lanes if lane.can_rewrite]
            if not lanes or any(lane.busy for lane in self.lanes):
                raise DataError("there is no last turn to write once more: its calls were decided, or somebody spoke since. Branch off.")
            if not self.sides.may_rewind and any((len(lane.messages), None) in lane.asked for lane in lanes):
                raise DataError(f"the customer answered already, and {NO_REWIND.format(self.taskset.name)}")
            for lane in lanes:
                lane.rewrite(self.about.temperature)
            self.sides.go(lanes)

    def branch_at(self, side: int, step: int) -> "Branch":
        """All that was said before a step of a side, to go on from otherwise.

        Raises:
            DataError: there is no such step, nobody may be told who spoke, or the world cannot be brought there.
        """
        with self.lock:
            if self.blind:
                raise DataError("a branch would tell who is on this side. Vote first.")
            lane = self.lanes[side] if side < len(self.lanes) else None
            if lane is None or lane.busy or not 0 <= step < lane.steps:
                raise DataError("there is no such turn to branch from, or the agent is still at work. Wait, or reload the page.")
            if not self.sides.may_rewind:
                raise DataError(f"a branch needs the world as it was, and {NO_REWIND.format(self.taskset.name)}")
            place = [index for index, message in enumerate(lane.messages) if message.role == "assistant"][step]
            said = lane.messages[place - 1] if place and lane.messages[place - 1].role == "user" else None
            return Branch(self, side, step, lane.shared(place - 1 if said else place), said.content if said else "")

    def close(self) -> None:
        """Forget what it holds: workers, and adapters in memory."""
        self.sides.close()

    def as_runs(self) -> tuple[Trajectory, ...]:
        """The sides as runs, of the same ids until something more is said."""
        with self.lock:
            if self.runs:
                return self.runs
            if any(lane.busy for lane in self.lanes):
                raise DataError("the agent is still at work. Wait, or stop it; then keep the chat.")
            if any(lane.steps == 0 for lane in self.lanes):
                raise DataError("the agent has said nothing yet, so there is no run to keep. Let it answer, or discard the chat.")
            # Two sides are two runs of one thing, or their preference would be about nothing.
            is_attempt = self.about.tools_by == "live" and self._branched is None and all(lane.is_attempt for lane in self.lanes)
            parent = None if self._branched is None else self._branched.run()
            if parent is None and self.source is not None:
                parent = (self.source.id, 0)  # its words are repeated here, and go with it where it is forgotten
            seconds = time.monotonic() - self._began
            return tuple(lane.run(self.about, seconds, is_attempt=is_attempt, parent=parent) for lane in self.lanes)

    def tokens_of(self, runs: Sequence[Trajectory]) -> list[TokenRecord]:
        """The tokens of its runs."""
        return [record for lane, run in zip(self.lanes, runs, strict=True) for record in lane.record(run, self.sides.base)]

    def _require_going(self) -> None:
        if self.runs or self.sides.closed:
            raise DataError("this chat is over. Begin another one.")
        if self.sides.problem:
            raise DataError(f"this chat cannot go on: {self.sides.problem}")
        self.touched = time.monotonic()

    def _edit(self, lane: Lane, proposal: Proposal, arguments: str) -> None:
        offered = offered_tools(lane.run(self.about, None))
        require_fit(proposal.call.name, arguments, offered)
        made = ToolCall(id=proposal.call.id, name=proposal.call.name, arguments=arguments)
        if made != proposal.call:
            lane.make(proposal, made)
