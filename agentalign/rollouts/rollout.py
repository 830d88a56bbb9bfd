"""Environment + policy -> trajectories, in rounds: every run in the batch takes one turn, then the tools and the customer answer.

A finished run leaves its slot to the next job at once. A run that breaks is a record with `stop_reason` error and the traceback; it never
ends the batch. Results come in the order of the jobs, each as soon as those before it are done.
Surprise: equal seed, jobs and policy give equal runs whatever `batch` is, as long as no run meets its limit of seconds.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import TasksetError, ToolError
from agentalign.records.base import canonical_json, now
from agentalign.records.trajectory import Message, Origin, StopReason, TokenRecord, Trajectory, TurnTokens
from agentalign.rollouts.policy import Policy, PolicyTurn, TurnRequest

NUMBERED = re.compile(r"call_\d{1,9}")


class Job(NamedTuple):
    """One run to make."""

    task: Task
    sample: int = 0
    """Which of several runs of the task."""


class RolloutResult(NamedTuple):
    """A finished run and, where the policy saw them, its tokens."""

    trajectory: Trajectory
    tokens: TokenRecord | None


@dataclass
class _Run:
    """A run under way."""

    job: Job
    slot: int
    messages: list[Message] = field(default_factory=list)
    turns: list[TurnTokens] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    stop: StopReason | None = None
    error: str = ""
    by: str = ""

    def end(self, stop: StopReason, error: str = "") -> None:
        self.stop, self.error = stop, error


def rollout(
    taskset: Taskset,
    policy: Policy,
    jobs: Sequence[Job],
    *,
    seed: int = 0,
    origin_kind: Literal["rollout", "expert", "correction"] = "rollout",
    pool: Pool,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[RolloutResult]:
    """Make the runs; they are made while the iterator is read.

    Args:
        seed: Recorded in each run's origin. The policy was given its own seed: use the same.
        pool: Runs the team's code; slots 0 .. batch - 1 of it are used.
        batch: How many runs are under way at once; None: what suits the policy.
        progress: Told (done, total) whenever a run ends.

    Raises:
        TasksetError: the taskset has neither tools nor environment.
        ModelError: the policy can go on with none of its runs, such as one behind a server that refuses the key.
    """
    if not taskset.has_environment:
        raise TasksetError(f"taskset '{taskset.name}' has criteria only: its runs can be rated, not made. Add tools.py or environment.py.")
    batch = policy.runs_at_once(taskset.limits.max_tokens) if batch is None else batch
    if batch < 1:
        raise TasksetError(f"batch is {batch}, but at least one run must be under way. Give 1 or more.")
    return _rounds(taskset, policy, list(jobs), Origin(kind=origin_kind, reference=policy.name, seed=seed), pool, batch, progress)


def _rounds(
    taskset: Taskset, policy: Policy, jobs: list[Job], origin: Origin, pool: Pool, batch: int, progress: Callable[[int, int], None] | None
) -> Iterator[RolloutResult]:
    free = list(range(min(batch, len(jobs))))[::-1]
    waiting = list(enumerate(jobs))[::-1]
    active: dict[int, _Run] = {}
    finished: dict[int, RolloutResult] = {}
    given = 0
    try:
        while active or waiting:
            while waiting and free:
                number, job = waiting.pop()
                active[number] = _start(taskset, pool, job, free.pop())
            going = [run for run in active.values() if run.stop is None]
            turns = policy.act([_request(taskset, run) for run in going]) if going else []
            for run, turn in zip(going, turns, strict=True):
                _advance(taskset, pool, run, turn)
            for number, run in [(n, r) for n, r in active.items() if r.stop is not None]:
                finished[number] = _result(taskset, run, origin, policy.tokens_digest)
                del active[number]
                free.append(run.slot)
                policy.finish(run.slot)
                pool.release(run.slot)
                if progress:
                    progress(len(jobs) - len(waiting) - len(active), len(jobs))
            while given in finished:
                yield finished.pop(given)
                given += 1
    finally:
        for run in active.values():
            policy.finish(run.slot)
            pool.release(run.slot)


def _start(taskset: Taskset, pool: Pool, job: Job, slot: int) -> _Run:
    run = _Run(job, slot)
    if taskset.system_prompt:
        run.messages.append(Message(role="system", content=taskset.system_prompt))
    try:
        run.messages += pool.reset(slot, job.task)
    except TasksetError as error:
        run.end(StopReason.ERROR, str(error))
    return run


def _request(taskset: Taskset, run: _Run) -> TurnRequest:
    limits = taskset.limits
    return TurnRequest(
        run.slot, run.job.task, run.job.sample, tuple(run.messages), taskset.tools, limits.max_turn_tokens, limits.max_tokens
    )


def _advance(taskset: Taskset, pool: Pool, run: _Run, turn: PolicyTurn) -> None:
    """Add the agent's message, then what comes back for it, and see whether the run ends here."""
    if turn.message is None:
        run.end(StopReason.ERROR if turn.error else StopReason.MAX_TOKENS, turn.error)
        return
    message = numbered(turn.message, run.messages)
    run.messages.append(message)
    run.by = run.by or turn.by
    if turn.tokens:
        run.turns.append(turn.tokens)
    if not turn.stopped:
        run.end(StopReason.MAX_TOKENS)
        return
    try:
        _answer(pool, run, message)
    except TasksetError as error:
        run.end(StopReason.ERROR, str(error))
    if run.stop is None and sum(m.role == "assistant" for m in run.messages) >= taskset.limits.max_turns:
        run.end(StopReason.MAX_TURNS)
    if run.stop is None and time.monotonic() - run.started > taskset.limits.max_seconds:
        run.end(StopReason.MAX_SECONDS)


