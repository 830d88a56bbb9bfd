"""One thread owns the model; requests join its batch between two steps, and what is written comes out as events.

Nothing else touches the network. Handing in, cancelling and adding an adapter are notes in a queue that the thread reads before each step.
Surprise: an exception does not say whose fault it was, whether a request was on its way into the batch or in it. So the batch forgets what
it had computed, each request is run alone until it has written a token, and the one that fails alone fails; the others go on from the very
tokens they had. Where all fail alone and the device itself answers no more, the thread ends: a server that can do nothing says so. Whatever
ends the thread, every request is told.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from agentalign.errors import AgentAlignError, ModelError
from agentalign.training.continuous import Batch, Work, Written
from agentalign.training.decode_attention import NAME

log = logging.getLogger(__name__)

MAX_BREAKS = 3
"""How often a request may be in a batch that breaks though each of its requests works alone."""
IDLE_SECONDS = 0.5
"""How often a thread with nothing to do looks at its deadlines."""


class BusyError(AgentAlignError):
    """More requests wait than may wait."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a request."""

    written: Written | None = None
    problem: str = ""
    """Why it failed; then it is over."""
    late: bool = False
    """It failed because its time was over."""

    @property
    def last(self) -> bool:
        """Nothing more will come."""
        return self.written is None or bool(self.written.end)


@dataclass
class Job:
    """A request on its way through the worker."""

    work: Work
    deadline: float
    """By `time.monotonic`."""
    tell: Callable[[Event], None]
    """Called by the worker's thread; must not wait."""
    leader: "Job | None" = None
    """Gets its row first, and this one once that has computed the prompt of both."""
    cancelled: bool = False
    over: bool = False
    breaks: int = field(default=0)


