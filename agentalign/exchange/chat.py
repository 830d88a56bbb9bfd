"""Chat rows, as the OpenAI API and most logs write them: `messages` and `tools` <-> Trajectory.

A row is kept whole or refused with a reason: nothing is dropped that would change what the agent saw or did. Fields that only describe
(labels, names, usage) travel in `metadata`. Two fields are our own, so that a run comes back as it went: `error` marks a tool's result as
an error message, and `malformed` says why a call in the agent's text could not be read.
Surprise: call ids are made unique within a run, because some servers count from 0 in every turn.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NoReturn

from pydantic import JsonValue

from agentalign.errors import DataError
from agentalign.records.base import canonical_json
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
CORE = {"role", "content"}
OWN = {
    "system": CORE,
    "user": CORE,
    "assistant": CORE | {"tool_calls", "reasoning_content", "reasoning", "refusal", "malformed"},
    "tool": CORE | {"tool_call_id", "name", "error"},
}
DESCRIPTIVE = {"name", "id", "annotations", "model", "usage", "finish_reason", "index", "timestamp", "created", "created_at", "metadata"}
"""Fields of a message that say nothing about what was said: kept in the run's metadata."""

CALL_DESCRIPTIVE = {"index", "status", "created_at", "description", "parsed_arguments"} | {
    "extra_content", "provider_specific_fields", "thought_signature",
}  # fmt: skip
"""Fields of a tool call that say nothing about what was asked or answered: kept in the run's metadata."""

ABOUT = {"id", "taskset", "task_id", "family", "split", "origin", "stop_reason", "error", "seconds", "created"}
"""Fields of a run that an exported row has beside its messages, tools and labels."""

Row = Mapping[str, JsonValue]
Schemas = Mapping[str, dict[str, JsonValue]]


def read_chat(row: Row, *, taskset: str, origin: Origin, known_tools: Schemas | None = None) -> Trajectory:
    """The run that a row holds.

    Args:
        row: `messages`, `tools` where there were any, and any labels beside them.
        known_tools: schemas by name, for rows whose `tools` are names only.

    Raises:
        DataError: with what in the row cannot be read, and where.
    """
    if "messages" not in row:
        raise DataError(f"it has no `messages` (its fields: {', '.join(list(row)[:8]) or 'none'}). Write one chat per line.")
    if row.get("functions"):
        raise DataError('it offers `functions`, the form before `tools`. Write each as {"type": "function", "function": {...}}.')
    messages, notes = read_messages(row["messages"])
    if not any(message.role == "assistant" for message in messages):
        raise DataError("no message is from the assistant, so the agent did nothing.")
    labels = _labels(row)
    if notes:
        labels["message_fields"] = notes
    try:
        metadata = canonical_json(labels)
    except ValueError:
        raise DataError("a label is NaN or infinite, which JSON cannot say. Write null.") from None
    return Trajectory(
        taskset=taskset, messages=messages, tools=read_tools(row.get("tools"), known_tools or {}), origin=origin, metadata=metadata
    )


def _labels(row: Row) -> dict[str, JsonValue]:
    """What stands beside the chat. Of a row that `write_chat` wrote, the run's own labels stand beside the rest again."""
    labels = {key: value for key, value in row.items() if key not in ("messages", "tools")}
    origin, kept = _mapping(labels.get("origin")), _mapping(labels.get("metadata"))
    if kept is None or origin is None or not {"kind", "reference"} <= origin.keys():
        return labels
    del labels["metadata"]
    return kept | {key: value for key, value in labels.items() if key not in kept or not _says_nothing(value)}


