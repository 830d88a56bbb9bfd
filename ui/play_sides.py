"""How the sides of a chat act: a turn is written, its calls are answered, and again, until the agent has said its word or needs a person.

Each side at work has a thread, and rests where it needs somebody. The environment is the task's own, in worker processes, one per side.
Surprise: nothing here knows what a person may do when; whoever changes a side holds the lock, and `go` takes it up from there.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from agentalign.environments.taskset import Taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, TasksetError, ToolError
from agentalign.records.base import digest
from agentalign.records.trajectory import Message, StopReason, ToolCall, Trajectory
from agentalign.ui.play_lane import AGAIN_TEMPERATURE, About, Lane, Proposal
from agentalign.ui.play_replay import Replay, opening

if TYPE_CHECKING:
    from agentalign.ui.play_model import Loaded

log = logging.getLogger(__name__)


class Sides:
    """One side or two, with what answers their calls, and the threads in which they act."""

    def __init__(
        self, about: About, taskset: Taskset, versions: Sequence[str], *, source: Trajectory | None, ask: bool, model: "Loaded",
        past: Lane | None = None,
    ) -> None:  # fmt: skip
        """Begin nothing yet.

        Args:
            past: the one side of a chat that branches from another, with what was said before.
        """
        self.lock = threading.RLock()
        self.seen = 0
        """Grows with every change but the text that is being written."""
        self.problem = ""
        """Why nothing could be begun."""
        self.closed = False
        self.lanes = [Lane(version, slot) for slot, version in enumerate(versions)] if past is None else [past]
        self._about, self._ask, self._taskset, self._source, self._model = about, ask, taskset, source, model
        self._replays = [Replay(source) for _ in versions] if source is not None and about.tools_by == "replay" else []
        self._pool = WorkerPool(taskset, len(versions)) if about.tools_by == "live" else None
        self._held: list[str] = []

    @property
    def base(self) -> str:
        """Digest of the tokenizer and template that tokens belong to."""
        return self._model.base

    @property
    def may_rewind(self) -> bool:
        """The world can be brought to an earlier state."""
        return self._pool is None or self._taskset.replayable

    def start(self, words: str) -> None:
        """Set the scene; `words` are the person's first, empty where the task or the recorded run has them."""
        for lane in self.lanes:
            lane.busy = True
        self._thread(self._open, words)

    def halt(self) -> None:
        """Let every side rest where it is."""
        with self.lock:
            for lane in self.lanes:
                if lane.busy:
                    lane.halted = True
                if lane.pen is not None:
                    lane.pen.stop()

    def close(self) -> None:
        """Forget what it holds: workers, and adapters in memory."""
        self.halt()
        with self.lock:
            self.closed = True
            held, self._held = self._held, []
            self._model.release(held)
        if self._pool is not None:
            self._pool.close()

    def go(self, lanes: Sequence[Lane]) -> None:
        """Let these act until each rests. The lock is held."""
        self.seen += 1
        for lane in lanes:
            if not lane.busy:
                lane.busy, lane.halted, lane.problem = True, False, ""
                lane.state = "calling" if lane.proposals else "writing"
                self._thread(self._work, lane)

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name=f"agentalign-chat-{self._about.chat[:8]}", daemon=True).start()

    def _open(self, words: str) -> None:
        try:
            for version in dict.fromkeys(lane.version for lane in self.lanes):
                if self._model.engine().adapters.acquire(version) is not None:
                    with self.lock:
                        self._held.append(version)
            for lane in self.lanes:
                if self._about.branch is not None:
                    self._set_world(lane)
                    continue
                first = self._opening(lane, words)
                with self.lock:
                    lane.messages = first
        except Exception as error:  # noqa: BLE001 - whatever broke, the person is told and the server goes on
            with self.lock:
                self.problem = _sentence(error)
                for lane in self.lanes:
                    self._rest(lane, "failed")
            return
        finally:
            if self.closed:  # it was discarded meanwhile, and what it took since is given back
                self.close()
        for lane in self.lanes:
            if self._about.branch is not None:  # its person has the word
                with self.lock:
                    self._rest(lane, "stopped" if lane.messages and lane.messages[-1].role == "tool" else "ready")
                continue
            self._thread(self._work, lane)

    def _opening(self, lane: Lane, words: str) -> list[Message]:
        prompt = self._taskset.system_prompt
        system = [Message(role="system", content=prompt)] if prompt else []
        own = [Message(role="user", content=words)] if words.strip() else []
        if self._source is not None:
            return list(opening(self._source))
        if self._pool is None or self._about.task is None:
            return [*system, *own]
        said = self._pool.reset(lane.slot, self._about.task)
        lane.has_own_words = bool(own)
        return [*system, *(own or said)]

    def _set_world(self, lane: Lane) -> None:
        """Bring the world to where the messages are: set it up, and ask it once more all that it was asked.

        Raises:
            TasksetError: it does not answer as it did.
        """
        if self._replays and self._source is not None:
            self._replays[lane.slot] = Replay(self._source)
        if self._pool is not None and self._about.task is not None:
            self._pool.reset(lane.slot, self._about.task)
        said = {message.tool_call_id: (message.content, message.error) for message in lane.messages if message.role == "tool"}
        for place, call in lane.asked:
            if call is not None:
                answer = self._answer(lane, call)
                if self._pool is not None and answer != said.get(call.id):
                    raise TasksetError(f"'{call.name}' does not answer as it did, so the world cannot be taken back. Begin another chat.")
            elif self._pool is not None:
                self._pool.reply(lane.slot, lane.messages[:place])
        lane.is_ahead = False

    def _work(self, lane: Lane) -> None:
        try:
            if lane.is_ahead:
                self._set_world(lane)
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
            if lane.halted or self.closed:
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
                asks = self._pool is not None and not lane.has_own_words and (len(lane.messages), None) not in lane.asked
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
        with self.lock:
            lane.asked.append((len(lane.messages), None))
        said = self._pool.reply(lane.slot, lane.messages) if self._pool is not None else None
        with self.lock:
            lane.customer = said

    def _call(self, lane: Lane, proposal: Proposal) -> None:
        """Run a call, or find what came of it, or leave it to a person."""
        with self.lock:
            lane.asked.append((len(lane.messages), proposal.made))
        answer = self._answer(lane, proposal.made)
        with self.lock:
            self.seen += 1
            if answer is None:
                proposal.state = "wanting"
                return
            lane.settle(proposal, answer[0], error=answer[1])
            if self._pool is None:
                lane.note(proposal, "replayed")

    def _answer(self, lane: Lane, call: ToolCall) -> tuple[str, bool] | None:
        """What comes of a call, and whether it is an error; None where a person has to say."""
        if self._pool is not None:
            try:
                return self._pool.call(lane.slot, call), False
            except ToolError as refused:
                return str(refused), True
        recorded = self._replays[lane.slot].answer(call) if self._replays else None
        return None if recorded is None else (recorded.content, recorded.error)

    def _write(self, lane: Lane) -> None:
        from agentalign.ui.play_turn import Pen, Prompt  # torch takes seconds to import

        with self.lock:
            if lane.halted:
                return
            pen = Pen(self._model.engine())
            lane.state, lane.pen, lane.attempt = "writing", pen, lane.attempt + 1
            self.seen += 1
            # Both sides draw alike: what differs between them is the adapter.
            seed = int(digest([self._about.seed, lane.attempt])[:16], 16) >> 1
            about, limits = self._about, self._taskset.limits
            temperature = about.temperature or (AGAIN_TEMPERATURE if lane.rewrites else 0.0)
            prompt = Prompt(lane.version, tuple(lane.messages), about.tools, limits, lane.last, seed, temperature)
        said = pen.write(prompt)
        with self.lock:
            self.seen += 1
            lane.pen = None
            lane.stop = None if said.whole else StopReason.MAX_TOKENS
            if said.message is None:
                lane.halted = said.whole  # nothing was said although there was room: it was stopped
                return
            lane.messages.append(said.message)
            lane.rewrites = False
            if said.tokens is not None:
                lane.turns.append(said.tokens)
            if said.whole and said.message.malformed:
                words = f"error: the tool call could not be read: {said.message.malformed}"
                lane.messages.append(Message(role="tool", content=words, error=True))
            elif said.whole:
                lane.proposals = [Proposal(call, call, "asked" if self._ask else "free") for call in said.message.tool_calls]


def _sentence(error: Exception) -> str:
    if isinstance(error, AgentAlignError):
        return str(error)
    log.error("a chat broke", exc_info=error)
    return f"something broke here ({type(error).__name__}); the server's log says more."
