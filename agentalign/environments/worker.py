"""Workers: team code in processes of its own, which can be killed when a call hangs.

A pool has few processes, each holding many environments; slot k lives in process k modulo their number. Requests and answers are JSON lines
over a pipe. A call that does not answer in time ends its process, and only its own run ends with an error: the other slots of that process
are rebuilt by `reset` and the same calls when they are next used, where the taskset says `replayable: true`.
Surprise: what team code prints goes to stderr; the pipe has its own descriptor. A worker whose parent is gone ends at once.
"""

import contextlib
import json
import logging
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import JsonValue, ValidationError

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Answer, TeamCode, TeamCodeError
from agentalign.errors import TasksetError, ToolError
from agentalign.records.trajectory import Message, ToolCall, Trajectory

LOG = logging.getLogger(__name__)
START_SECONDS = 120
"""Time for a worker to import the team's files."""
_FASTER = "Make it faster, or raise limits.max_call_seconds."
MAX_ANSWER = 8_000_000
"""Longest answer of team code, in characters of JSON."""


@dataclass
class _Slot:
    """What it takes to rebuild a run's environment."""

    task: Task
    generation: int
    """Of the process that holds the environment; an older one is gone."""
    requests: list[dict[str, JsonValue]] = field(default_factory=list)


class WorkerPool:
    """Runs a taskset's team code in killable processes. Safe to call from several threads; one process answers one call at a time."""

    def __init__(self, taskset: Taskset, size: int = 2, seconds: float | None = None) -> None:
        """Start nothing yet.

        Args:
            size: number of processes, at most one per core; slots are any numbers from 0.
            seconds: time for one call; the taskset's max_call_seconds where left out.
        """
        self._taskset = taskset
        self.seconds = taskset.limits.max_call_seconds if seconds is None else seconds
        count = max(1, min(size, os.cpu_count() or 1))
        self._processes = [_Process(taskset.folder, taskset.limits.max_memory_mb) for _ in range(count)]
        self._slots: dict[int, _Slot] = {}
        self._next = 0

    def reset(self, slot: int, task: Task) -> list[Message]:
        """See Pool.reset."""
        process = self._process(slot)
        with process.lock:
            self._slots.pop(slot, None)
            opening = process.ask({"do": "reset", "slot": slot, "task": _dump(task)}, self.seconds)
            self._slots[slot] = _Slot(task, process.generation)
        return [Message.model_validate(message) for message in opening]

    def call(self, slot: int, call: ToolCall) -> str:
        """See Pool.call."""
        return str(self._act(slot, {"do": "call", "slot": slot, "call": _dump(call)}))

    def reply(self, slot: int, messages: Sequence[Message]) -> Message | None:
        """See Pool.reply."""
        words = self._act(slot, {"do": "reply", "slot": slot, "messages": [_dump(message) for message in messages]})
        return None if words is None else Message.model_validate(words)

    def expert(self, slot: int, task: Task, messages: Sequence[Message]) -> Message:
        """See Pool.expert."""
        process = self._process(slot)
        request: dict[str, JsonValue] = {"do": "expert", "slot": slot, "task": _dump(task), "messages": [_dump(m) for m in messages]}
        with process.lock:
            return Message.model_validate(process.ask(request, self.seconds))

    def check(self, function: str, trajectory: Trajectory, task: Task | None) -> Answer:
        """See Pool.check."""
        self._next += 1
        process = self._process(self._next)
        request: dict[str, JsonValue] = {
            "do": "check",
            "function": function,
            "trajectory": _dump(trajectory),
            "task": None if task is None else _dump(task),
        }
        with process.lock:
            answer = process.ask(request, self.seconds)
        # JSON has no integer keys: values per step come as pairs.
        return {int(step): float(value) for step, value in answer} if isinstance(answer, list) else answer

    def release(self, slot: int) -> None:
        """See Pool.release."""
        process, known = self._process(slot), self._slots.pop(slot, None)
        with process.lock:
            if known and known.generation == process.generation:
                # The run is over and whole; that its environment could not be closed is told, but no reason to lose it.
                try:
                    process.ask({"do": "release", "slot": slot}, self.seconds)
                except TeamCodeError as error:
                    LOG.warning("%s", error)

    def close(self) -> None:
        """End all workers, for good: whoever still asks, in a thread of its own, starts none that nobody would end."""
        self._slots.clear()
        for process in self._processes:
            process.is_over = True
        for process in self._processes:
            with process.lock:
                process.end()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _process(self, slot: int) -> "_Process":
        return self._processes[slot % len(self._processes)]

    def _act(self, slot: int, request: dict[str, JsonValue]) -> Any:
        process = self._process(slot)
        with process.lock:
            known = self._slots.get(slot)
            if known is None:
                raise TasksetError(f"slot {slot} was used before it was reset to a task.")
            if known.generation != process.generation:
                self._rebuild(process, slot, known)
            known.requests.append(request)
            return process.ask(request, self.seconds)

    def _rebuild(self, process: "_Process", slot: int, known: _Slot) -> None:
        if not self._taskset.replayable:
            raise TeamCodeError(
                f"the worker that held this run was ended by another run's call, and taskset '{self._taskset.name}' does not say "
                "`replayable: true`. Run it with one run per worker, or make its state replayable."
            )
        process.ask({"do": "reset", "slot": slot, "task": _dump(known.task)}, self.seconds)
        for request in known.requests:
            with contextlib.suppress(ToolError):
                process.ask(request, self.seconds)
        known.generation = process.generation


