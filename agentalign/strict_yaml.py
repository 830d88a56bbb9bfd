"""One loader for all YAML that people write: plain JSON values out of YAML 1.2, and a sentence with file, line and column otherwise.

Scalars mean what YAML 1.2 says: `1e-5` is a number, `no`, `on` and `2024-01-01` are text, `0o17` is 15. Refused are duplicate keys, tags,
anchors and aliases, several documents, NaN and infinity, and anything absurdly deep or large.
The surprise: keys are always text as written, so `1: rude` has the key "1", and `1` beside `"1"` is a duplicate.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml  # noqa: TID251 - this is the one place that may
from pydantic import JsonValue

from agentalign.errors import ConfigError

MAX_CHARACTERS = 8_000_000
MAX_DEPTH = 40
MAX_INTEGER = 2**63

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _ScalarError(Exception):
    """What is wrong with a scalar; the caller knows where it stands."""


def load(path: Path) -> JsonValue:
    """The value of a YAML file; ConfigError where it cannot be read or is not strict YAML."""
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise ConfigError(f"{path}: the file is larger than {4 * MAX_CHARACTERS:,} bytes; keep long lists in a .jsonl file.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a file. Name the YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    return loads(text, str(path))


def loads(text: str, source: str) -> JsonValue:
    """The value of a YAML text; `source` names it in errors."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source}: {len(text):,} characters, more than the {MAX_CHARACTERS:,} that are read; keep long lists in .jsonl.")
    return _Reader(text, source).document()


def scalar(text: str) -> JsonValue:
    """The value of one command-line flag: a YAML scalar as it stands, or a list, mapping or quoted text in YAML's flow form."""
    if text[:1] in ("[", "{", '"', "'"):
        return loads(text, f"command line value {text!r}")
    if text == "":
        return ""
    try:
        return _plain(text)
    except _ScalarError as error:
        raise ConfigError(f"command line value {text!r}: {error}") from None


def _plain(text: str) -> JsonValue:
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise _ScalarError(f"{text} is too large for a number. Write a finite number, or null for none.")
        return value
    if _NOT_FINITE.fullmatch(text):
        raise _ScalarError(f"{text} is not a finite number. Write a finite number, or null for none.")
    return text


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    digits = text[2:] if base != 10 else text
    # Python refuses to parse thousands of digits with an error of its own: look at the length first.
    value = int(digits, base) if len(digits) <= 64 else MAX_INTEGER
    if not -MAX_INTEGER <= value < MAX_INTEGER:
        raise _ScalarError(f"{text[:40]} does not fit into 64 bits. Quote it if it is an identifier.")
    return value


class _Reader:
    """Builds plain values straight from parser events, so that every refusal knows its line and column."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=loader)

    def document(self) -> JsonValue:
        self._next()  # stream start
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
            self._refuse(event, "%YAML and %TAG directives are not used here. Delete the line")
        value = self._value(self._next(), 0)
        self._next()  # document end
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._refuse(event, "a second document starts here, but one file holds one. Move it to a file of its own")
        return value

    def _next(self) -> yaml.Event:
        try:
            return next(self.events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            what = ", ".join(part for part in (error.context, error.problem) if part)
            raise ConfigError(f"{self.source}{where}: not valid YAML ({what}). Check the indentation, colons and quotes there.") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.source}: not valid YAML ({' '.join(str(error).split())}). Save it as plain UTF-8 text.") from None

    def _value(self, event: yaml.Event, depth: int) -> JsonValue:
        self._check_node(event)
        if depth >= MAX_DEPTH:
            self._refuse(event, f"more than {MAX_DEPTH} levels of nesting. Flatten the file")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        return self._sequence(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)

    def _check_node(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"an alias (*{event.anchor}) is not used here. Write the value out")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._refuse(event, f"an anchor (&{event.anchor}) is not used here. Delete it and write values out where they are needed")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            self._refuse(event, f"a tag ({event.tag}) is not used here. Delete it; quote a value to keep it as text")
        if isinstance(event, yaml.ScalarEvent) and _SURROGATE.search(event.value):
            self._refuse(event, "half of a surrogate pair is no character. Write the character itself")

    def _sequence(self, depth: int) -> list[JsonValue]:
        items: list[JsonValue] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            self._check_node(event)
            if not isinstance(event, yaml.ScalarEvent) or (event.value == "" and event.implicit[0]):
                self._refuse(event, "a key must be text. Write `name: value`")
            key = event.value
            if key in values:
                self._refuse(event, f"the key '{key}' stands twice, first in line {lines[key]}. Keep one of them")
            lines[key] = event.start_mark.line + 1 if event.start_mark else 0
            values[key] = self._value(self._next(), depth + 1)
        return values

    def _scalar(self, event: yaml.ScalarEvent) -> JsonValue:
        if not event.implicit[0]:
            return str(event.value)
        try:
            return _plain(event.value)
        except _ScalarError as error:
            self._refuse(event, str(error).rstrip("."))

    def _refuse(self, event: yaml.Event, sentence: str) -> NoReturn:
        mark = event.start_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{self.source}{where}: {sentence}.")
