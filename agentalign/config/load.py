"""YAML file + flags -> config, and config -> help.

Values are checked as strict JSON: `"5"` is no number and 1 is no truth value, but a list fills a tuple and text fills an enum.
The surprise: a flag's text is read as a YAML scalar, except where the setting is text: `--name 5` stays "5".
"""

import difflib
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from agentalign import strict_yaml
from agentalign.config.base import Config
from agentalign.errors import ConfigError, UsageError

T = TypeVar("T", bound=Config)
COMMAND_LINE = "command line"
"""What errors name as the source of a flag; they are errors of usage."""


class Setting(NamedTuple):
    """One setting of a config, for --help and documents."""

    name: str
    type: str
    """As a person reads it: "number", "whole number", "nf4 | int8 | none", "list of text"."""
    default: JsonValue
    required: bool
    doc: str


def resolve(cls: type[T], mapping: object, overrides: Mapping[str, JsonValue], source: str) -> T:
    """The config that a YAML file and flags say together; a flag wins over the file.

    Args:
        mapping: what the file holds; None (an empty file) is no settings.
        overrides: flags by name, with `-` or `_`; text is read as a YAML scalar.
        source: the file's name, for errors.
    """
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{source}: holds {_kind(mapping)}, but settings are `name: value` lines. Write e.g. `seed: 1`.")
    flags = {name.lstrip("-").replace("-", "_"): value for name, value in overrides.items()}
    for key in mapping:
        _check_known(cls, str(key), source, str(key))
    for key in flags:
        _check_known(cls, key, COMMAND_LINE, f"--{key}")
    values = {**mapping, **{key: _flag_value(cls.model_fields[key], key, value) for key, value in flags.items()}}
    try:
        return cls.model_validate_json(json.dumps(values, allow_nan=False), strict=True)
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(
                f"{source}: holds a value that JSON cannot say ({error}). Use text, finite numbers, lists and mappings."
            ) from None
        wrong = {str(detail["loc"][0]) if detail["loc"] else "" for detail in error.errors()}
        kind = UsageError if source == COMMAND_LINE or wrong <= flags.keys() else ConfigError
        raise kind("\n".join(_sentence(cls, detail, flags, source) for detail in error.errors())) from None


def describe(cls: type[BaseModel]) -> list[Setting]:
    """Every setting of a config in the order it was written."""
    return [_setting(name, field) for name, field in cls.model_fields.items()]


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """The end of "there is no such ...": "; did you mean 'beta'?" or a full stop."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else "."


def _check_known(cls: type[Config], key: str, source: str, written: str) -> None:
    if key not in cls.model_fields:
        kind = UsageError if source == COMMAND_LINE else ConfigError
        raise kind(
            f"{source}: there is no setting '{_shown(written)}'{nearest(key, cls.model_fields)} Settings: {', '.join(cls.model_fields)}."
        )


def _flag_value(field: FieldInfo, key: str, value: JsonValue) -> JsonValue:
    if not isinstance(value, str):
        return value
    choices = _leaves(field.annotation)
    try:
        read = strict_yaml.scalar(value)
    except ConfigError as error:
        raise UsageError(f"--{key}: {error}") from None
    if read is None and type(None) in choices:
        return None
    takes_text = str in choices or value in choices or any(isinstance(leaf, type) and issubclass(leaf, Enum) for leaf in choices)
    return value if takes_text and not isinstance(read, list | dict) else read


def _leaves(annotation: object) -> list[object]:
    """Types and literal values that a union is made of; the annotation itself where it is no union."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [leaf for part in typing.get_args(annotation) for leaf in _leaves(part)]
    if origin is typing.Annotated:
        return _leaves(typing.get_args(annotation)[0])
    return list(typing.get_args(annotation)) if origin is typing.Literal else [annotation]


def _sentence(cls: type[Config], detail: ErrorDetails, flags: Mapping[str, object], source: str) -> str:
    path = [str(part) for part in detail["loc"]]
    # pydantic adds the names of union members to the path; a person wants the keys they wrote.
    key = ".".join(part for i, part in enumerate(path) if i == 0 or part.isdigit() or part.isidentifier())
    where = COMMAND_LINE if path and path[0] in flags else source
    name = f"--{key}" if path and path[0] in flags else key
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        field = cls.model_fields.get(path[0])
        meaning = f" ({' '.join((field.description or '').split())})" if field and field.description else ""
        return f"{where}: the setting '{key}' is missing{meaning}. Add `{key}: ...` to the file or give --{key}."
    if detail["type"] == "extra_forbidden":
        return f"{where}: there is no setting '{name}'. Check its spelling."
    if not path:
        return f"{where}: {message}"
    wanted = _type_text(cls.model_fields[path[0]].annotation) if path[0] in cls.model_fields else "another value"
    got = _shown(json.dumps(detail["input"], ensure_ascii=False, default=str))
    return f"{where}: '{name}' is {got}, which cannot be used: {message[:1].lower()}{message[1:]}. It takes {wanted}."


def _shown(text: str) -> str:
    """Short, and on one line whatever it holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:80])


def _setting(name: str, field: FieldInfo) -> Setting:
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    plain: JsonValue = json.loads(json.dumps(default, default=_plain))
    return Setting(name, _type_text(field.annotation), plain, field.is_required(), " ".join((field.description or "").split()))


def _plain(value: object) -> JsonValue:
    if isinstance(value, BaseModel):
        dumped: JsonValue = value.model_dump(mode="json")
        return dumped
    return str(value)


_NAMES: dict[object, str] = {int: "whole number", float: "number", str: "text", bool: "true | false", type(None): "null", dict: "mapping"}


def _type_text(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_text(part) for part in arguments)
    if origin is typing.Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is typing.Annotated:
        return _type_text(arguments[0])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type_text(arguments[0])}" if arguments else "list"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    return _NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation)).lower()


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}.get(type(value), "one value")
