"""Turns under a grammar: in the words of the template, and read back by the one parser."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_base import make_base

pytest.importorskip("llguidance", reason="constrained decoding is an extra: pip install 'agentalign[constrained]'")

from agentalign.errors import ConfigError, ModelError
from agentalign.records.trajectory import Message, ToolCall
from agentalign.training import special_text
from agentalign.training.base import prepare_base
from agentalign.training.constraints import Grammars
from agentalign.training.dialect import Dialect
from agentalign.training.parsers import TurnForm
from agentalign.training.turn_grammar import ToolShape, TurnShape, turn_grammar

OBJECT = {"type": "object"}
STRICT = {
    "type": "object", "properties": {"size": {"enum": [1, 2]}, "item": {"type": "string"}}, "required": ["size", "item"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = (ToolShape("add", OBJECT), ToolShape("order", STRICT))


@pytest.fixture(scope="module")
def dialect(tmp_path_factory: pytest.TempPathFactory) -> Dialect:
    folder = tmp_path_factory.mktemp("base")
    return Dialect.load(prepare_base(str(make_base(folder)), folder / "cache"))


@pytest.fixture(scope="module")
def grammars(dialect: Dialect) -> Grammars:
    return Grammars(dialect, len(dialect.tokenizer))


def takes(grammars: Grammars, dialect: Dialect, shape: TurnShape, text: str) -> str:
    """What becomes of a turn: "whole", "beginning" where it may not end here, or the text that was taken."""
    constraint = grammars.constraint(turn_grammar(dialect, shape))
    ids = dialect.encode(text)
    for place, token in enumerate(ids):
        if constraint.over or not constraint.allowed()[token]:
            return dialect.decode(ids[:place])
        constraint.advance(token)
    return "whole" if constraint.over or constraint.allowed()[min(dialect.stop_ids)] else "beginning"


def written(dialect: Dialect, *calls: tuple[str, str], content: str = "") -> str:
    """What the template writes for these calls."""
    made = tuple(ToolCall(id=f"call_{i}", name=name, arguments=arguments) for i, (name, arguments) in enumerate(calls))
    message = Message(role="assistant", content=content, tool_calls=made)
    return special_text.plain(dialect.turn_text([Message(role="user", content="x"), message]).text).partition("<|im_end|>")[0]


def test_a_call_is_taken_as_the_template_writes_it(dialect: Dialect, grammars: Grammars) -> None:
    must, may = TurnShape("must", TOOLS), TurnShape("may", TOOLS)
    one = written(dialect, ("order", '{"item": "mug", "size": 1}'))
    two = written(dialect, ("add", '{"a": [1, {}]}'), ("order", '{"item": "mug", "size": 2}'))
    for shape in (must, may):
        assert takes(grammars, dialect, shape, one) == "whole"
        assert takes(grammars, dialect, shape, two) == "whole"
    single = TurnShape("must", TOOLS, parallel=False)
    assert takes(grammars, dialect, single, one) == "whole"
    assert takes(grammars, dialect, single, two) == two.partition("\n")[0]
    assert takes(grammars, dialect, must, "Hello") == ""
    assert takes(grammars, dialect, may, "Hello <tool ") == "whole"
    assert takes(grammars, dialect, may, written(dialect, ("add", "{}"), content="Wait.")) == "whole"


def test_names_and_strict_arguments_bind(dialect: Dialect, grammars: Grammars) -> None:
    shape = TurnShape("may", TOOLS)
    assert takes(grammars, dialect, shape, written(dialect, ("fly", "{}"))) == '<tool_call>{"name": "'
    assert takes(grammars, dialect, shape, written(dialect, ("order", '{"item": "mug", "size": 3}'))).endswith('"size": ')
    assert takes(grammars, dialect, shape, written(dialect, ("add", '{"any": "thing"}'))) == "whole"
    assert takes(grammars, dialect, shape, written(dialect, ("add", '{"any": 1}'))[:-3]) != "whole"


def test_an_answer_may_stand_beside_calls(dialect: Dialect, grammars: Grammars) -> None:
    shape = TurnShape("may", TOOLS, answer={"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    assert takes(grammars, dialect, shape, '{"ok": true}') == "whole"
    assert takes(grammars, dialect, shape, written(dialect, ("add", "{}"))) == "whole"
    assert takes(grammars, dialect, shape, "Hello") == ""


@pytest.mark.parametrize("text", ["int main() { return 0; }", '{"a": 1}', "Hello."])
def test_text_may_hold_what_begins_no_call_where_calls_are_json(
    dialect: Dialect, grammars: Grammars, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(Dialect, "form", TurnForm("llama3_json"))
    shape = TurnShape("may", TOOLS, parallel=False)
    assert takes(grammars, dialect, shape, text) == "whole"
    assert takes(grammars, dialect, shape, '{"name": "order", "parameters": {"item": "mug", "size": 1}}') == "whole"
    assert takes(grammars, dialect, shape, '{"name": "order", "parameters": {"item": "mug", "size": 3}}').endswith('"size": ')
    assert takes(grammars, dialect, shape, 'So: {"name": "order"') == 'So: {"name"'


@settings(max_examples=30)
@given(text=st.text(alphabet='ab {}<>"tool_call/\\\n\u00e9', max_size=30))
def test_any_string_can_be_an_argument(dialect: Dialect, grammars: Grammars, text: str) -> None:
    turn = written(dialect, ("order", json.dumps({"item": text, "size": 1})))
    if dialect.parse(turn).tool_calls:  # a text that holds `</tool_call>` ends the call early: then the template cannot say it
        assert takes(grammars, dialect, TurnShape("must", TOOLS), turn) == "whole"


@pytest.mark.parametrize("schema", [{"not": {"type": "string"}}, {"$ref": "http://127.0.0.1:9/x"}, {"type": "strin"}])
def test_what_llguidance_cannot_keep_is_refused_with_its_reason(dialect: Dialect, grammars: Grammars, schema: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        grammars.constraint(turn_grammar(dialect, TurnShape("no", answer=schema)))


def test_an_id_that_was_not_allowed_is_an_error_and_not_a_crash(dialect: Dialect, grammars: Grammars) -> None:
    constraint = grammars.constraint(turn_grammar(dialect, TurnShape("no", answer=OBJECT)))
    with pytest.raises(ModelError, match="cannot go on"):
        constraint.advance(dialect.encode("x")[0])
