"""Chat rows become runs, whole or not at all."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from agentalign.errors import DataError
from agentalign.exchange.chat import read_chat, read_known_tools, write_chat
from agentalign.exchange.lines import look_through, read_rows
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory

ORIGIN = Origin(kind="import", reference="file", task="1")
TOOL: dict[str, JsonValue] = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def call(id: str | None, name: str = "look", arguments: JsonValue = "{}") -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return entry | ({"id": id} if id else {})


def read(*messages: JsonValue, **fields: JsonValue) -> Trajectory:
    return read_chat({"messages": list(messages), **fields}, taskset="desk", origin=ORIGIN)


USER: dict[str, JsonValue] = {"role": "user", "content": "Where is it?"}
DONE: dict[str, JsonValue] = {"role": "assistant", "content": "Here."}


def test_a_run_is_read_whole() -> None:
    run = read(
        {"role": "system", "content": "Be kind."}, USER,
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call("a", arguments={"b": 1, "a": "x"})]},
        {"role": "tool", "tool_call_id": "a", "name": "look", "content": "found"}, DONE,
        tools=[TOOL], utility=True,
    )  # fmt: skip
    assert [m.role for m in run.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert run.messages[2].tool_calls[0].arguments == '{"a":"x","b":1}'
    assert run.messages[2].reasoning == "Hm."
    assert run.messages[3].tool_call_id == "a"
    assert json.loads(run.tools) == [TOOL]
    assert json.loads(run.metadata) == {"utility": True}
    assert run.answer == "Here."


def test_what_was_written_is_read_back_equal() -> None:
    asked = {"role": "assistant", "content": "Let me see.", "tool_calls": [call("a")]}
    run = read(USER, asked, {"role": "tool", "tool_call_id": "a", "content": "é"}, DONE, tools=[TOOL])
    again = read_chat(write_chat(run), taskset="desk", origin=ORIGIN)
    assert again.content_digest == run.content_digest


LOOK = ToolCall(id="a", name="look", arguments='{"at":"W1"}')
ASKED = Message(role="user", content="Where is it?")


@pytest.mark.parametrize(
    "messages",
    [
        (Message(role="assistant", tool_calls=(LOOK,)), Message(role="tool", content="no W1", tool_call_id="a", name="look", error=True)),
        (Message(role="assistant", tool_calls=(LOOK,)), Message(role="tool", content="found", tool_call_id="a")),
        (Message(role="assistant", content="<tool_call>{", malformed="it is not JSON"), Message(role="tool", content="what?", error=True)),
        (Message(role="assistant", content="<tool_call>{", malformed="it is not JSON", reasoning="Hm."),),
        (
            Message(role="assistant", content="<tool_call>{", malformed="the second is not JSON", tool_calls=(LOOK,)),
            Message(role="tool", content="what?", error=True),
            Message(role="tool", content="found", tool_call_id="a", name="look"),
            Message(role="assistant", content="It is here."),
        ),
    ],
)
def test_messages_are_read_back_equal_with_all_that_went_wrong(messages: tuple[Message, ...]) -> None:
    run = Trajectory(taskset="desk", messages=(ASKED, *messages), origin=ORIGIN)
    row = json.loads(json.dumps(write_chat(run)))
    assert isinstance(row["metadata"], str), "labels of one name may be of two types, and a table's column is of one"
    assert read_chat(row, taskset="desk", origin=ORIGIN).messages == run.messages


def test_a_result_without_a_call_is_refused_where_nothing_was_malformed() -> None:
    with pytest.raises(DataError, match="no open call"):
        read(USER, DONE, {"role": "tool", "content": "what?"})


def test_text_parts_are_joined() -> None:
    run = read({"role": "user", "content": [{"type": "text", "text": "Where "}, {"type": "text", "text": "is it?"}]}, DONE)
    assert run.messages[0].content == "Where is it?"


def test_developer_is_the_new_word_for_system() -> None:
    assert read({"role": "developer", "content": "Be kind."}, USER, DONE).messages[0].role == "system"


def test_a_refusal_is_what_the_agent_said() -> None:
    assert read(USER, {"role": "assistant", "content": None, "refusal": "No."}).answer == "No."


def test_ids_that_come_again_are_made_unique_and_results_follow() -> None:
    turn: list[JsonValue] = [{"role": "assistant", "tool_calls": [call("c0")]}, {"role": "tool", "tool_call_id": "c0", "content": "x"}]
    run = read(USER, *turn, *turn, DONE)
    ids = [m.tool_calls[0].id for m in run.messages if m.tool_calls]
    assert len(set(ids)) == 2
    assert [m.tool_call_id for m in run.messages if m.role == "tool"] == ids


def test_calls_of_one_message_with_one_id_are_answered_in_order() -> None:
    twice: JsonValue = {"role": "assistant", "tool_calls": [call("c0"), call("c0")]}
    results: list[JsonValue] = [{"role": "tool", "tool_call_id": "c0", "content": content} for content in ("x", "y")]
    run = read(USER, twice, *results, DONE)
    ids = [one.id for one in run.messages[1].tool_calls]
    assert [(m.tool_call_id, m.content) for m in run.messages if m.role == "tool"] == list(zip(ids, ("x", "y"), strict=True))
    assert read(USER, twice, results[0], DONE).messages[2].tool_call_id == ids[0], "one that was cut"


def test_ids_may_be_numbers() -> None:
    calls: list[JsonValue] = [call("c") | {"id": number} for number in (0, 1)]  # type: ignore[operator]
    results: list[JsonValue] = [{"role": "tool", "tool_call_id": number, "content": str(number)} for number in (1, 0)]
    run = read(USER, {"role": "assistant", "tool_calls": calls}, *results, DONE)
    assert [one.id for one in run.messages[1].tool_calls] == ["0", "1"]
    assert [(m.tool_call_id, m.content) for m in run.messages if m.role == "tool"] == [("1", "1"), ("0", "0")]


def test_results_without_ids_answer_calls_in_order() -> None:
    run = read(
        USER, {"role": "assistant", "tool_calls": [call(None, "look"), call(None, "ask"), call(None, "look")]},
        {"role": "tool", "content": "1"}, {"role": "tool", "name": "look", "content": "2"}, {"role": "tool", "content": "3"}, DONE,
    )  # fmt: skip
    first, second, third = (c.id for c in run.messages[1].tool_calls)
    assert [m.tool_call_id for m in run.messages if m.role == "tool"] == [first, third, second]


def test_a_line_of_very_many_calls_or_keys_takes_seconds_at_most(tmp_path: Path) -> None:
    began = time.process_time()  # of the processor: what else the machine does takes no part
    calls: list[JsonValue] = [call("x") for _ in range(20_000)]
    made = read(USER, {"role": "assistant", "tool_calls": calls}, DONE).messages[1].tool_calls
    assert [one.id for one in made[:3]] == ["x", "x_1", "x_2"]
    assert len({one.id for one in made}) == len(calls)
    numbered: list[JsonValue] = [call(f"c{number}") for number in range(20_000)]
    by_id: list[JsonValue] = [{"role": "tool", "content": "1", "tool_call_id": f"c{number}"} for number in range(20_000)]
    in_order: list[JsonValue] = [{"role": "tool", "content": "1"} for _ in range(20_000)]
    for results in (by_id, in_order):
        run = read(USER, {"role": "assistant", "tool_calls": numbered}, *results, DONE)
        assert [message.tool_call_id for message in run.messages[2:-1]] == [f"c{number}" for number in range(20_000)]
    path = tmp_path / "rows.jsonl"
    path.write_text("{" + "".join(f'"k{number}": 0, ' for number in range(200_000)) + '"z": 0, "z": 1}\n')
    (row,) = read_rows(path)
    assert "the key 'z' stands twice" in row.reason
    assert time.process_time() - began < 20, "each of these took minutes where time grew with the square"


def test_arguments_that_are_no_json_are_kept_as_written() -> None:
    assert read(USER, {"role": "assistant", "tool_calls": [call("a", arguments="{oops")]}).messages[1].tool_calls[0].arguments == "{oops"


def test_arguments_with_a_key_twice_are_kept_as_written() -> None:
    text = '{"at": "W1", "at": "W2"}'
    run = read(USER, {"role": "assistant", "tool_calls": [call("a", arguments=text)]})
    assert run.messages[1].tool_calls[0].arguments == text


@pytest.mark.parametrize("number", ["0.12345678901234567891", "12345678901234567.89", "1e400", "1e99999999999999999999", "4.9e-400"])
def test_a_number_that_no_float_holds_is_kept_as_it_was_written(number):
    text = f'{{ "b": {number}, "a": 1 }}'
    assert read(USER, {"role": "assistant", "tool_calls": [call("a", arguments=text)]}).messages[1].tool_calls[0].arguments == text


@pytest.mark.parametrize(
    ("number", "canonical"), [("520.0", "520.0"), ("1.50", "1.5"), ("12e2", "1200.0"), ("123456789012345678901", None)]
)
def test_a_number_that_a_float_holds_has_one_way_to_be_written(number, canonical):
    run = read(USER, {"role": "assistant", "tool_calls": [call("a", arguments=f'{{ "b": {number} }}')]})
    assert run.messages[1].tool_calls[0].arguments == f'{{"b":{canonical or number}}}'


def test_a_tool_as_the_responses_api_writes_it_is_offered_as_any_other() -> None:
    flat = {"type": "function", "name": "look", "description": "Look.", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
    assert json.loads(read(USER, DONE, tools=[flat]).tools) == [wrapped]


def test_describing_fields_travel_in_metadata() -> None:
    run = read(USER | {"name": "Ann"}, DONE | {"annotations": [], "audio": None, "usage": {"total_tokens": 3}})
    assert json.loads(run.metadata)["message_fields"] == {"0": {"name": "Ann"}, "1": {"usage": {"total_tokens": 3}}}


def test_describing_fields_of_a_call_travel_in_metadata_and_a_result_in_it_is_refused() -> None:
    asked = call("a") | {"index": 1, "extra_content": {"google": {"thought_signature": "x"}}}
    run = read(USER, {"role": "assistant", "tool_calls": [asked]}, {"role": "tool", "tool_call_id": "a", "content": "x"}, DONE)
    (notes,) = json.loads(run.metadata)["message_fields"].values()
    assert notes == {"index": 1, "extra_content": {"google": {"thought_signature": "x"}}}
    inside = {"name": "look", "arguments": "{}", "output": "42"}
    for answered in (call("a") | {"result": "42"}, {"id": "a", "type": "function", "function": inside}):
        with pytest.raises(DataError, match=r"the field '(result|output)' in a tool call, which cannot be kept"):
            read(USER, {"role": "assistant", "tool_calls": [answered]}, DONE)


def test_tools_named_only_are_looked_up() -> None:
    known = read_known_tools({"look": TOOL})
    run = read_chat({"messages": [USER, DONE], "tools": ["look"]}, taskset="desk", origin=ORIGIN, known_tools=known)
    assert json.loads(run.tools) == [TOOL]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        ("hello", "must be a list"),
        ([USER], "no message is from the assistant"),
        (["hello"], "message 0 is a text"),
        ([{"role": "function", "content": "x"}, DONE], 'the role "function"'),
        ([USER | {"weight": 0}, DONE], "the field 'weight'"),
        ([{"role": "user", "content": None}, DONE], "has no content"),
        ([USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "only text"),
        ([USER, {"role": "assistant", "content": {"a": 1}}], "content that is a mapping"),
        ([USER, {"role": "assistant", "tool_calls": ["look"]}], "a tool call that is not"),
        ([USER, {"role": "assistant", "tool_calls": [call("a", arguments=[1])]}], "arguments that are a list"),
        ([USER, {"role": "assistant", "tool_calls": [call("a", name="")]}], "without a name"),
        ([USER, {"role": "assistant", "tool_calls": [call("a")]}, {"role": "tool", "tool_call_id": "b"}], 'the call id "b"'),
        ([{"role": "tool", "content": "x"}, DONE], "does not stand after"),
        ([USER, DONE | {"function_call": {"name": "look", "arguments": "{}"}}], "the field 'function_call'"),
        (
            [USER, {"role": "assistant", "tool_calls": [call("a")]}, {"role": "tool", "content": "x", "error": "lost"}],
            "`error` that is a text",
        ),
        ([USER | {"error": True}, DONE], "the field 'error'"),
        ([USER, DONE | {"malformed": True}], "`malformed` that is a truth value"),
        ([USER, DONE | {"reasoning": "a", "reasoning_content": "b"}], "different texts"),
        ([USER, DONE | {"refusal": "No."}], "both `content` and `refusal`"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(messages: JsonValue, words: str) -> None:
    with pytest.raises(DataError, match=r"^[a-z`]") as caught:
        read_chat({"messages": messages}, taskset="desk", origin=ORIGIN)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": [], "rejected": []}, "no `messages`"),
        ({"messages": [USER, DONE], "functions": [{"name": "look"}]}, "the form before"),
        ({"messages": [USER, DONE], "tools": ["look"]}, "--tools FILE"),
        ({"messages": [USER, DONE], "tools": {"look": {}}}, "not a list"),
        ({"messages": [USER, DONE], "tools": [{"type": "function", "function": {"name": "look", "parameters": 3}}]}, "no JSON Schema"),
    ],
)
def test_a_row_of_another_form_is_refused(row: dict[str, JsonValue], words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_chat(row, taskset="desk", origin=ORIGIN)
    assert words in str(caught.value)


WORDS = st.sampled_from(["user", "assistant", "tool", "text", "function", "a"])
KEYS = st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments", "id", "tool_calls", "tool_call_id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
ROLE = st.sampled_from(["system", "user", "assistant", "tool"])
ENTRY = st.fixed_dictionaries({"role": ROLE}, optional={"content": JSON, "tool_calls": JSON, "tool_call_id": JSON, "name": JSON})


@given(st.fixed_dictionaries({"messages": st.lists(ENTRY | JSON, max_size=5)}, optional={"tools": JSON, "label": JSON}))
def test_any_row_is_a_run_or_a_reason(row: dict[str, JsonValue]) -> None:
    try:
        run = read_chat(row, taskset="desk", origin=ORIGIN)
    except DataError as error:
        assert str(error).endswith(".")
    else:
        again = read_chat(write_chat(run), taskset="desk", origin=ORIGIN)
        assert again.content_digest == run.content_digest


def test_lines_are_read_from_plain_and_packed_files_alike(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n{"a": 2}'
    (tmp_path / "plain.jsonl").write_text(text)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = look_through(tmp_path / "plain.jsonl"), look_through(tmp_path / "packed.gz")
    assert (plain.digest, plain.lines) == (packed.digest, packed.lines)
    assert plain.lines == 3
    assert [(r.number, r.value) for r in read_rows(tmp_path / "packed.gz")] == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "longer than"),
    ],
)
def test_a_bad_line_costs_one_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    limit = 1000 if words == "longer than" else 2**20
    first, bad, last = read_rows(path, max_line_bytes=limit)
    assert (first.value, bad.value, last.value, last.number) == ({"a": 1}, None, {"a": 2}, 3)
    assert words in bad.reason


def test_a_file_that_cannot_be_used_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 10_000)[:-9])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"\n" * 2**21))
    wanted = {"none": "no such file", ".": "a folder", "empty": "is empty", "cut.gz": "damaged", "bomb.gz": "more than"}
    for name, words in wanted.items():
        with pytest.raises(DataError, match=words):
            look_through(tmp_path / name, max_file_bytes=2**20)
    with pytest.raises(DataError, match="more than"):
        list(read_rows(tmp_path / "bomb.gz", max_file_bytes=2**20))