class Worker:
    """The thread, its queue and its batch."""

    def __init__(self, batch: Batch, *, max_waiting: int) -> None:
        self._batch, self._max_waiting = batch, max_waiting
        self._waiting: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}
        self._changes: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._next = 0
        self._thread = threading.Thread(target=self._run, name="agentalign-worker", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, seconds: float = 10) -> None:
        """Fail what is left and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether anything handed in would be worked on."""
        return self._thread.is_alive() and not self._stopping

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a row."""
        return len(self._jobs)

    def next_key(self) -> int:
        """A new name for a request."""
        with self._wake:
            self._next += 1
            return self._next

    def submit(self, *jobs: Job) -> None:
        """Hand requests in, all or none; BusyError where too many wait."""
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise BusyError("the server is stopping.")
            if len(self._waiting) >= self._max_waiting:
                raise BusyError(f"{len(self._waiting)} requests wait already, which is as many as may. Try again soon.")
            self._waiting.extend(jobs)
            self._wake.notify()

    def ahead(self, job: Job) -> int | None:
        """How many requests get a row before this one; None where it has one."""
        with self._wake:
            return self._waiting.index(job) if job in self._waiting else None

    def change(self, change: Callable[[], None]) -> None:
        """Run something between two steps, such as putting an adapter in memory; returns when it is done, or raises what it raised."""
        done, failed = threading.Event(), list[Exception]()

        def run() -> None:
            try:
                change()
            except Exception as error:  # noqa: BLE001 - whatever broke is its caller's, who waits
                failed.append(error)
            done.set()

        with self._wake:
            self._changes.append(run)
            self._wake.notify()
        while not done.wait(1):
            if not self.alive:
                raise BusyError("the server is stopping.")
        if failed:
            raise failed[0]

    def cancel(self, job: Job) -> None:
        """Nobody waits for this any more."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            with self._batch.generator.ready(NAME):
                while not self._stopping:
                    self._wait()
                    self._take_changes()
                    self._tidy()
                    if not self._worked():
                        self._mend()
        finally:
            with self._wake:
                self._stopping = True
                left = [*self._jobs.values(), *self._waiting]
                self._waiting.clear()
            for job in left:
                self._end(job, problem="the server is stopping.")

    def _worked(self) -> bool:
        """Do a step; False where something broke. Only outside of the handler is that memory free again which the broken step held."""
        try:
            self._admit()
            if self._jobs:
                self._deliver(self._batch.step())
        except Exception:  # whatever broke, the server goes on
            log.exception("a batch of %d requests broke; each is run alone now", len(self._jobs))
            return False
        return True

    def _wait(self) -> None:
        with self._wake:
            if not (self._jobs or self._waiting or self._changes or self._stopping):
                self._wake.wait(IDLE_SECONDS)

    def _take_changes(self) -> None:
        while self._changes:
            self._changes.popleft()()

    def _tidy(self) -> None:
        """Leave what nobody waits for, and what took too long."""
        now = time.monotonic()
        for key, job in list(self._jobs.items()):
            if job.cancelled or now > job.deadline:
                self._batch.drop(key)
                self._end(job, late=not job.cancelled)
        with self._wake:
            over = [job for job in self._waiting if job.cancelled or now > job.deadline]
            for job in over:
                self._waiting.remove(job)
        for job in over:
            self._end(job, late=not job.cancelled)

    def _end(self, job: Job, *, late: bool = False, problem: str = "") -> None:
        self._jobs.pop(job.work.key, None)
        job.over = True
        job.tell(Event(problem=problem or ("the request took longer than a request may take." if late else "cancelled"), late=late))

    def _admit(self) -> None:
        while self._batch.room:
            with self._wake:
                job = next((job for job in self._waiting if _may_begin(job)), None)
                if job is None:
                    return
                self._waiting.remove(job)
            self._jobs[job.work.key] = job
            self._batch.admit(job.work)

    def _deliver(self, written: list[Written]) -> None:
        for one in written:
            job = self._jobs[one.key]
            if one.problem:
                self._end(job, problem=one.problem)
                continue
            if one.end:
                job.over = True
                del self._jobs[one.key]
            job.tell(Event(one))

    def _mend(self) -> None:
        """Find out whose fault it was."""
        self._deliver(self._batch.take())
        suspects = [self._jobs[work.key] for work in self._batch.clear() if work.key in self._jobs]
        # An error on the way into the batch leaves a request that has no row.
        suspects += [job for job in self._jobs.values() if job not in suspects]
        sound = [self._sound_alone(job) for job in suspects]
        self._batch.clear()
        if suspects and not any(sound) and not answers(self._batch.generator.model.device):
            raise ModelError("the device answers no more, so nothing can be computed in this process. Start the server anew.")
        for job in suspects:
            # Where one fails alone, the others had no part in it.
            job.breaks += all(sound)
            if job.work.key in self._jobs:
                self._join_again(job)

    def _join_again(self, job: Job) -> None:
        if job.breaks > MAX_BREAKS:
            self._end(job, problem="the batch of this request broke again and again.")
            return
        try:
            self._batch.admit(job.work)
        except Exception as error:  # noqa: BLE001 - whatever broke, the others go on
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        log.error("a request failed", exc_info=error)
        self._end(job, problem=f"the model could not work on this request ({type(error).__name__}).")

    def _sound_alone(self, job: Job) -> bool:
        """Run a request alone until it has written a token; False where it failed."""
        before = len(job.work.ids)
        try:
            self._batch.clear()
            self._batch.admit(job.work)
            while len(job.work.ids) == before and job.work.key in self._jobs:
                self._deliver(self._batch.step())
        except Exception as error:  # noqa: BLE001 - it is this request's fault, and its end
            self._deliver(self._batch.take())
            if job.work.key in self._jobs:
                self._fail(job, error)
            return False
        return True


def answers(device: torch.device) -> bool:
    """Whether a device computes still: after a failed assertion on a GPU, no call of the process ever does."""
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return False
    return True


def _may_begin(job: Job) -> bool:
    leader = job.leader
    return leader is None or leader.over or bool(leader.work.ids)
