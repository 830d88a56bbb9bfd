"""What stands beside what when two runs are compared."""

import pytest

from agentalign.ui.align import Row, align, canonical_arguments
from agentalign.ui.views import CallView, Entry


def step(tool: str, arguments: str = "{}", *, result: str | None = "ok", reasoning: str = "") -> Entry:
    call = CallView(name=tool, arguments=arguments, result=result, error=False)
    return Entry(kind="step", message=0, step=0, reasoning=reasoning, calls=[call])


def says(text: str) -> Entry:
    return Entry(kind="step", message=0, step=0, text=text)


def rows(left: list[Entry], right: list[Entry]) -> list[tuple[int | None, int | None, str]]:
    return [(row.left, row.right, row.kind) for row in align(left, right)]


def test_identical_runs_have_no_rows_after_their_beginning():
    assert rows([step("a"), says("Done.")], [step("a"), says("Done.")]) == []
    assert rows([], []) == []


def test_an_empty_side_leaves_the_other_alone():
    assert rows([], [step("a")]) == [(None, 0, "only_right")]
    assert rows([step("a")], []) == [(0, None, "only_left")]


def test_one_step_more_moves_nothing_else_out_of_line():
    left, right = [step("a"), step("c"), says("Done.")], [step("a"), step("b"), step("c"), says("Done.")]
    assert rows(left, right) == [(None, 1, "only_right"), (1, 2, "same"), (2, 3, "same")]


def test_swapped_steps_keep_one_in_line_and_stay_in_both_orders():
    found = rows([step("a"), step("b"), says("x")], [step("b"), step("a"), says("x")])
    assert found == [(0, None, "only_left"), (1, 0, "same"), (None, 1, "only_right"), (2, 2, "same")]


def test_the_same_tool_with_other_arguments_is_changed():
    found = rows([step("find", '{"q": "x"}'), step("refund", '{"id": 1}')], [step("find", '{"q": "x"}'), step("refund", '{"id": 2}')])
    assert found == [(1, 1, "changed")]


def test_an_extra_step_before_changed_arguments_is_the_extra_one():
    found = rows([step("refund", '{"id": 1}'), says("x")], [step("find"), step("refund", '{"id": 2}'), says("x")])
    assert found == [(None, 0, "only_right"), (0, 1, "changed"), (1, 2, "same")]


def test_spelling_of_arguments_and_reasoning_count_for_nothing():
    left, right = step("a", '{"x": 1, "y": 2}', reasoning="one"), step("a", '{"y":2,"x":1}', reasoning="two")
    assert rows([left], [right]) == [(0, 0, "same")]


def test_another_result_or_other_words_are_a_change():
    assert rows([step("a", result="found")], [step("a", result="none")]) == [(0, 0, "changed")]
    assert rows([step("a", result=None)], [step("a", result="")]) == [(0, 0, "changed")], "no result is not an empty one"
    assert rows([says("Yes.")], [says("No.")]) == [(0, 0, "changed")]


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 100_000, "9" * 5_000, '"\ud800"'])
def test_hostile_arguments_are_compared_as_they_are(text: str):
    assert canonical_arguments(text) == text
    assert rows([step("a", text), says("x")], [step("b"), step("a", text), says("x")])[1:] == [(0, 1, "same"), (1, 2, "same")]


def test_every_entry_stands_in_one_row_and_in_order():
    names = "abcab", "bacba", "aabbcc", "cba", "abcabcabc"
    for one in names:
        for other in names:
            left, right = [step(name) for name in one], [step(name) for name in other]
            found = align(left, right)
            shared = len(left) - sum(row.left is not None for row in found)
            assert [row.left for row in found if row.left is not None] == list(range(shared, len(left)))
            assert [row.right for row in found if row.right is not None] == list(range(shared, len(right)))
            assert all(one[row.left] == other[row.right] for row in found if row.left is not None and row.right is not None)


def test_runs_too_long_for_the_table_are_still_shown_whole():
    left, right = [step(f"a{n}") for n in range(1100)], [step(f"b{n}") for n in range(1100)]
    found = align(left, right)
    assert len(found) == 2200
    assert found[0] == Row(left=0, right=None, kind="only_left")
