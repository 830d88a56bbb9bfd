"""Messages as OpenAI-compatible servers take them and give them.

Surprise: the OpenAI API has no form for a call that could not be read, nor for what answers it. `agentalign serve` has one; other
servers get the answer as a user's words.
"""

from collections.abc import Sequence
from typing import Any

from agentalign.records.trajectory import Message, ToolCall


def openai_messages(messages: Sequence[Message], *, own: bool = False) -> list[dict[str, Any]]:
    """A conversation as OpenAI-compatible servers read it.

    Thoughts go back within the turn that is under way, after the user's last words: there templates write them into the next prompt.
    Those of before no template keeps, and some servers refuse them.

    Args:
        own: the server is `agentalign serve`, which reads calls that could not be read as what they are.
    """
    spoke = max((place for place, message in enumerate(messages) if message.role == "user"), default=-1)
    return [openai_message(message, own=own, thoughts=place > spoke) for place, message in enumerate(messages)]


def openai_message(message: Message, *, own: bool = False, thoughts: bool = False) -> dict[str, Any]:
    """One of its messages; see `openai_messages`."""
    if message.role == "tool" and message.tool_call_id is None:
        # An answer to a call that could not be read has no id to refer to, and other servers refuse tool messages without one.
        return {"role": "tool", "content": message.content, "error": message.error} if own else {"role": "user", "content": message.content}
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning and thoughts:
        entry["reasoning_content"] = message.reasoning
    if own and message.malformed:
        entry["malformed"] = message.malformed
    if message.tool_calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.role == "tool":
        entry["tool_call_id"] = message.tool_call_id
    return entry


def read_answer(entry: dict[str, Any]) -> Message:
    """The message of an answer, with the `malformed` of its choice; KeyError, TypeError or ValueError where it is of another form."""
    calls = enumerate(call for call in entry.get("tool_calls") or () if call.get("function"))
    return Message(
        role="assistant",
        content=entry.get("content") or "",
        reasoning=entry.get("reasoning_content") or entry.get("reasoning") or "",
        malformed=entry.get("malformed") or "",
        tool_calls=tuple(
            ToolCall(id=c.get("id") or f"call_{i}", name=c["function"]["name"], arguments=c["function"]["arguments"] or "{}")
            for i, c in calls
        ),
    )
