"""One turn of a chat, written by the loaded model and seen while it is written.

Prompt and reading are those of a rollout: a conversation goes on from the very tokens that were sampled, and the base's one parser reads
them. So a chat that is kept has its tokens, like any run. Surprise: what is shown while a turn is written is only what stays in it;
half a call is told as "writing a call".
"""

import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from agentalign.deployment.serving.engine import Engine
from agentalign.deployment.serving.worker import BusyError, Event, Job
from agentalign.environments.taskset import Limits
from agentalign.errors import ModelError
from agentalign.records.trajectory import Message, TurnTokens
from agentalign.training.continuous import Work, Written
from agentalign.training.sampling import Sampler
from agentalign.training.streaming import Unfolding, certain_text

TURN_SECONDS = 900
"""How long a turn may take, waiting included."""


class Prompt(NamedTuple):
    """What a turn is written for."""

    version: str
    """"name@version", which is in memory, or "base"."""
    messages: tuple[Message, ...]
    tools: str
    limits: Limits
    last: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Context and completion of the last turn, where that stands in `messages` as it was sampled."""
    seed: int
    temperature: float


class Said(NamedTuple):
    """A turn that is over."""

    message: Message | None
    """None where it was stopped, or there was no room for one."""
    tokens: TurnTokens | None = None
    whole: bool = True
    """False where it was cut at a limit of tokens."""


class Pen:
    """A turn while it is written. Read and stopped by other threads than the one that writes."""

    def __init__(self, engine: Engine) -> None:
        self.text = ""
        """What will stay of it."""
        self.count = 0
        """Tokens so far."""
        self.stopped = False
        self._engine = engine
        self._job: Job | None = None
        self._lock = threading.Lock()

    @property
    def ahead(self) -> int | None:
        """How many turns are written first; None where this one is under way."""
        job = self._job
        return None if job is None else self._engine.worker.ahead(job)

    def stop(self) -> None:
        """Nothing more is to be written."""
        with self._lock:
            self.stopped = True
            if self._job is not None:
                self._engine.worker.cancel(self._job)

    def write(self, prompt: Prompt) -> Said:
        """Write the turn; returns when it is over.

        Raises:
            TemplateError: the base's template refuses these messages.
            ModelError: the model broke, or was taken away.
        """
        engine, limits = self._engine, prompt.limits
        context = _context(engine, prompt)
        budget = min(limits.max_turn_tokens, min(limits.max_tokens, engine.generator.limit) - len(context))
        if budget < 1:
            return Said(None, whole=False)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        work = Work(
            key=engine.worker.next_key(), context=context, adapter=None if prompt.version == "base" else prompt.version, budget=budget,
            sampler=Sampler(prompt.temperature), seed=prompt.seed,
        )  # fmt: skip
        job = Job(work, time.monotonic() + TURN_SECONDS, events.put)
        with self._lock:
            if self.stopped:
                return Said(None)
            try:
                engine.worker.submit(job)
            except BusyError as error:
                raise ModelError(f"the model takes no more: {error}") from None
            self._job = job
        written = self._watch(events)
        if written is None:
            return Said(None)
        ids = tuple(one.token for one in written)
        message = engine.dialect.parse_ids(ids, first_call=sum(len(message.tool_calls) for message in prompt.messages))
        tokens = TurnTokens(
            message_index=len(prompt.messages), context=tuple(context), completion=ids, logprobs=tuple(one.logprob for one in written)
        )  # fmt: skip
        return Said(message, tokens, whole=written[-1].end == "stop")

    def _watch(self, events: "queue.SimpleQueue[Event]") -> list[Written] | None:
        """Every token until the last; None where the turn was stopped."""
        dialect, written = self._engine.dialect, list[Written]()
        unfolding = Unfolding(dialect.decode)
        while True:
            event = events.get()
            if event.written is None:
                if self.stopped:
                    return None
                raise ModelError(f"the turn could not be written: {event.problem}")
            written.append(event.written)
            self.count = len(written)
            if event.written.token not in dialect.stop_ids:
                self.text = certain_text(dialect.form, unfolding.add(event.written.token))
            if event.last:
                return written


def _context(engine: Engine, prompt: Prompt) -> Sequence[int]:
    ids = engine.dialect.continue_ids(*prompt.last, prompt.messages, prompt.tools) if prompt.last else None
    return engine.dialect.context_ids(prompt.messages, prompt.tools) if ids is None else ids
