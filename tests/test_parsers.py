import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentalign.training.parsers import Call, CallForm, TurnForm, parse_hermes, parse_llama3_json, strict_json

MISTRAL = CallForm(lead='[TOOL_CALLS] [{"name": "', mid='", "arguments": ', between='}, {"name": "', tail="}]")
ARGUMENTS = st.dictionaries(
    st.text(max_size=6), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists, max_leaves=5), max_size=4
)


def test_hermes_reads_text_and_then_calls():
    parsed = parse_hermes(
        'Let me look.\n<tool_call>\n{"name": "get", "arguments": {"b": 1, "a": "é"}}\n</tool_call>\n'
        '<tool_call>{"name":"put","arguments":{}}</tool_call>'
    )
    assert parsed.content == "Let me look."
    assert parsed.calls == (Call("get", '{"a":"é","b":1}'), Call("put", "{}"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>{"name": "get", "arguments": {}}', "without `</tool_call>`"),
        ('{"name": "get", "arguments": {}}</tool_call>', "without `<tool_call>`"),
        ("<tool_call>get()</tool_call>", "not valid JSON"),
        ('<tool_call>{"name": "get", "arguments": {"a": 1}</tool_call>', "not valid JSON"),
        ('<tool_call>{"name": "get", "arguments": {}} ok</tool_call>', "not valid JSON"),
        ('<tool_call>{"name": "get", "arguments": {"a": 1, "a": 2}}</tool_call>', "stands twice"),
        ('<tool_call>{"name": "get", "arguments": {"a": NaN}}</tool_call>', "NaN"),
        ('<tool_call>{"name": "get", "arguments": {"a": 1e999}}</tool_call>', "not valid JSON"),
        ('<tool_call>{"name": "get", "arguments": {"a": "\\ud800"}}</tool_call>', "surrogate"),
        ('<tool_call>{"name": "get", "arguments": ' + '{"a":' * 80 + "1" + "}" * 81 + "</tool_call>", "64 levels"),
        ('<tool_call>{"name": "get", "arguments": ' + "[" * 100_000 + "</tool_call>", "64 levels"),
        ('<tool_call>{"name": "get", "arguments": "{}"}</tool_call>', 'no object "arguments"'),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', 'no "name"'),
        ('<tool_call>[{"name": "get", "arguments": {}}]</tool_call>', "not a JSON object"),
        ('<tool_call>{"name": "get", "arguments": {}, "why": 1}</tool_call>', "unknown keys why"),
        ('<tool_call>{"name": "get", "arguments": {}}</tool_call> Done!', "text after a tool call"),
    ],
)
def test_hermes_says_why_a_call_cannot_be_read(text, reason):
    parsed = parse_hermes(text)
    assert reason in parsed.malformed
    assert parsed.content == text and not parsed.calls


def test_llama_reads_one_call_as_the_whole_turn():
    assert parse_llama3_json('<|python_tag|>{"type": "function", "name": "get", "parameters": {"a": [1]}}').calls == (
        Call("get", '{"a":[1]}'),
    )
    assert parse_llama3_json("Hello {you}.") == ("Hello {you}.", (), "", "")
    assert "not valid JSON" in parse_llama3_json('Sure: {"name": "get", "parameters": {}}').malformed
    assert "unknown keys" in parse_llama3_json('{"name": "get", "parameters": {}, "x": 1}').malformed


def test_a_learned_form_reads_what_its_template_writes():
    two = '[TOOL_CALLS] [{"name": "get", "arguments": {"a": "}]"}}, {"name": "put", "arguments": {}}]'
    assert MISTRAL.parse(two).calls == (Call("get", '{"a":"}]"}'), Call("put", "{}"))
    assert MISTRAL.parse("Hello. " + two).content == "Hello."
    assert "does not end" in MISTRAL.parse('[TOOL_CALLS][{"name": "get", "arguments": {}}').malformed
    assert "expected" in MISTRAL.parse("[TOOL_CALLS]get{}").malformed
    assert "no tool name" in MISTRAL.parse('[TOOL_CALLS][{"name": "", "arguments": {}}]').malformed


def test_reasoning_is_split_off_and_an_unclosed_thought_stays_text():
    form = TurnForm("hermes", reasoning=("<think>", "</think>"))
    assert form.parse("<think>\nhm </think>\n\nYes.") == ("Yes.", (), "", "hm")
    assert form.parse("<think>hm").content == "<think>hm"
    opened = TurnForm("hermes", reasoning=("", "</think>"))
    assert opened.parse("hm</think>Yes.") == ("Yes.", (), "", "hm")


def test_words_that_frame_every_text_are_not_part_of_it():
    form = TurnForm(text_lead="<|START|>", text_tail="<|STOP|>")
    assert form.parse("<|START|>Yes.<|STOP|>\n").content == "Yes."
    assert form.parse("Yes.").content == "Yes."


def test_a_malformed_turn_keeps_its_whole_text():
    text = "<think>hm</think><tool_call>{</tool_call>"
    parsed = TurnForm("hermes", reasoning=("<think>", "</think>")).parse(text)
    assert parsed.malformed and parsed.content == text


PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        '{"name": "a", "arguments": {}}',
        '{"name":',
        "[TOOL_CALLS]",
        '[{"name": "',
        "}]",
        "<think>",
        "</think>",
        "\\ud800",
        "{" * 2000,
        "\n",
        '"',
    ]
)


@given(st.lists(PIECES | st.text(max_size=10), max_size=12))
def test_no_text_makes_a_parser_raise(parts):
    text = "".join(parts)
    for form in (
        TurnForm("hermes", reasoning=("<think>", "</think>")),
        TurnForm("llama3_json"),
        TurnForm("learned", MISTRAL, "lead"),
        TurnForm(),
    ):
        parsed = form.parse(text)
        assert bool(parsed.malformed) <= (parsed.content == text)
        assert not (parsed.malformed and parsed.calls)


@given(ARGUMENTS)
def test_arguments_come_back_as_they_were_written(arguments):
    text = json.dumps(arguments, ensure_ascii=False)
    for written, parse in (
        (f'<tool_call>{{"name": "get", "arguments": {text}}}</tool_call>', parse_hermes),
        (f'{{"name": "get", "parameters": {text}}}', parse_llama3_json),
        (f'[TOOL_CALLS][{{"name": "get", "arguments": {text}}}]', MISTRAL.parse),
    ):
        parsed = parse(written)
        if "</tool_call>" in text or "<tool_call>" in text:
            continue
        assert json.loads(parsed.calls[0].arguments) == arguments, parsed


def test_strict_json_refuses_what_json_does_not_know():
    for text in ("{'a': 1}", "[1,]", "Infinity", "01", '"\t"', '{"a":1} x', ""):
        with pytest.raises(ValueError):
            strict_json(text)
