"""Tools: a typed Python function becomes a JSON Schema for the model and a checked call for the environment.

The agent's arguments are validated with jsonschema before the function sees them; what is wrong comes back as a `ToolError`, one
sentence written for the model. Surprise: a positional-only parameter (`def get_order(db, /, order_id: str)`) is never shown to the
agent; the environment hands it in. Schemas may come from strangers' files, so a `$ref` out of the document is refused, never fetched.
"""

import inspect
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend
from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model
from pydantic import ValidationError as PydanticError
from referencing import Registry
from referencing.exceptions import Unresolvable

from agentalign.errors import TasksetError, ToolError
from agentalign.records.trajectory import ToolCall

MOST_REFERENCES = 10_000
"""That the check of one call's arguments follows in a stranger's schema."""


@dataclass(frozen=True)
class Tool:
    """A function an agent may call."""

    name: str
    schema: dict[str, JsonValue]
    """OpenAI function schema: {"type": "function", "function": {"name", "description", "parameters"}}."""
    function: Callable[..., object]
    arguments: type[BaseModel]
    """Converts checked JSON into the function's own types."""
    validator: Draft202012Validator

    def call(self, arguments: JsonValue, *given: object) -> str:
        """Run the function on the agent's arguments.

        Args:
            arguments: what the agent wrote; ToolError where it does not fit the schema.
            given: values for the function's positional-only parameters, such as a database.

        Returns:
            The function's text, or the JSON of whatever else it returned.
        """
        check_arguments(self.validator, self.name, arguments)
        try:
            values = self.arguments.model_validate(arguments)
        except PydanticError as error:
            raise ToolError(f"{self.name}: {error.errors()[0]['msg']}.") from None
        named = {field: getattr(values, field) for field in values.model_fields_set}
        result = self.function(*given, **named)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, separators=(",", ":"))


def tool(function: Callable[..., object]) -> Tool:
    """Make a tool of a typed function; its docstring's first paragraph and `Args:` become the descriptions."""
    name = function.__name__
    description, notes = _docstring(function)
    if not description:
        raise TasksetError(f"tool '{name}' has no docstring, and its first line is what the model reads. Write one sentence.")
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.kind == parameter.POSITIONAL_ONLY:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TasksetError(f"tool '{name}' takes *{parameter.name}, which has no schema. Name each argument.")
        if parameter.annotation is parameter.empty:
            raise TasksetError(f"tool '{name}': argument '{parameter.name}' has no type. Annotate it, e.g. {parameter.name}: str.")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, Field(default, description=notes.get(parameter.name)))
    # A parameter may have the name of a pydantic attribute; protected namespaces would only warn about it.
    arguments = create_model(name, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)
    parameters = cast(dict[str, JsonValue], _without_titles(arguments.model_json_schema()))
    validator = schema_validator(parameters, name)
    # The validator refuses unknown arguments; the model need not read that of every tool.
    shown = {key: value for key, value in parameters.items() if key not in ("additionalProperties", "description")}
    schema: dict[str, JsonValue] = {"type": "function", "function": {"name": name, "description": description, "parameters": shown}}
    return Tool(name, schema, function, arguments, validator)


def run_tool(tools: Mapping[str, Tool], call: ToolCall, *given: object) -> str:
    """Find the called tool and run it; an unknown name or arguments that are no JSON become a ToolError."""
    if call.name not in tools:
        raise ToolError(f"unknown tool '{call.name}'. Use one of: {', '.join(tools)}.")
    try:
        arguments = call.parsed()
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ToolError(f"{call.name}: the arguments have half a character (a lone surrogate).") from None
    except (ValueError, RecursionError):
        raise ToolError(f"{call.name}: the arguments are not valid JSON, or name a key twice.") from None
    return tools[call.name].call(arguments, *given)


def schema_validator(schema: JsonValue, source: str, *, is_own: bool = True) -> Draft202012Validator:
    """A Draft 2020-12 validator that fetches nothing; TasksetError where the schema is unsound or points outside itself.

    Args:
        is_own: the team wrote it. A stranger's regular expressions are not run: one of thirty characters can hold a process for years.
    """
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise TasksetError(f"{source}: the schema refers to {reference!r}, which is never fetched. Put the definition under $defs.")
    schema = schema if is_own else _of_one_dialect(schema)
    try:
        # Formats are the expressions' own: what is not run need not be one of Python's.
        formats: dict[str, Any] = {} if is_own else {"format_checker": None}
        Draft202012Validator.check_schema(cast(Any, schema), **formats)
    except SchemaError as error:
        raise TasksetError(f"{source}: not a JSON Schema ({error.message}). See https://json-schema.org/draft/2020-12.") from None
    except (OverflowError, RecursionError) as error:
        raise TasksetError(f"{source}: a schema that cannot be read ({type(error).__name__}: {error}). Make it smaller.") from None
    kind = Draft202012Validator if is_own else _WITHOUT_EXPRESSIONS
    return cast(Draft202012Validator, kind(cast(Any, schema), registry=Registry()))