class _Process:
    """One worker process; started on first use and again after it was killed. `lock` is held by whoever talks to it."""

    def __init__(self, folder: Path, memory_mb: int) -> None:
        self._command = [sys.executable, "-P", "-m", "agentalign.environments.worker", str(folder), str(memory_mb)]
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self.generation = 0
        self.is_over = False
        """Its pool was closed."""
        self.lock = threading.RLock()

    def ask(self, request: dict[str, JsonValue], seconds: float) -> Any:
        """Send a request and wait for its answer; kills the process where none comes in time."""
        child = self._started()
        what = f"{self._folder}: {_what(request)}"
        line = self._exchange(child, json.dumps(request).encode() + b"\n", seconds, what)
        answer = json.loads(line)
        if "tool_error" in answer:
            raise ToolError(answer["tool_error"])
        if "team_error" in answer:
            raise TeamCodeError(answer["team_error"])
        if "taskset_error" in answer:
            raise TasksetError(answer["taskset_error"])
        return answer["value"]

    def end(self) -> None:
        """End the process and everything that it started."""
        child, self._child = self._child, None
        if child is None:
            return
        # Generations only grow: whatever the process held is gone.
        self.generation += 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self.is_over:
            raise TasksetError(f"{self._folder}: its workers were ended for good, and cannot be asked. Open another pool.")
        if self._child is None:
            package_root = str(Path(__file__).parents[2])
            paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0, start_new_session=True
            )
            self._rest = b""
            self._exchange(self._child, b"", START_SECONDS, f"{self._folder}: importing the team's files", "Do less on import.")
        return self._child

    def _exchange(self, child: "subprocess.Popen[bytes]", request: bytes, seconds: float, what: str, advice: str = _FASTER) -> bytes:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        try:
            self._write(child.stdin, request, deadline)
            return self._read_line(child.stdout, deadline)
        except TimeoutError:
            self.end()
            raise TeamCodeError(f"{what} did not answer within {seconds:g} s, so its worker was ended. {advice}") from None
        except (EOFError, BrokenPipeError):
            self.end()
            code = child.returncode
            raise TeamCodeError(
                f"{what} ended its worker (exit code {code}). Team code must not exit, crash, or outgrow its memory."
            ) from None
        except BaseException:
            self.end()  # interrupted between question and answer: the next question would get this one's
            raise

    def _write(self, pipe: IO[bytes], data: bytes, deadline: float) -> None:
        # The worker reads in a thread of its own, so this blocks only where the worker as a whole stands still.
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [pipe], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            view = view[os.write(pipe.fileno(), view[: select.PIPE_BUF]) :]

    def _read_line(self, pipe: IO[bytes], deadline: float) -> bytes:
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                raise EOFError
            parts.append(chunk)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def _what(request: dict[str, JsonValue]) -> str:
    call, task = request.get("call"), request.get("task")
    if isinstance(call, dict):
        return f"tool '{call['name']}'"
    name = f"check '{request['function']}'" if "function" in request else str(request["do"])
    return f"{name} of task '{task['id']}'" if isinstance(task, dict) else name


def _dump(record: Task | Message | ToolCall | Trajectory) -> JsonValue:
    value: JsonValue = record.model_dump(mode="json", exclude_defaults=True)
    return value


def _answer(code: TeamCode, request: dict[str, Any]) -> JsonValue:
    """In the worker: do what was asked."""
    task = Task.model_validate(request["task"]) if request.get("task") else None
    messages = [Message.model_validate(message) for message in request.get("messages", ())]
    slot = int(request.get("slot", 0))
    match request["do"]:
        case "reset" if task:
            return [_dump(message) for message in code.reset(slot, task)]
        case "call":
            return code.call(slot, ToolCall.model_validate(request["call"]))
        case "reply":
            words = code.reply(slot, messages)
            return None if words is None else _dump(words)
        case "expert" if task:
            return _dump(code.expert(slot, task, messages))
        case "check":
            answer = code.check(request["function"], Trajectory.model_validate(request["trajectory"]), task)
            return [[step, value] for step, value in answer.items()] if isinstance(answer, dict) else answer
        case "release":
            code.release(slot)
    return None


def _serve(folder: Path, memory_mb: int) -> None:
    """The worker's life: read a request, do it, write the answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Team code may print and read as it likes: its stdout is our stderr, its stdin is empty.
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    code = TeamCode(folder)
    code.load()
    line = b""
    while True:
        answers.write(line + b"\n")
        answers.flush()
        request = json.loads(inbox.get())
        answer: dict[str, JsonValue]
        try:
            answer = {"value": _answer(code, request)}
        except ToolError as error:
            answer = {"tool_error": str(error)}
        except TeamCodeError as error:
            answer = {"team_error": str(error)}
        except TasksetError as error:
            answer = {"taskset_error": str(error)}
        except ValidationError as error:
            answer = {"team_error": f"{_what(request)}: the worker was sent a record that cannot be read. {error}"}
        line = json.dumps(answer).encode()
        if len(line) > MAX_ANSWER:
            line = json.dumps(
                {"team_error": f"{_what(request)} answered with {len(line):,} characters; {MAX_ANSWER:,} are allowed."}
            ).encode()


def _listen(requests: IO[bytes], inbox: "queue.SimpleQueue[bytes]") -> None:
    for line in requests:
        inbox.put(line)
    # The parent is gone or wants no more; whatever team code is doing, it ends here.
    os._exit(0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
