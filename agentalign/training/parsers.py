"""Reading what a model wrote: text, reasoning and tool calls.

Parsers are strict. What is not exactly a call is either plain text or *malformed*, and a malformed call goes back to the model as an
error message; nothing is guessed or repaired, since a repaired call would be scored and trained on as if the model had written it.
A parser never raises, whatever the text. Forms that no parser here knows by name are learned from what the template writes (`CallForm`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.records.base import canonical_json


class Call(NamedTuple):
    """A call as read: name and arguments as canonical JSON text."""

    name: str
    arguments: str


class Parsed(NamedTuple):
    """What a turn says."""

    content: str
    calls: tuple[Call, ...] = ()
    malformed: str = ""
    """Why a call could not be read; then `content` is the raw text and there are no calls."""
    reasoning: str = ""


Parser = Callable[[str], Parsed]

MAX_DEPTH = 64
"""Arguments nested deeper than this are malformed: nobody means them, and JSON readers and writers recurse."""


class _NotACallError(Exception):
    """Says why a text is no call; never leaves this module."""


def parse_hermes(text: str) -> Parsed:
    """Text, then any number of `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen and many more)."""
    head, tag, rest = text.partition("<tool_call>")
    if not tag:
        return Parsed(text, malformed="`</tool_call>` without `<tool_call>` before it.") if "</tool_call>" in text else Parsed(text)
    calls = []
    try:
        while tag:
            body, end, rest = rest.partition("</tool_call>")
            if not end:
                raise _NotACallError("`<tool_call>` without `</tool_call>` after it.")
            calls.append(_json_call(body, "arguments"))
            between, tag, rest = rest.partition("<tool_call>")
            if between.strip():
                raise _NotACallError(f"text after a tool call: {_short(between)}. Write the text first, then the calls.")
    except _NotACallError as reason:
        return Parsed(text, malformed=str(reason))
    return Parsed(head.rstrip(), tuple(calls))


_LLAMA_CALL = re.compile(r'\{\s*"(?:name|type|parameters)"\s*:')


def parse_llama3_json(text: str) -> Parsed:
    """The whole turn is `{"name": ..., "parameters": {...}}`, after an optional `<|python_tag|>` (Llama 3)."""
    body = text.strip().removeprefix("<|python_tag|>")
    if not _LLAMA_CALL.search(body):
        return Parsed(text)
    try:
        return Parsed("", (_json_call(body, "parameters"),))
    except _NotACallError as reason:
        return Parsed(text, malformed=str(reason))


def parse_text(text: str) -> Parsed:
    """For templates whose calls cannot be read: everything is text."""
    return Parsed(text)


@dataclass(frozen=True)
class CallForm:
    """What a template writes around the names and JSON arguments of calls: `lead NAME mid ARGS (between NAME mid ARGS)* tail`.

    White space between the words of a literal is free; everything else must stand exactly as the template writes it.
    """

    lead: str
    mid: str
    between: str
    """Empty where the template cannot write two calls in one turn."""
    tail: str

    @property
    def marker(self) -> str:
        """The first word of the lead: a text that contains it tries to be a call."""
        match = re.match(r"<[^<>\s]+>|\[[A-Z_]+\]|\S+", self.lead.strip())
        return match[0] if match else ""

    def parse(self, text: str) -> Parsed:
        """Text, then the calls."""
        start = text.find(self.marker)
        if start < 0:
            return Parsed(text)
        calls: list[Call] = []
        place, lead = start, self.lead
        try:
            while True:
                place = _expect(text, place, lead)
                name = re.compile(r"[\w.-]+").match(text, place)
                if not name:
                    raise _NotACallError(f"no tool name where one belongs: {_short(text[place:])}")
                place = _expect(text, name.end(), self.mid)
                arguments, place = _read_arguments(text, place)
                calls.append(Call(name[0], arguments))
                if self.between and (after := _matches(text, place, self.between)) is not None and not self._ends(text, place):
                    place, lead = after, ""
                elif self._ends(text, place):
                    return Parsed(text[:start].rstrip(), tuple(calls))
                else:
                    raise _NotACallError(f"the tool call does not end as it should: {_short(text[place:])}")
        except _NotACallError as reason:
            return Parsed(text, malformed=str(reason))

    def _ends(self, text: str, place: int) -> bool:
        end = _matches(text, place, self.tail)
        return end is not None and not text[end:].strip()


ID_TEXT = "callnumber"
"""Stands in a CallForm's literals where the template writes a call's id, or the number in it."""


def _matches(text: str, place: int, literal: str) -> int | None:
    words = [re.escape(word).replace(ID_TEXT, r"[\w.:-]+?") for word in literal.split()]
    match = re.compile(r"\s*" + r"\s*".join(words) + r"\s*").match(text, place)
    return match.end() if match else None


def _expect(text: str, place: int, literal: str) -> int:
    end = _matches(text, place, literal)
    if end is None:
        raise _NotACallError(f"expected {_short(literal.replace(ID_TEXT, '...'))}, found {_short(text[place:])}")
    return end


def _read_arguments(text: str, place: int) -> tuple[str, int]:
    try:
        value, end = _DECODER.raw_decode(text, place)
        _check_value(value)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return canonical_json(value), end
    except (ValueError, RecursionError) as error:
        raise _NotACallError(f"the arguments are not valid JSON ({_reason(error)}): {_short(text[place:])}") from None


@dataclass(frozen=True)
class TurnForm:
    """How one template's turns are read: reasoning first, then what stands before every text, then calls."""

    call_format: str = "text"
    """"hermes", "llama3_json", "learned" (from `calls`) or "text" (calls cannot be read)."""
    calls: CallForm | None = None
    text_lead: str = ""
    """What the template writes before the text of a turn, such as a channel's name; usually nothing."""
    text_tail: str = ""
    """What it writes after the text, before the end of the turn; usually nothing."""
    reasoning: tuple[str, str] | None = None
    """What stands before and after the reasoning; before is empty where the prompt has opened it already."""

    def parse(self, text: str) -> Parsed:
        """The turn without its end-of-turn token, as text, reasoning and calls."""
        thought, rest = self.split(text)
        parsed = self._parser(rest)
        return Parsed(text, malformed=parsed.malformed) if parsed.malformed else parsed._replace(reasoning=thought)

    def split(self, text: str) -> tuple[str, str]:
        """Reasoning, and what is said and called after it, without what the template puts around that."""
        thought, rest = self._split_reasoning(text)
        if self.text_lead and rest.lstrip().startswith(self.text_lead):
            rest = rest.lstrip()[len(self.text_lead) :].lstrip()
        if self.text_tail and rest.rstrip().endswith(self.text_tail):
            rest = rest.rstrip()[: -len(self.text_tail)].rstrip()
        return thought, rest

    @property
    def call_starts(self) -> tuple[str, ...]:
        """Texts of which one stands where a call may begin; where none of them stands there is no call. Empty where none can be read."""
        if self.calls is not None:
            return (self.calls.marker,)
        return {"hermes": ("<tool_call>", "</tool_call>"), "llama3_json": ("{", "<|python_tag|>")}.get(self.call_format, ())

    @property
    def call_begun(self) -> tuple[str, ...]:
        """Patterns of what is no text any more but the beginning of a call: a brace may become one, and is none yet."""
        if self.call_format == "llama3_json" and self.calls is None:
            return (_LLAMA_CALL.pattern, _escaped("<|python_tag|>"))
        return tuple(map(_escaped, self.call_starts))

    @property
    def _parser(self) -> Parser:
        if self.calls is not None:
            return self.calls.parse
        return {"hermes": parse_hermes, "llama3_json": parse_llama3_json}.get(self.call_format, parse_text)

    def _split_reasoning(self, text: str) -> tuple[str, str]:
        """Reasoning that is never closed is left in the text."""
        if self.reasoning is None:
            return "", text
        before, after = self.reasoning
        body = text.lstrip()
        if not body.startswith(before) or after not in body:
            return "", text
        thought, _, rest = body[len(before) :].partition(after)
        return thought.strip(), rest.lstrip()


def _escaped(text: str) -> str:
    """As a pattern, for Python and for grammars alike."""
    return "".join(f"\\{character}" if not character.isalnum() and character not in "_<> " else character for character in text)


def strict_json(text: str) -> JsonValue:
    """The value; ValueError with a reason for what JSON does not allow, double keys, NaN, lone surrogates and extreme depth."""
    try:
        value: JsonValue = _DECODER.decode(text)
        _check_value(value)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    return value


def _check_value(value: JsonValue) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        level = [item for v in level for item in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    try:
        canonical_json(value).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair in a string") from None


def _no_double_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return dict(pairs)


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_double_keys, parse_constant=_no_constant)


def _json_call(body: str, arguments_key: str) -> Call:
    try:
        value = strict_json(body.strip())
    except ValueError as error:
        raise _NotACallError(f"the tool call is not valid JSON ({_reason(error)}): {_short(body)}") from None
    if not isinstance(value, dict):
        raise _NotACallError(f"the tool call is not a JSON object: {_short(body)}")
    name, arguments = value.get("name"), value.get(arguments_key)
    if not isinstance(name, str) or not name:
        raise _NotACallError(f'the tool call has no "name": {_short(body)}')
    if not isinstance(arguments, dict):
        raise _NotACallError(f'the tool call has no object "{arguments_key}": {_short(body)}')
    allowed = {"name", arguments_key} | ({"type"} if arguments_key == "parameters" and value.get("type") == "function" else set())
    if extra := sorted(set(value) - allowed):
        raise _NotACallError(f"the tool call has unknown keys {', '.join(extra)}: {_short(body)}")
    return Call(name, canonical_json(arguments))


def _reason(error: Exception) -> str:
    return f"nested deeper than {MAX_DEPTH} levels" if isinstance(error, RecursionError) else str(error)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
