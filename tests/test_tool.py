import json
import sqlite3
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentalign.environments.tool import run_tool, schema_validator, tool
from agentalign.errors import TasksetError, ToolError
from agentalign.records.trajectory import ToolCall


@tool
def refund(order_id: str, amount: int, reason: Literal["broken", "late"] = "late", title: str | None = None) -> dict[str, object]:
    """Refund a delivered order.

    Not shown to the model.

    Args:
        order_id: Order number, such as "W1042".
        amount: Whole dollars,
            at most what was paid.
    """
    return {"order": order_id, "amount": amount, "reason": reason, "title": title}


@tool
def count_rows(db: sqlite3.Connection, /, table: str) -> str:
    """Count rows."""
    return f"{table}: {db.execute('select 3').fetchone()[0]}"


def test_schema_says_what_the_function_says() -> None:
    function = refund.schema["function"]
    assert isinstance(function, dict)
    assert function["name"] == "refund"
    assert function["description"] == "Refund a delivered order."
    parameters = function["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["properties"] == {
        "order_id": {"type": "string", "description": 'Order number, such as "W1042".'},
        "amount": {"type": "integer", "description": "Whole dollars, at most what was paid."},
        "reason": {"type": "string", "enum": ["broken", "late"], "default": "late"},
        "title": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    }
    assert parameters["required"] == ["order_id", "amount"]


def test_positional_only_parameters_come_from_the_environment_and_are_not_shown() -> None:
    assert "db" not in json.dumps(count_rows.schema)
    assert count_rows.call({"table": "orders"}, sqlite3.connect(":memory:")) == "orders: 3"


def test_defaults_are_the_functions_own_and_results_become_compact_json() -> None:
    assert json.loads(refund.call({"order_id": "W1", "amount": 3})) == {"order": "W1", "amount": 3, "reason": "late", "title": None}
    assert " " not in refund.call({"order_id": "W1", "amount": 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order_id": "W1"}, "missing argument 'amount'"),
        ({"order_id": "W1", "amount": "3"}, "argument 'amount'"),
        ({"order_id": "W1", "amount": 2.5}, "argument 'amount'"),
        ({"order_id": "W1", "amount": True}, "argument 'amount'"),
        ({"order_id": "W1", "amount": 3, "reason": "bored"}, "argument 'reason'"),
        ({"order_id": "W1", "amount": 3, "price": 1}, "unknown argument 'price'; it takes order_id, amount, reason, title"),
        (["W1", 3], "the arguments are wrong"),
        ("W1", "the arguments are wrong"),
        (None, "the arguments are wrong"),
    ],
)
def test_wrong_arguments_are_told_to_the_agent(arguments: object, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        refund.call(arguments)  # type: ignore[arg-type]


def test_a_call_by_name_finds_its_tool_or_says_which_there_are() -> None:
    tools = {"refund": refund}
    assert "W1" in run_tool(tools, ToolCall(id="a", name="refund", arguments='{"order_id": "W1", "amount": 3}'))
    with pytest.raises(ToolError, match=r"unknown tool 'refnd'\. Use one of: refund"):
        run_tool(tools, ToolCall(id="a", name="refnd"))
    with pytest.raises(ToolError, match="not valid JSON"):
        run_tool(tools, ToolCall(id="a", name="refund", arguments='{"order_id": '))
    with pytest.raises(ToolError, match="not valid JSON"):
        run_tool(tools, ToolCall(id="a", name="refund", arguments="[" * 100_000))
    with pytest.raises(ToolError, match="name a key twice"):
        run_tool(tools, ToolCall(id="a", name="refund", arguments='{"order_id": "W1", "order_id": "W2", "amount": 1}'))
    with pytest.raises(ToolError, match="half a character"):
        run_tool(tools, ToolCall(id="a", name="refund", arguments='{"order_id": "\\ud800", "amount": 1}'))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"$ref": "https://example.com/s.json"}}},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"$id": "https://example.com/", "properties": {"a": {"$ref": "#/x"}}},
        {"allOf": [{"$dynamicRef": "other.json#x"}]},
        {"type": "objekt"},
        {"properties": 3},
    ],
)
def test_schemas_that_point_outside_or_are_unsound_are_refused(schema: object) -> None:
    with pytest.raises(TasksetError):
        schema_validator(schema, "tool 'x'")  # type: ignore[arg-type]


