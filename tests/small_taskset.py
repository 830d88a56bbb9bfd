"""A taskset of a few lines with everything a run can meet: tools, refusals, a second question, broken code."""

from pathlib import Path

from agentalign.environments.taskset import Taskset, load_taskset

FILES = {
    "taskset.yaml": """
name: counter
system_prompt: You count.
replayable: true
limits: {max_turns: 4, max_turn_tokens: 80, max_tokens: 4000, max_seconds: 600, max_call_seconds: 120}
tasks:
  - {id: one, split: train, family: easy, tags: [expert], data: {start: 1}}
  - {id: two, split: train, family: easy, data: {start: 2}}
  - {id: again, split: dev, family: hard, data: {start: 5, again: true}}
  - {id: broken, split: test, family: hard, data: {start: -1}}
""",
    "criteria.yaml": "right:\n  description: Is the total right?\n",
    "tools.py": '''
from agentalign import ToolError, tool


@tool
def add(amount: int) -> str:
    """Add to the counter.

    Args:
        amount: How much.
    """
    return str(amount)


@tool
def crash() -> str:
    """Fail as team code fails."""
    raise RuntimeError("a bug of the team")
''',
    "environment.py": """
from agentalign import Message, ToolError

from .tools import add, crash


class Environment:
    def reset(self, task):
        self.values = task.values
        self.total = self.values["start"]
        if self.total < 0:
            raise RuntimeError("no such counter")
        self.asked = False
        return [Message(role="user", content=f"Add 3 to {self.total}.")]

    def call(self, call):
        if call.name == "add":
            self.total += int(add.call(call.parsed()))
            return f"total: {self.total}"
        if call.name == "crash":
            return crash.call(call.parsed())
        raise ToolError(f"unknown tool '{call.name}'.")

    def reply(self, messages):
        if self.values.get("again") and not self.asked:
            self.asked = True
            return Message(role="user", content="Add 3 again.")
        return None

    def close(self):
        pass
""",
    "expert.py": """
from agentalign import Message, ToolCall


def act(task, messages):
    if task.id == "two":
        raise ValueError("the expert does not know")
    last = messages[-1]
    if last.role == "user":
        return Message(role="assistant", tool_calls=(ToolCall(id="same", name="add", arguments='{"amount": 3}'),))
    return Message(role="assistant", content=last.content)
""",
}


def make_taskset(folder: Path, **changed: str) -> Taskset:
    """Write the taskset under `folder` and load it; `changed` replaces files, their names with _ for the dot."""
    home = folder / "counter"
    home.mkdir()
    for name, text in FILES.items():
        (home / name).write_text(changed.get(name.replace(".", "_"), text).lstrip("\n"), "utf-8")
    return load_taskset(home)