def _mapping(value: JsonValue) -> dict[str, JsonValue] | None:
    """A mapping, or one that a table holds as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def read_messages(value: JsonValue) -> tuple[tuple[Message, ...], dict[str, JsonValue]]:
    """Messages of a chat, and by message number the fields that only describe."""
    if not isinstance(value, list) or not value:
        raise DataError("`messages` must be a list with at least one message.")
    reader = _Reader()
    for number, entry in enumerate(value):
        reader.add(number, entry)
    return tuple(reader.messages), reader.notes


class _Reader:
    """Reads one chat; knows which call ids are open."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.notes: dict[str, JsonValue] = {}
        self._used: set[str] = set()
        self._next: dict[str, int] = {}
        """Id as written -> the number that makes it unique where it comes again."""
        self._open: dict[str, ToolCall] = {}
        """Calls of the last assistant message without a result so far, by their id in the run."""
        self._in_order: dict[str, deque[str]] = {}
        """Tool's name, or "" for all -> ids of that message's calls, for results without an id. Answered ones are dropped when met."""
        self._written: dict[str, deque[str]] = {}
        """Id as written -> ids of that message's calls in the run: several where a log gave calls one id, which are answered in order."""
        self._malformed = ""
        """Why a call of that message could not be read; a result without an id answers that call."""

    def add(self, number: int, entry: JsonValue) -> None:
        if not isinstance(entry, dict):
            self._refuse(number, f"is {_kind(entry)}, not a mapping with `role` and `content`")
        written = entry.get("role")
        role = ROLES.get(written) if isinstance(written, str) else None
        if role is None:
            self._refuse(number, f"has the role {json.dumps(written)[:40]}; known are {', '.join(ROLES)}")
        self._take_notes(number, role, entry)
        if role == "assistant":
            self.messages.append(self._assistant(number, entry))
        elif role == "tool":
            self.messages.append(self._tool(number, entry))
        else:
            if entry.get("content") is None:
                self._refuse(number, f"({role}) has no content")
            self.messages.append(Message(role="system" if role == "system" else "user", content=self._text(number, entry.get("content"))))

    def _take_notes(self, number: int, role: str, entry: Row) -> None:
        extra = {key: value for key, value in entry.items() if key not in OWN[role] and not _says_nothing(value)}
        unknown = sorted(extra.keys() - DESCRIPTIVE)
        if unknown:
            self._refuse(number, f"({role}) has the field '{unknown[0]}', which cannot be kept. Remove it if it may be lost")
        if extra:
            self.notes[str(number)] = extra

    def _assistant(self, number: int, entry: Row) -> Message:
        content, refusal = self._text(number, entry.get("content")), self._optional(number, "refusal", entry)
        if content and refusal:
            self._refuse(number, "has both `content` and `refusal`; keep what the agent said")
        thoughts = {text for key in ("reasoning_content", "reasoning") if (text := self._optional(number, key, entry))}
        if len(thoughts) > 1:
            self._refuse(number, "has different texts in `reasoning_content` and `reasoning`; keep one")
        calls = entry.get("tool_calls") or []
        if not isinstance(calls, list):
            self._refuse(number, f"has `tool_calls` that are {_kind(calls)}, not a list")
        self._written = {}
        made = tuple(self._call(number, call) for call in calls)
        self._open, self._malformed = {call.id: call for call in made}, self._optional(number, "malformed", entry)
        self._in_order = {"": deque(self._open)}
        for call in made:
            self._in_order.setdefault(call.name, deque()).append(call.id)
        return Message(
            role="assistant", content=content or refusal, reasoning="".join(thoughts), tool_calls=made, malformed=self._malformed
        )

    def _call(self, number: int, call: JsonValue) -> ToolCall:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
            self._refuse(number, 'has a tool call that is not {"id", "type": "function", "function": {"name", "arguments"}}')
        extra = {key: value for key, value in call.items() if key not in ("id", "type", "function") and not _says_nothing(value)}
        extra |= {key: value for key, value in function.items() if key not in ("name", "arguments") and not _says_nothing(value)}
        if unknown := sorted(extra.keys() - CALL_DESCRIPTIVE):
            self._refuse(number, f"has the field '{unknown[0]}' in a tool call, which cannot be kept. Remove it if it may be lost")
        name, arguments, written = function.get("name"), function.get("arguments"), call.get("id")
        if not isinstance(name, str) or not name:
            self._refuse(number, "has a tool call without a name")
        if not isinstance(arguments, str | dict | None):
            self._refuse(number, f"calls '{name}' with arguments that are {_kind(arguments)}, not a mapping or its JSON text")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        made = ToolCall(id=self._new_id(written), name=name, arguments=text or "{}")
        if extra:
            self.notes[f"{number}/{made.id}"] = extra
        return made

    def _new_id(self, written: JsonValue) -> str:
        wanted = _id(written) or f"call_{len(self._used)}"
        unique = wanted
        # Counted on from the last time: a line may hold hundreds of thousands of calls of one id.
        while unique in self._used:
            self._next[wanted] = self._next.get(wanted, 0) + 1
            unique = f"{wanted}_{self._next[wanted]}"
        self._used.add(unique)
        self._written.setdefault(wanted, deque()).append(unique)
        return unique

    def _tool(self, number: int, entry: Row) -> Message:
        if not self.messages or self.messages[-1].role not in ("assistant", "tool"):
            self._refuse(number, "(tool) does not stand after the assistant's call")
        written, name = entry.get("tool_call_id"), self._optional(number, "name", entry)
        content, error = self._text(number, entry.get("content")), self._error(number, entry)
        if self._malformed and not _id(written):
            return Message(role="tool", content=content, name=name or None, error=error)
        call = self._answered(written, name)
        if call is None:
            wanted = f"the call id {json.dumps(written)[:60]}" if _id(written) else f"the tool '{name}'" if name else "no call"
            self._refuse(number, f"(tool) answers {wanted}, but no open call of the message before fits")
        del self._open[call.id]
        # A name that is left out is the call's; an empty one is how `write_message` says that none was recorded.
        recorded = call.name if entry.get("name") is None else name or None
        return Message(role="tool", content=content, tool_call_id=call.id, name=recorded, error=error)

    def _answered(self, written: JsonValue, name: str) -> ToolCall | None:
        """The open call of this id, else the first one of this name, or of all."""
        id = _id(written)
        waiting = self._written.get(id, deque()) if id else self._in_order.get(name, deque())
        while waiting and waiting[0] not in self._open:
            waiting.popleft()
        return self._open[waiting[0]] if waiting else None

    def _error(self, number: int, entry: Row) -> bool:
        value = entry.get("error")
        if not isinstance(value, bool) and not _says_nothing(value):
            self._refuse(number, f"has `error` that is {_kind(value)}, not true or false. Write what the agent was told as `content`")
        return bool(value)

    def _optional(self, number: int, key: str, entry: Row) -> str:
        value = entry.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self._refuse(number, f"has `{key}` that is {_kind(value)}, not text")
        return value

    def _text(self, number: int, value: JsonValue) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if not isinstance(value, list):
            self._refuse(number, f"has content that is {_kind(value)}, not text. Write it as JSON text")
        parts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get(str(kind)) if isinstance(part, dict) and kind in ("text", "refusal") else None
            if not isinstance(text, str):
                self._refuse(number, f"has a content part of type {json.dumps(kind)[:40]}; only text can be kept")
            parts.append(text)
        return "".join(parts)

    def _refuse(self, number: int, sentence: str) -> NoReturn:
        raise DataError(f"message {number} {sentence}.")


