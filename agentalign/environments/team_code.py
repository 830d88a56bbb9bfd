"""A team's Python, loaded from its folder by path, and run in this process.

The folder becomes a package under a name of its own, so files import each other (`from .tools import ...`) and two tasksets with a
`tools.py` each do not meet. `TeamCode` runs environments, experts and checks here; `WorkerPool` offers the same methods in processes
that can be killed, and each of those processes serves one `TeamCode`.
"""

import contextlib
import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

from pydantic import JsonValue

from agentalign.environments.environment import Environment, StatelessEnvironment
from agentalign.environments.task import Task
from agentalign.environments.tool import Tool
from agentalign.errors import TasksetError, ToolError
from agentalign.records.trajectory import Message, ToolCall, Trajectory

T = TypeVar("T")
Answer = bool | float | None | dict[int, float]
"""What a check returns: a value, None for "does not apply", or values per step index."""


class TeamCodeError(TasksetError):
    """Team code raised something other than ToolError, or did not answer in time; the text ends with its traceback."""


class Pool(Protocol):
    """Runs team code: in this process (`TeamCode`) or in killable ones (`WorkerPool`). Slots are any numbers from 0."""

    def reset(self, slot: int, task: Task) -> list[Message]:
        """Start a task in a slot: the messages after the system prompt."""
        ...

    def call(self, slot: int, call: ToolCall) -> str:
        """Run one tool call; ToolError is for the agent, TeamCodeError ends the run."""
        ...

    def reply(self, slot: int, messages: Sequence[Message]) -> Message | None:
        """The customer's next words, or None."""
        ...

    def expert(self, slot: int, task: Task, messages: Sequence[Message]) -> Message:
        """What the expert would do next."""
        ...

    def check(self, function: str, trajectory: Trajectory, task: Task | None) -> Answer:
        """Run one function of criteria.py."""
        ...

    def release(self, slot: int) -> None:
        """The run in this slot is over."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


def module(folder: Path, file: str) -> ModuleType:
    """Import `<folder>/<file>` as part of the folder's own package; TasksetError with the traceback where it cannot be."""
    package = "agentalign_taskset_" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    if package not in sys.modules:
        parent = ModuleType(package, f"The team's files in {folder}.")
        parent.__path__ = [str(folder.resolve())]
        sys.modules[package] = parent
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is talk, and stdout may hold a command's answer
            return importlib.import_module(f"{package}.{file.removesuffix('.py')}")
    except TasksetError:
        raise
    except Exception:  # noqa: BLE001 - it is the team's
        raise TeamCodeError(f"{folder / file} cannot be imported. Its traceback:\n{_team_traceback()}") from None


def tools(folder: Path) -> dict[str, Tool]:
    """The tools of tools.py in the order they are written; none where the file is absent."""
    if not (folder / "tools.py").is_file():
        return {}
    found = [value for value in vars(module(folder, "tools.py")).values() if isinstance(value, Tool)]
    if not found:
        raise TasksetError(f"{folder / 'tools.py'} has no tools. Put @tool above each function that the agent may call, or delete it.")
    return {tool.name: tool for tool in found}


def generate(folder: Path, file: str, settings: Mapping[str, JsonValue]) -> list[Task]:
    """Run the folder's task generator."""
    function = _function(folder, file, "generate")
    with contextlib.redirect_stdout(sys.stderr):
        tasks = _guarded(f"{folder / file}: generate", lambda: list(function(**settings)))
    if not all(isinstance(task, Task) for task in tasks):
        raise TasksetError(f"{folder / file}: generate must return a list of agentalign Task records.")
    return cast(list[Task], tasks)


