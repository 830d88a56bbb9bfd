"""How it is done, from any point of a run: its runs are what SFT learns from. Optional; imported runs can take its place."""

import re
from collections.abc import Sequence

from agentalign import Message, Task, ToolCall


def act(task: Task, messages: Sequence[Message]) -> Message:
    results = [message for message in messages if message.role == "tool"]
    if not results:
        badge = re.findall(r"\d+", str(task.values["prompt"]))[0]
        return Message(role="assistant", tool_calls=(ToolCall(id="call_0", name="find_name", arguments=f'{{"badge": {badge}}}'),))
    if results[-1].error:
        return Message(role="assistant", content="Hello! I do not know this badge. Who are you, please?")
    return Message(role="assistant", content=f"Hello {results[-1].content}, nice to see you!")