def read_tools(value: JsonValue, known: Schemas) -> str:
    """Offered tools as JSON text: a list of function schemas, in the order and spelling of the source."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError("`tools` is text, but not the JSON text of a list.") from None
    if value is None:
        return "[]"
    if not isinstance(value, list):
        raise DataError(f"`tools` is {_kind(value)}, not a list of function schemas.")
    return json.dumps([_schema(entry, known) for entry in value], ensure_ascii=False)


def read_known_tools(value: JsonValue) -> dict[str, dict[str, JsonValue]]:
    """Schemas by name, from a list of schemas or a mapping of name to schema."""
    entries = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        raise DataError("it must hold a list of function schemas, or a mapping of name to function schema.")
    schemas = [_schema(entry, {}) for entry in entries]
    names = [function["name"] for schema in schemas if isinstance(function := schema["function"], dict)]
    return {str(name): schema for name, schema in zip(names, schemas, strict=True)}


def _schema(entry: JsonValue, known: Schemas) -> dict[str, JsonValue]:
    if isinstance(entry, str):
        if entry not in known:
            raise DataError(f"`tools` names '{entry}' without its schema. Give the schemas with --tools FILE.")
        return known[entry]
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(entry, dict) or not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise DataError('an offered tool is not {"type": "function", "function": {"name", "description", "parameters"}}.')
    if not isinstance(function.get("parameters", {}), dict):
        raise DataError(f"the offered tool '{name}' has parameters that are no JSON Schema object.")
    # The Responses API writes name and parameters beside the type.
    return entry if "function" in entry else {"type": "function", "function": {k: v for k, v in function.items() if k != "type"}}


def write_message(message: Message) -> dict[str, JsonValue]:
    """A message as the OpenAI API writes it."""
    entry: dict[str, JsonValue] = {"role": message.role, "content": message.content}
    if message.reasoning:
        entry["reasoning_content"] = message.reasoning
    if message.tool_calls:
        entry["content"] = message.content or None
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.role == "tool":
        entry |= {"tool_call_id": message.tool_call_id or "", "name": message.name or ""}
    return entry


def write_chat(trajectory: Trajectory) -> dict[str, JsonValue]:
    """A row that `read_chat` reads back, with what the run is about beside it.

    Labels are JSON text as in the record: two sources may have a label of one name and two types, which no table can hold.
    """
    tools: JsonValue = json.loads(trajectory.tools)
    return {
        "messages": _written(trajectory.messages),
        "tools": tools,
        **trajectory.model_dump(mode="json", include=ABOUT),
        "metadata": trajectory.metadata,
    }


def _written(messages: Sequence[Message]) -> list[JsonValue]:
    return [write_message(message) | _what_went_wrong(message) for message in messages]


def _what_went_wrong(message: Message) -> dict[str, JsonValue]:
    """What the OpenAI API has no field for; left out where all went well."""
    malformed: dict[str, JsonValue] = {"malformed": message.malformed} if message.malformed else {}
    return malformed | ({"error": True} if message.error else {})


def _id(written: JsonValue) -> str:
    """A call's id as text; some logs count in numbers. Empty where there is none."""
    return str(written) if isinstance(written, str | int) and not isinstance(written, bool) else json.dumps(written) if written else ""


def _says_nothing(value: JsonValue) -> bool:
    return value is None or value is False or value in ("", [], {})


def _kind(value: JsonValue) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")
