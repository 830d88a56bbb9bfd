"""What a turn may be, as a Lark grammar for llguidance: reasoning, then text, calls or an answer of one shape.

The words around a call are those that the base's template writes, found by rendering one, so that a turn under constraint looks like those
the model was trained on. Surprise: reasoning comes first only where the prompt has opened it already. Where it is the model's choice it is
left out: a model that wanted `<tool_call>` would be led from its "<" into `<think>`, and into a thought without end.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from agentalign.errors import ConfigError, TemplateError
from agentalign.records.trajectory import Message, ToolCall
from agentalign.training import special_text
from agentalign.training.dialect import Dialect
from agentalign.training.parsers import ID_TEXT


@dataclass(frozen=True)
class ToolShape:
    """What a call of one tool must look like."""

    name: str
    arguments: JsonValue
    """JSON Schema of the arguments; `{"type": "object"}` where any will do."""


@dataclass(frozen=True)
class TurnShape:
    """What a turn must look like."""

    calls: Literal["no", "may", "must"]
    tools: Sequence[ToolShape] = ()
    parallel: bool = True
    """Whether there may be more than one call."""
    answer: JsonValue = None
    """JSON Schema of a turn without calls; None for free text."""


@dataclass(frozen=True)
class _Words:
    """What a template writes around calls: `lead NAME mid ARGUMENTS (between NAME mid ARGUMENTS)* tail`."""

    lead: str
    mid: str
    between: str
    tail: str


def turn_grammar(dialect: Dialect, shape: TurnShape) -> str:
    """The grammar of a turn up to its end-of-turn token.

    Raises:
        ConfigError: calls were asked for, but those of this template cannot be read.
    """
    rules: list[str] = []
    bodies: list[str] = []
    words = _call_words(dialect) if shape.calls != "no" else None
    if words:
        rules += _call_rules(dialect, words, shape)
        bodies.append(f"{_literal(dialect, words.lead)} calls")
    if shape.calls != "must":
        bodies += _other_bodies(dialect, words, shape, rules)
    start = " | ".join(bodies)
    if dialect.form.reasoning and not dialect.form.reasoning[0]:
        rules += [f"thought[suffix={json.dumps(dialect.form.reasoning[1])}]: /(?s:.*)/", "SPACE: /[ \\n]*/"]
        start = f"thought SPACE ({start})"
    return "\n".join([f"start: {start}", *rules])


def _other_bodies(dialect: Dialect, words: _Words | None, shape: TurnShape, rules: list[str]) -> list[str]:
    """Turns that do not begin with a call: an answer of a shape, or text with or without calls behind it."""
    form = dialect.form
    if shape.answer is not None:
        rules.append(f"answer: {_json(shape.answer)}")
        return [f"{_literal(dialect, form.text_lead)} answer {_literal(dialect, form.text_tail)}"]
    outside = " & ".join(["/(?s:.*)/", *(f"~/(?s:.*){begun}(?s:.*)/" for begun in form.call_begun)])
    rules.append(f"PLAIN: {outside}")
    if words and form.call_format != "llama3_json" and words.lead:
        # Text and the words that begin a call are one lexeme: the lexer is greedy, and would never give a text back that went on to them.
        marker = form.call_starts[0]
        first = words.lead[words.lead.index(marker) + len(marker) :]
        if not special_text.pattern([marker]).search(" ".join(_special(dialect))):
            rules.append(f"spoken[suffix={json.dumps(marker)}]: /(?s:.*)/")
            return ["PLAIN", f"spoken {_literal(dialect, first)} calls"]
    return ["PLAIN"]


def _call_rules(dialect: Dialect, words: _Words, shape: TurnShape) -> list[str]:
    names = [f"one{index}" for index in range(len(shape.tools))]
    rules = [
        f"{name}: {_literal(dialect, tool.name + words.mid)} arguments{index}"
        if dialect.form.calls
        else f'{name}: {_literal(dialect, words.mid.replace("NAME", json.dumps(tool.name, ensure_ascii=False)))} arguments{index} "}}"'
        for index, (name, tool) in enumerate(zip(names, shape.tools, strict=True))
    ]
    rules += [f"arguments{index}: {_json(_in_order(tool.arguments))}" for index, tool in enumerate(shape.tools)]
    more = f" ({_literal(dialect, words.between)} one)*" if shape.parallel and words.between else ""
    return [f"calls: one{more} {_literal(dialect, words.tail)}", f"one: {' | '.join(names)}", *rules]


def _call_words(dialect: Dialect) -> _Words:
    """Found in the learned form, or in what the template writes for a call and for two."""
    form = dialect.form
    if form.calls:
        return _Words(form.calls.lead, form.calls.mid, form.calls.between, form.calls.tail)
    if form.call_format == "text":
        raise ConfigError("the calls of this base's chat template cannot be read, so none can be asked for.")
    key = "arguments" if form.call_format == "hermes" else "parameters"
    body = re.compile(rf'\{{"name":(\s*)"probetool",(\s*)"{key}":(\s*)\{{"probekey":\s*"probevalue"\}}\}}')
    one, two = _rendered(dialect, 1), _rendered(dialect, 2)
    found, both = body.search(one), list(body.finditer(two))
    if form.call_format == "hermes":
        start, end = one.find("<tool_call>"), one.find("</tool_call>")
        if not found or start < 0 or end < 0:
            return _Words("<tool_call>\n", '{"name": NAME, "arguments": ', "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")
        mid = f'{{"name":{found[1]}NAME,{found[2]}"{key}":{found[3]}'
        between = two[both[0].end() : both[1].start()] if len(both) == 2 else ""
        return _Words(one[start : found.start()], mid, between, one[found.end() : end + len("</tool_call>")])
    spaces = (found[1], found[2], found[3]) if found else (" ", " ", " ")
    return _Words("", f'{{"name":{spaces[0]}NAME,{spaces[1]}"{key}":{spaces[2]}', "", "")


def _rendered(dialect: Dialect, count: int) -> str:
    calls = tuple(ToolCall(id=f"call_{i}", name="probetool", arguments='{"probekey": "probevalue"}') for i in range(count))
    try:
        turn = dialect.turn_text([Message(role="user", content="probeuser"), Message(role="assistant", tool_calls=calls)])
    except TemplateError:
        return ""
    return special_text.plain(turn.text)


def _json(schema: JsonValue) -> str:
    """JSON of one shape; between its parts a space or none, since a model that may write white space without end sometimes does."""
    options: JsonValue = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}
    return f"%json {json.dumps({'x-guidance': options, **schema} if isinstance(schema, dict) else schema)}"


def _in_order(schema: JsonValue) -> JsonValue:
    """The schema with its properties by name: the order in which the arguments of every run are kept, and models learn to write them."""
    if isinstance(schema, list):
        return [_in_order(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _in_order(value) for key, value in schema.items()}
    properties = inner.get("properties")
    return inner | {"properties": dict(sorted(properties.items()))} if isinstance(properties, dict) else inner


def _special(dialect: Dialect) -> list[str]:
    return [token.content for token in dialect.tokenizer.added_tokens_decoder.values() if token.special]


def _literal(dialect: Dialect, text: str) -> str:
    """A text as the grammar writes it: strings, special tokens by their ids, and any name where the template writes a call's id."""
    parts = []
    tokens = special_text.pattern([*_special(dialect), ID_TEXT])
    place = 0
    for match in tokens.finditer(text):
        parts.append(text[place : match.start()])
        parts.append("/[A-Za-z0-9]{9}/" if match[0] == ID_TEXT else f"<[{dialect.tokenizer.convert_tokens_to_ids(match[0])}]>")
        place = match.end()
    parts.append(text[place:])
    return " ".join(part if index % 2 else json.dumps(part, ensure_ascii=False) for index, part in enumerate(parts) if part) or '""'
