"""Text of a turn that is still being written: never half a call, never a word that is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_base import make_base

from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.parsers import CallForm, TurnForm
from agentalign.training.streaming import Silence, Unfolding, certain_text

HERMES = TurnForm("hermes")
LEARNED = TurnForm("learned", CallForm(lead="[TOOL_CALLS] [", mid=' {"args": ', between=", ", tail="]"))
FORMS = [
    HERMES,
    TurnForm("hermes", reasoning=("<think>", "</think>")),
    TurnForm("hermes", reasoning=("", "</think>")),
    TurnForm("llama3_json"),
    LEARNED,
    TurnForm("text", text_lead="<|channel|>final", text_tail="<|end|>"),
]
PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "_call>", "<", '{"name": "x", "arguments": {}}', '{"name": "x", "parameters": {}}', "{", "}",
     "<think>", "</think>", "hm", " ", "\n", "Hello", "é", "[TOOL_CALLS]", "[TOOL", "<|channel|>final", "<|end|>", "<|e", "<|python_tag|>"]
)  # fmt: skip
TURNS = st.lists(PIECES, max_size=9).map("".join)


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(turn=TURNS)
def test_what_was_certain_is_the_beginning_of_the_text_however_the_turn_ends(form: TurnForm, turn: str) -> None:
    parsed = form.parse(turn)
    content = form.split(turn)[1] if parsed.malformed else parsed.content
    before = ""
    for length in range(len(turn) + 1):
        now = certain_text(form, turn[:length])
        assert now.startswith(before), "a word was taken back"
        assert content.startswith(now), (turn[:length], now, content)
        if parsed.calls or parsed.malformed:
            assert not any(start in now for start in form.call_starts)
        before = now


def test_text_is_certain_at_once_and_half_a_call_never() -> None:
    assert certain_text(HERMES, "Hello the") == "Hello the"
    assert certain_text(HERMES, "a < b and") == "a < b and"
    for half in ("<", "<tool", "<tool_call>", '<tool_call>{"name": "x"', "\n<tool_c"):
        assert certain_text(HERMES, "Wait." + half) == "Wait."
    assert certain_text(LEARNED, "Wait. [TOOL") == "Wait."
    assert certain_text(TurnForm("hermes", reasoning=("<think>", "</think>")), "<think>secret") == ""
    assert certain_text(TurnForm("hermes", reasoning=("<think>", "</think>")), "<think>secret</think>\nHi") == "Hi"


@pytest.fixture(scope="module")
def dialect(tmp_path_factory: pytest.TempPathFactory) -> Dialect:
    folder = tmp_path_factory.mktemp("base")
    return Dialect.load(prepare_base(str(make_base(folder)), folder / "cache"))


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_text_unfolds_by_whole_characters(dialect: Dialect, text: str) -> None:
    ids = dialect.encode(text)
    unfolding, before = Unfolding(dialect.decode), ""
    for token in ids:
        now = unfolding.add(token)
        assert now.startswith(before)
        before = now
    # A replacement character that was really written stands at the end only while nothing follows it.
    assert before.rstrip("\ufffd") == dialect.decode(ids).rstrip("\ufffd")


def test_a_silent_turn_never_completes_the_beginning_of_a_call(dialect: Dialect) -> None:
    silence = Silence(dialect.form, dialect.decode)
    assert silence.allowed() is None
    ids = dialect.encode("Hello <tool_call>")
    for token in ids[:-1]:
        assert not silence.refuses(token)
        silence.advance(token)
    assert silence.refuses(ids[-1])
    assert not silence.refuses(dialect.encode("x")[0])


@pytest.mark.parametrize("text", ['{"a": 1}', "Hello {you}.", "int main() { return 0; }", '{"name"}', '{"names": 2}', '{"a": {"of": []}}'])
def test_a_silent_turn_of_a_form_whose_calls_are_json_may_hold_braces(dialect: Dialect, text: str) -> None:
    form = TurnForm("llama3_json")
    silence = Silence(form, dialect.decode)
    for token in dialect.encode(text):
        assert not silence.refuses(token)
        silence.advance(token)
    assert form.parse(text).content == text


@pytest.mark.parametrize("text", ['{"name":', '{"parameters" :', 'So: { \n "type":', "<|python_tag|>", "{" + " " * 30 + '"name":'])
def test_a_silent_turn_of_a_form_whose_calls_are_json_begins_no_call(dialect: Dialect, text: str) -> None:
    silence = Silence(TurnForm("llama3_json"), dialect.decode)
    *begun, last = dialect.encode(text)
    for token in begun:
        assert not silence.refuses(token)
        silence.advance(token)
    assert silence.refuses(last)