def _of_one_dialect(schema: JsonValue) -> JsonValue:
    """Without `$schema`: where one stands, also deep inside, jsonschema goes on with the class that it names, which runs expressions."""
    if isinstance(schema, dict):
        return {key: _of_one_dialect(value) for key, value in schema.items() if key != "$schema" or not isinstance(value, str)}
    return [_of_one_dialect(value) for value in schema] if isinstance(schema, list) else schema


def _unchecked(*_arguments: object) -> Iterable[ValidationError]:
    return ()


def _unless_patterns(keyword: str) -> Callable[[Any, Any, Any, Any], Iterable[ValidationError]]:
    """A keyword's own check, but where what it leaves over depends on `patternProperties`."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[ValidationError]:
        return () if "patternProperties" in schema else Draft202012Validator.VALIDATORS[keyword](validator, value, instance, schema)

    return check


class _Followed(threading.local):
    """References that a check may still follow."""

    left = 0


_followed = _Followed()


def _counted(keyword: str) -> Callable[[Any, Any, Any, Any], Iterable[ValidationError]]:
    """A reference's own check, as long as not too many were followed: thirty definitions that each name the next twice are a billion."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[ValidationError]:
        _followed.left -= 1
        if _followed.left < 0:
            raise RecursionError
        yield from Draft202012Validator.VALIDATORS[keyword](validator, value, instance, schema) or ()

    return check


_WITHOUT_EXPRESSIONS = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        "pattern": _unchecked,
        "patternProperties": _unchecked,
        "unevaluatedProperties": _unchecked,
        "additionalProperties": _unless_patterns("additionalProperties"),
        "$ref": _counted("$ref"),
        "$dynamicRef": _counted("$dynamicRef"),
    },
)


def check_arguments(validator: Draft202012Validator, name: str, arguments: JsonValue) -> None:
    """ToolError, in words for the model, where arguments do not fit a tool's parameters."""
    _followed.left = MOST_REFERENCES
    try:
        error = best_match(validator.iter_errors(arguments))
    except RecursionError:
        raise ToolError(f"{name}: the arguments cannot be checked because the tool's schema refers to itself without end.") from None
    except Unresolvable:
        raise ToolError(f"{name}: the arguments cannot be checked because the tool's schema names a definition that it has not.") from None
    except OverflowError:
        raise ToolError(f"{name}: the arguments cannot be checked because a number is too large.") from None
    if error is not None:
        raise ToolError(f"{name}: {_sentence(error)}")


def _sentence(error: ValidationError) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    if error.validator == "required":
        missing = [key for key in cast(Sequence[str], error.validator_value) if key not in cast(Mapping[str, object], error.instance)]
        return f"missing argument {', '.join(repr(key) for key in missing)}{' in ' + place if place else ''}."
    if error.validator == "additionalProperties":
        known = list(cast(Mapping[str, object], error.schema).get("properties", {}))  # type: ignore[call-overload]
        unknown = [key for key in cast(Mapping[str, object], error.instance) if key not in known]
        return f"unknown argument {', '.join(repr(key) for key in unknown)}; it takes {', '.join(known) or 'none'}."
    message = error.message if len(error.message) <= 200 else error.message[:200] + " ..."
    return f"argument '{place}': {message}." if place else f"the arguments are wrong: {message}."


def _references(schema: JsonValue) -> Iterable[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(value, str):
                yield value
            elif key == "$id" and isinstance(value, str):
                # A base URI would turn every "#/..." into a remote address.
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _without_titles(schema: JsonValue, *, names: bool = False) -> JsonValue:
    """Drop pydantic's titles; `names` says that the keys are names of arguments, one of which may be "title"."""
    if isinstance(schema, dict):
        kept = {key: value for key, value in schema.items() if names or key != "title"}
        return {key: _without_titles(value, names=not names and key in ("properties", "$defs")) for key, value in kept.items()}
    if isinstance(schema, list):
        return [_without_titles(value) for value in schema]
    return schema


def _docstring(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    text = inspect.getdoc(function) or ""
    head, _, rest = text.partition("Args:")
    description = " ".join(head.split("\n\n")[0].split())
    notes: dict[str, str] = {}
    name = ""
    for line in rest.split("\n\n")[0].splitlines():
        start = re.match(r"\s{2,8}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if start:
            name = start[1]
            notes[name] = start[2].strip()
        elif name and line.strip():
            notes[name] += " " + line.strip()
    return description, notes
