"""Messages as OpenAI-compatible servers take them and give them.

Surprise: the OpenAI API has no form for a call that could not be read, nor for what answers it. `agentalign serve` has one; other
servers get the answer as a user's words.
"""

from typing import Any

from agentalign.records.trajectory import Message, ToolCall


def openai_message(message: Message, *, own: bool = False) -> dict[str, Any]:
    """A message as OpenAI-compatible servers read it; `agentalign serve` (`own`) reads calls that could not be read as what they are."""
    if message.role == "tool" and message.tool_call_id is None:
        # An answer to a call that could not be read has no id to refer to, and other servers refuse tool messages without one.
        return {"role": "tool", "content": message.content, "error": message.error} if own else {"role": "user", "content": message.content}
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        # Templates that keep the thoughts of a tool loop write them into the next prompt; only a server that told some gets them.
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