def _answer(pool: Pool, run: _Run, message: Message) -> None:
    if message.malformed:
        words = f"error: the tool call could not be read: {message.malformed}"
        run.messages.append(Message(role="tool", content=words, error=True))
    for call in message.tool_calls:
        try:
            result = Message(role="tool", content=pool.call(run.slot, call), tool_call_id=call.id, name=call.name)
        except ToolError as error:
            result = Message(role="tool", content=str(error), tool_call_id=call.id, name=call.name, error=True)
        run.messages.append(result)
    if message.malformed or message.tool_calls:
        return
    reply = pool.reply(run.slot, run.messages)
    if reply is None:
        run.end(StopReason.ANSWERED)
    else:
        run.messages.append(reply)


def numbered(message: Message, before: Sequence[Message]) -> Message:
    """Call ids counted over the run, past those that stand in it: what experts and servers give need not be unique there."""
    ids = [call.id for one in before for call in one.tool_calls]
    first = max([len(ids), *(int(id[5:]) + 1 for id in ids if NUMBERED.fullmatch(id))])
    calls = tuple(call.model_copy(update={"id": f"call_{first + i}"}) for i, call in enumerate(message.tool_calls))
    return message.model_copy(update={"tool_calls": calls}) if calls else message


def _result(taskset: Taskset, run: _Run, origin: Origin, tokens_digest: str) -> RolloutResult:
    task = run.job.task
    trajectory = Trajectory(
        taskset=taskset.name,
        messages=tuple(run.messages),
        tools=taskset.tools,
        origin=origin.model_copy(update={"task": task.id, "sample": run.job.sample, "reference": run.by or origin.reference}),
        task_id=task.id,
        family=task.family,
        split=task.split,
        stop_reason=run.stop or StopReason.UNKNOWN,
        error=run.error,
        seconds=time.monotonic() - run.started,
        metadata=canonical_json({"task": json.loads(task.data), "tags": list(task.tags), "unseen": task.unseen}),
        created=now(),
    )
    tokens = TokenRecord(trajectory=trajectory.id, base=tokens_digest, turns=tuple(run.turns)) if run.turns else None
    return RolloutResult(trajectory, tokens)