class TeamCode:
    """Environments, expert and checks of one taskset folder, in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environments: dict[int, Environment] = {}

    def load(self) -> None:
        """Import the team's files now, so that no call waits for it; what cannot be imported is told when it is needed."""
        for file in ("tools.py", "environment.py", "criteria.py", "expert.py"):
            if (self._folder / file).is_file():
                with contextlib.suppress(TasksetError):
                    module(self._folder, file)

    def reset(self, slot: int, task: Task) -> list[Message]:
        """See Pool.reset."""
        if slot not in self._environments:
            self._environments[slot] = _guarded(f"{self._folder}: Environment()", self._new_environment)
        environment = self._environments[slot]
        try:
            opening = _guarded(f"{self._folder}: reset of task '{task.id}'", lambda: environment.reset(task))
            if not isinstance(opening, list) or not all(isinstance(message, Message) for message in opening):
                raise TeamCodeError(f"{self._folder}: reset must return a list of Message, e.g. [Message(role='user', content=...)].")
        except (TeamCodeError, TasksetError):
            # Nobody will release a slot that holds no run; the next task gets an environment of its own.
            with contextlib.suppress(TeamCodeError, TasksetError):
                self.release(slot)
            raise
        return opening

    def call(self, slot: int, call: ToolCall) -> str:
        """See Pool.call."""
        result = _guarded(f"{self._folder}: tool '{call.name}'", lambda: self._environment(slot).call(call), allowed=(ToolError,))
        if not isinstance(result, str):
            raise TeamCodeError(f"{self._folder}: tool '{call.name}' returned {type(result).__name__}; call must return text.")
        return result

    def reply(self, slot: int, messages: Sequence[Message]) -> Message | None:
        """See Pool.reply."""
        words = _guarded(f"{self._folder}: reply", lambda: self._environment(slot).reply(messages))
        if words is not None and not isinstance(words, Message):
            raise TeamCodeError(f"{self._folder}: reply returned {type(words).__name__}; it must return a Message or None.")
        return words

    def expert(self, slot: int, task: Task, messages: Sequence[Message]) -> Message:
        """See Pool.expert."""
        act = _function(self._folder, "expert.py", "act")
        message = _guarded(f"{self._folder}: expert on task '{task.id}'", lambda: act(task, messages))
        if not isinstance(message, Message) or message.role != "assistant":
            raise TeamCodeError(f"{self._folder / 'expert.py'}: act must return a Message of role assistant.")
        return message

    def check(self, function: str, trajectory: Trajectory, task: Task | None) -> Answer:
        """See Pool.check."""
        check = _function(self._folder, "criteria.py", function)
        answer = _guarded(f"{self._folder}: check '{function}' of run {trajectory.id}", lambda: check(trajectory, task))
        if isinstance(answer, dict) and all(isinstance(k, int) and isinstance(v, bool | int | float) for k, v in answer.items()):
            return {step: float(value) for step, value in answer.items()}
        if answer is None or isinstance(answer, bool | int | float):
            return cast(Answer, answer)
        raise TeamCodeError(
            f"{self._folder}: check '{function}' returned {answer!r:.80}; a bool, a number, None, or numbers per step are answers."
        )

    def release(self, slot: int) -> None:
        """See Pool.release."""
        environment = self._environments.pop(slot, None)
        if environment is not None:
            _guarded(f"{self._folder}: close", environment.close)

    def close(self) -> None:
        """See Pool.close."""
        for slot in list(self._environments):
            self.release(slot)

    def __enter__(self) -> "TeamCode":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self, slot: int) -> Environment:
        if slot not in self._environments:
            raise TasksetError(f"{self._folder}: slot {slot} was used before it was reset to a task.")
        return self._environments[slot]

    def _new_environment(self) -> Environment:
        if (self._folder / "environment.py").is_file():
            return cast(Environment, _function(self._folder, "environment.py", "Environment")())
        found = tools(self._folder)
        if not found:
            raise TasksetError(f"{self._folder} has neither environment.py nor tools.py: its runs can be rated, but none can be made.")
        return StatelessEnvironment(found)


def _function(folder: Path, file: str, name: str) -> Callable[..., Any]:
    if not (folder / file).is_file():
        raise TasksetError(f"{folder} has no {file}, where `{name}` is looked for. Write it, or do without what needs it.")
    function = getattr(module(folder, file), name, None)
    if not callable(function):
        raise TasksetError(f"{folder / file} has no function or class `{name}`. Write it, or correct the name.")
    return cast(Callable[..., Any], function)


def _guarded(what: str, run: Callable[[], T], *, allowed: tuple[type[Exception], ...] = ()) -> T:
    passed_on: tuple[type[Exception], ...] = (TasksetError, *allowed)
    try:
        return run()
    except passed_on:
        raise
    except Exception:  # noqa: BLE001 - it is the team's
        raise TeamCodeError(f"{what} failed. Its traceback:\n{_team_traceback()}") from None


def _team_traceback() -> str:
    """The current exception's traceback without the frames of this file."""
    kind, error, frames = sys.exc_info()
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(kind, error, frames)).strip()
