"""Where an agent acts: the four methods a team writes, and the environment used where a team wrote none."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from agentalign.environments.task import Task
from agentalign.environments.tool import Tool, run_tool
from agentalign.errors import TasksetError
from agentalign.records.trajectory import Message, ToolCall


class Environment(Protocol):
    """One environment serves one run at a time and must come back to the same state after `reset` and the same calls."""

    def reset(self, task: Task) -> list[Message]:
        """Start the task anew and give the messages that follow the system prompt, usually one from the user."""
        ...

    def call(self, call: ToolCall) -> str:
        """Run one tool call; raise ToolError for what the agent should read."""
        ...

    def reply(self, messages: Sequence[Message]) -> Message | None:
        """The customer's next words after the agent spoke without a call; None ends the run."""
        ...

    def close(self) -> None:
        """Give back whatever the run held."""
        ...


class StatelessEnvironment:
    """Tools without state and a customer who speaks once: the text under `prompt` in the task's data."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self._tools = tools

    def reset(self, task: Task) -> list[Message]:
        """The prompt as the only message."""
        prompt = task.values.get("prompt")
        if not isinstance(prompt, str):
            raise TasksetError(f"task '{task.id}' has no text under `prompt` in its data. Add it, or write an environment.py.")
        return [Message(role="user", content=prompt)]

    def call(self, call: ToolCall) -> str:
        """Run the tool; nothing is remembered."""
        return run_tool(self._tools, call)

    def reply(self, messages: Sequence[Message]) -> Message | None:
        """The customer has nothing more to say."""
        return None

    def close(self) -> None:
        """Nothing is held."""