def test_an_endless_schema_is_an_error_for_the_agent_and_no_crash() -> None:
    from agentalign.environments.tool import check_arguments

    validator = schema_validator({"$ref": "#"}, "tool 'x'")
    with pytest.raises(ToolError, match="refers to itself"):
        check_arguments(validator, "x", {"a": 1})


HOLDS_A_PROCESS = "^(a+)+$"
DOUBLING = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}


@pytest.mark.parametrize("dialect", ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"])
def test_a_stranger_s_expressions_are_not_run_whatever_dialect_a_part_names(dialect: str) -> None:
    from agentalign.environments.tool import check_arguments

    schema = {"$schema": dialect, "properties": {"a": {"$schema": dialect, "pattern": HOLDS_A_PROCESS}, "$schema": {"type": "integer"}}}
    check_arguments(schema_validator(schema, "tool 'x'", is_own=False), "x", {"a": "a" * 60 + "!"})  # type: ignore[arg-type]
    with pytest.raises(ToolError, match="is not of type 'integer'"):
        check_arguments(schema_validator(schema, "tool 'x'", is_own=False), "x", {"$schema": "b"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schema", "arguments", "words"),
    [
        ({"$defs": DOUBLING, "$ref": "#/$defs/d0"}, {}, "refers to itself without end"),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}}, {"a": 1}, "names a definition that it has not"),
        ({"properties": {"a": {"multipleOf": 0.5}}}, {"a": 10**400}, "a number is too large"),
        ({"properties": {"a": {"pattern": "a{9999999999}"}}}, {"a": 1}, ""),
        ({"properties": {"a": {"pattern": "(" * 5000 + ")" * 5000}}}, {"a": 1}, ""),
        ({"properties": {"a": {"pattern": "\\p{L}"}}}, {"a": "x"}, ""),
    ],
)
def test_a_stranger_s_schema_ends_in_a_sentence_or_takes_the_arguments(schema: object, arguments: dict[str, object], words: str) -> None:
    from agentalign.environments.tool import check_arguments

    validator = schema_validator(schema, "tool 'x'", is_own=False)  # type: ignore[arg-type]
    if not words:
        check_arguments(validator, "x", arguments)  # type: ignore[arg-type]
        return
    with pytest.raises(ToolError, match=words):
        check_arguments(validator, "x", arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["a{9999999999}", "(" * 5000 + ")" * 5000])
def test_an_own_expression_that_cannot_be_read_is_a_sentence(pattern: str) -> None:
    with pytest.raises(TasksetError, match="tool 'x'"):
        schema_validator({"properties": {"a": {"pattern": pattern}}}, "tool 'x'")


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_reaches_no_tool(amount: str) -> None:
    call = ToolCall(id="a", name="refund", arguments=f'{{"order_id": "W1", "amount": {amount}}}')
    with pytest.raises(ToolError, match="not valid JSON"):
        run_tool({"refund": refund}, call)


def test_functions_without_words_or_types_are_refused() -> None:
    def silent(a: str) -> str:
        return a

    def untyped(a) -> str:  # type: ignore[no-untyped-def]
        """Do it."""
        return str(a)

    def many(*names: str) -> str:
        """Do it."""
        return str(names)

    with pytest.raises(TasksetError, match="no docstring"):
        tool(silent)
    with pytest.raises(TasksetError, match="'a' has no type"):
        tool(untyped)
    with pytest.raises(TasksetError, match=r"takes \*names"):
        tool(many)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values | st.dictionaries(st.sampled_from(["order_id", "amount", "reason", "title", "x"]), json_values))
def test_whatever_the_agent_writes_the_tool_runs_or_tells_it_why_not(arguments: object) -> None:
    try:
        result = refund.call(arguments)  # type: ignore[arg-type]
    except ToolError as error:
        assert str(error).startswith("refund: ")
    else:
        assert isinstance(arguments, dict)
        assert json.loads(result)["amount"] == arguments["amount"]
