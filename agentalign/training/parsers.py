"""Reading what a model wrote: text, reasoning and tool calls.

Parsers are strict. What is not exactly a call is either plain text or *malformed*, and a malformed call goes back to the model as an
error message; nothing is guessed or repaired, since a repaired call would be scored and trained on as if the model had written it.
A parser never raises, whatever the text.
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.records.base import canonical_json


class Call(NamedTuple):
    """A call as read: name and arguments as canonical JSON text."""

    name: str
    arguments: str


class Parsed(NamedTuple):
    """What a turn says beside its reasoning."""

    content: str
    calls: tuple[Call, ...] = ()
    malformed: str = ""
    """Why a call could not be read; then `content` is the raw text and there are no calls."""


Parser = Callable[[str], Parsed]

MAX_DEPTH = 64
"""Arguments nested deeper than this are malformed: nobody means them, and JSON readers recurse."""


class _NotACallError(Exception):
    pass


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


_LLAMA_START = re.compile(r'\{\s*"(?:name|type)"\s*:')


def parse_llama3_json(text: str) -> Parsed:
    """The whole turn is `{"name": ..., "parameters": {...}}`, after an optional `<|python_tag|>` (Llama 3)."""
    body = text.strip().removeprefix("<|python_tag|>")
    if not _LLAMA_START.search(body):
        return Parsed(text)
    try:
        return Parsed("", (_json_call(body, "parameters"),))
    except _NotACallError as reason:
        return Parsed(text, malformed=str(reason))


def parse_text(text: str) -> Parsed:
    """For templates that cannot write calls: everything is text."""
    return Parsed(text)


PARSERS: dict[str, Parser] = {"hermes": parse_hermes, "llama3_json": parse_llama3_json, "text": parse_text}


def strict_json(text: str) -> JsonValue:
    """The value; ValueError with a reason for what JSON does not allow, double keys, NaN, lone surrogates and extreme depth."""
    depth = peak = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        peak = max(peak, depth)
    if peak > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    value: JsonValue = json.loads(text, object_pairs_hook=_no_double_keys, parse_constant=_no_constant)
    try:
        canonical_json(value).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair in a string") from None
    return value


def _no_double_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return dict(pairs)


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")


def _json_call(body: str, arguments_key: str) -> Call:
    try:
        value = strict_json(body.strip())
    except ValueError as error:
        raise _NotACallError(f"the tool call is not valid JSON ({error}): {_short(body)}") from None
    if not isinstance(value, dict):
        raise _NotACallError(f"the tool call is not a JSON object: {_short(body)}")
    value.pop("type", None)
    name, arguments = value.get("name"), value.get(arguments_key)
    if not isinstance(name, str) or not name:
        raise _NotACallError(f'the tool call has no "name": {_short(body)}')
    if not isinstance(arguments, dict):
        raise _NotACallError(f'the tool call has no object "{arguments_key}": {_short(body)}')
    if extra := sorted(set(value) - {"name", arguments_key}):
        raise _NotACallError(f"the tool call has unknown keys {', '.join(extra)}: {_short(body)}")
    return Call(name, canonical_json(arguments))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "...")
