"""A chat with one adapter, or with two side by side: who may do what when, and the threads that let the sides act.

A side acts in rounds: the model writes a turn, its calls are answered, and again, until the agent has said its word or a person is needed.
The environment is the task's own, in worker processes, one per side. Surprise: which adapter stands on which side is drawn when the chat
begins and told to nobody until there is a vote; `names` is the only way to it.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from agentalign.environments.taskset import Taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, DataError, TasksetError, ToolError
from agentalign.records.base import digest
from agentalign.records.trajectory import Message, StopReason, TokenRecord, ToolCall, Trajectory
from agentalign.scoring.corrected import offered_tools, require_fit
from agentalign.ui.play_lane import About, Lane, Proposal
from agentalign.ui.play_replay import Replay, opening

if TYPE_CHECKING:
    from agentalign.deployment.serving.engine import Engine

log = logging.getLogger(__name__)
Decision = Literal["approve", "edit", "deny", "answer"]


class Chat:
    """One conversation of one person."""

    def __init__(
        self, owner: str, about: About, taskset: Taskset, versions: Sequence[str], *, source: Trajectory | None, ask: bool, engine: "Engine"
    ) -> None:
        self.owner, self.about, self.ask = owner, about, ask
        self.lock = threading.RLock()
        self.seen = 0
        """Grows with every change but the text that is being written."""
        self.touched = time.monotonic()
        self.problem = ""
        self.runs: tuple[Trajectory, ...] = ()
        """What it was kept as; then it is over."""
        self.kept = False
        self._engine, self._taskset, self._source = engine, taskset, source
        self._began = time.monotonic()
        drawn = list(versions)
        if len(drawn) == 2 and secrets.randbits(1):
            drawn.reverse()
        self.lanes = [Lane(version, slot) for slot, version in enumerate(drawn)]
        self._replays = [Replay(source) for _ in drawn] if source is not None and about.tools_by == "replay" else []
        self._pool = WorkerPool(taskset, len(drawn)) if about.tools_by == "live" else None
        self._held: list[str] = []
        self._closed = False

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

    # ------------------------------------------------------------------ what a person does

    def start(self, words: str) -> None:
        """Set the scene; `words` are the person's first, empty where the task or the recorded run has them."""
        for lane in self.lanes:
            lane.busy = True
        self._thread(self._open, words)

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
            self._go(self.lanes)

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
            self._go(lanes)

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
                lane.note(found, "edited" if decision == "edit" else "approved")
            self._go([lane])

    def halt(self) -> None:
        """Let every side rest where it is."""
        with self.lock:
            for lane in self.lanes:
                if lane.busy:
                    lane.halted = True
                if lane.pen is not None:
                    lane.pen.stop()

    def resume(self) -> None:
        """Let the sides that were stopped, or could not go on, try again."""
        with self.lock:
            self._require_going()
            lanes = [lane for lane in self.lanes if not lane.busy and lane.can_go_on]
            if not lanes:
                raise DataError("there is nothing to go on with: the agent has said its word. Say something.")
            self._go(lanes)

    def close(self) -> None:
        """Forget what it holds: workers, and adapters in memory."""
        self.halt()
        with self.lock:
            self._closed = True
            for version in self._held:
                self._engine.adapters.release(version)
            self._held = []
        if self._pool is not None:
            self._pool.close()

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
            is_attempt = self._pool is not None and all(lane.is_attempt for lane in self.lanes)
            return tuple(lane.run(self.about, time.monotonic() - self._began, is_attempt=is_attempt) for lane in self.lanes)

    def tokens_of(self, runs: Sequence[Trajectory]) -> list[TokenRecord]:
        """The tokens of its runs."""
        base = self._engine.dialect.digest
        return [record for lane, run in zip(self.lanes, runs, strict=True) for record in lane.record(run, base)]

    # ------------------------------------------------------------------ how the sides act

    def _require_going(self) -> None:
        if self.runs or self._closed:
            raise DataError("this chat is over. Begin another one.")
        if self.problem:
            raise DataError(f"this chat cannot go on: {self.problem}")
        self.touched = time.monotonic()

    def _edit(self, lane: Lane, proposal: Proposal, arguments: str) -> None:
        offered = offered_tools(lane.run(self.about, None, is_attempt=False))
        require_fit(proposal.call.name, arguments, offered)
        lane.make(proposal, ToolCall(id=proposal.call.id, name=proposal.call.name, arguments=arguments))

    def _go(self, lanes: Sequence[Lane]) -> None:
        self.seen += 1
        for lane in lanes:
            if not lane.busy:
                lane.busy, lane.halted, lane.problem = True, False, ""
                self._thread(self._work, lane)

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name=f"agentalign-chat-{self.id[:8]}", daemon=True).start()

    def _open(self, words: str) -> None:
        try:
            for version in dict.fromkeys(lane.version for lane in self.lanes):
                if self._engine.adapters.acquire(version) is not None:
                    self._held.append(version)
            for lane in self.lanes:
                first = self._opening(lane, words)
                with self.lock:
                    lane.messages = first
        except Exception as error:  # noqa: BLE001 - whatever broke, the person is told and the server goes on
            with self.lock:
                self.problem = _sentence(error)
                for lane in self.lanes:
                    self._rest(lane, "failed")
            return
        if self._closed:  # it was discarded meanwhile, and what it took since is given back
            self.close()
        for lane in self.lanes:
            self._thread(self._work, lane)

    def _opening(self, lane: Lane, words: str) -> list[Message]:
        prompt = self._taskset.system_prompt
        system = [Message(role="system", content=prompt)] if prompt else []
        own = [Message(role="user", content=words)] if words.strip() else []
        if self._source is not None:
            return list(opening(self._source))
        if self._pool is None or self.about.task is None:
            return [*system, *own]
        said = self._pool.reset(lane.slot, self.about.task)
        lane.has_own_words = bool(own)
        return [*system, *(own or said)]

    def _work(self, lane: Lane) -> None:
        try:
            while self._next(lane):
                pass
        except Exception as error:  # noqa: BLE001 - whatever broke, the person is told and the server goes on
            with self.lock:
                lane.problem = _sentence(error)
                # An environment that broke is lost; a model that is busy is asked again.
                lane.stop = StopReason.ERROR if isinstance(error, TasksetError) else None
                self._rest(lane, "failed")

    def _rest(self, lane: Lane, state: Literal["ready", "asking", "stopped", "failed", "over"]) -> Literal[False]:
        lane.state, lane.busy, lane.pen = state, False, None
        self.seen += 1
        return False

    def _next(self, lane: Lane) -> bool:
        """Do the next thing; False where the side rests."""
        with self.lock:
            if lane.halted or self._closed:
                return self._rest(lane, "stopped")
            if lane.stop is not None:
                return self._rest(lane, "over")
            if lane.proposals:
                chosen = next((p for p in lane.proposals if p.state != "done"), None)
                if chosen is None:
                    lane.messages += [p.result for p in lane.proposals if p.result is not None]
                    lane.proposals = []
                    self.seen += 1
                    return True
                if chosen.state != "free":
                    return self._rest(lane, "asking")
                chosen.state, lane.state = "running", "calling"
                self.seen += 1
            else:
                chosen = None
                asks = self._pool is not None and not lane.has_own_words and lane.asked_at != len(lane.messages)
                if lane.waits_for_agent or not asks:
                    if lane.steps >= self._taskset.limits.max_turns:
                        lane.stop = StopReason.MAX_TURNS if lane.waits_for_agent else StopReason.ANSWERED
                        return True
                    if not lane.waits_for_agent:
                        return self._rest(lane, "ready")
        if chosen is not None:
            self._call(lane, chosen)
        elif lane.waits_for_agent:
            self._write(lane)
        else:
            self._ask_customer(lane)
        return True

    def _ask_customer(self, lane: Lane) -> None:
        """What the task's customer would say to this; asked once, for an environment remembers that it was."""
        said = self._pool.reply(lane.slot, lane.messages) if self._pool is not None else None
        with self.lock:
            lane.customer, lane.asked_at = said, len(lane.messages)

    def _call(self, lane: Lane, proposal: Proposal) -> None:
        """Run a call, or find what came of it, or leave it to a person."""
        content, error, found = "", False, False
        if self._pool is not None:
            found = True
            try:
                content = self._pool.call(lane.slot, proposal.made)
            except ToolError as refused:
                content, error = str(refused), True
        elif self._replays:
            recorded = self._replays[lane.slot].answer(proposal.made)
            if recorded is not None:
                content, error, found = recorded.content, recorded.error, True
        with self.lock:
            self.seen += 1
            if not found:
                proposal.state = "wanting"
                return
            lane.settle(proposal, content, error=error)
            if self._pool is None:
                lane.note(proposal, "replayed")

    def _write(self, lane: Lane) -> None:
        from agentalign.ui.play_turn import Pen, Prompt  # torch takes seconds to import

        with self.lock:
            if lane.halted:
                return
            pen = Pen(self._engine)
            lane.state, lane.pen, lane.attempt = "writing", pen, lane.attempt + 1
            self.seen += 1
            # Both sides draw alike: what differs between them is the adapter.
            seed = int(digest([self.about.seed, lane.attempt])[:16], 16) >> 1
            about = self.about
            prompt = Prompt(lane.version, tuple(lane.messages), about.tools, self._taskset.limits, lane.last, seed, about.temperature)
        said = pen.write(prompt)
        with self.lock:
            self.seen += 1
            lane.pen = None
            lane.stop = None if said.whole else StopReason.MAX_TOKENS
            if said.message is None:
                lane.halted = said.whole  # nothing was said although there was room: it was stopped
                return
            lane.messages.append(said.message)
            if said.tokens is not None:
                lane.turns.append(said.tokens)
                lane.last = (said.tokens.context, said.tokens.completion)
            if said.whole and said.message.malformed:
                words = f"error: the tool call could not be read: {said.message.malformed}"
                lane.messages.append(Message(role="tool", content=words, error=True))
            elif said.whole:
                lane.proposals = [Proposal(call, call, "asked" if self.ask else "free") for call in said.message.tool_calls]


def _sentence(error: Exception) -> str:
    if isinstance(error, AgentAlignError):
        return str(error)
    log.error("a chat broke", exc_info=error)
    return f"something broke here ({type(error).__name__}); the server's log says more."
