"""Which entry of a list was taken, read off results of any form, and what speaks for places that are mostly rejected."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentalign.recipes.listed import entries, picked_apart, picks, unlike
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory

ORDERS = "W1 red mug shipped\nW2 blue vase processing\nW3 red clock delivered"


def desk(request, *acts, list_result=ORDERS):
    """A run: each act is a text, or (tool, arguments), which is answered by the list."""
    messages = [Message(role="user", content=request)]
    for number, act in enumerate(acts):
        if isinstance(act, str):
            messages.append(Message(role="assistant", content=act))
            continue
        call = ToolCall(id=f"call_{number}", name=act[0], arguments=json.dumps(act[1]))
        messages.append(Message(role="assistant", tool_calls=(call,)))
        messages.append(Message(role="tool", content=list_result, tool_call_id=call.id, name=act[0]))
    return Trajectory(taskset="desk", messages=tuple(messages), origin=Origin(kind="expert", reference="expert", task=request))


LOOK = ("list_orders", {"customer_id": "C9"})


def cancelling(order, request="Cancel the vase."):
    return desk(request, LOOK, ("cancel_order", {"order_id": order}))


def tracking(order, request="Where is my latest order?"):
    return desk(request, LOOK, ("track_order", {"order_id": order}), list_result="W7 green lamp shipped\nW8 white bag shipped")


@pytest.mark.parametrize(
    ("result", "value", "expected"),
    [
        (ORDERS, "W2", ("W1", "W2", "W3")),
        ("W1 holds W9.\nW2 holds W8.", "W2", ("W1", "W2")),
        ("W1 holds W9.\nW2 holds W8.", "W8", ("W9", "W8")),
        ('[{"id": 12, "price": 7}, {"id": 150, "price": 8}]', "150", ("12", "150")),
        ('[{"id": 12, "price": 7}, {"id": 150, "price": 8}]', "8", ("7", "8")),
        ("Customers:\n* Ada\n* Bob", "Bob", ("Ada", "Bob")),
        ("- src/a.py\n- src/long_name2.py", "src/a.py", ("src/a.py",)),
        ("- src/a.py\n- lib/b.py\n- lib/b.py", "lib/b.py", ("src/a.py", "lib/b.py")),
        ("| 1 | W4 | blue |\n| 2 | W5 | red |", "W5", ("W4", "W5")),
        ("order W10", "W1", ()),
        ("W1", "", ()),
        ("W1 W2" * 10_000, "W1", ()),
    ],
)
def test_entries_are_values_of_one_make_after_the_same_words(result, value, expected):
    assert entries(result, value) == expected


@given(st.text(max_size=40), st.text(max_size=12), st.text(max_size=40))
def test_a_value_is_among_its_entries_or_there_are_none(before, value, after):
    found = entries(before + value + after, value)
    assert found == () or value in found
    assert len(set(found)) == len(found)


def test_a_pick_is_an_argument_out_of_a_list_that_the_user_did_not_name():
    (pick,) = picks(cancelling("W2"), 1)
    assert (pick.argument, pick.value, pick.place, pick.entries) == ("order_id", "W2", 1, ("W1", "W2", "W3"))
    assert picks(cancelling("W2", request="Cancel W2."), 1) == []
    assert picks(cancelling("W9"), 1) == []
    assert picks(cancelling("W2"), 0) == picks(cancelling("W2"), 5) == []
    assert picks(desk("Hi", LOOK, ("cancel_order", ["W2"])), 1) == []


def test_two_runs_part_by_what_they_took_only_where_nothing_else_differs_first():
    better, worse = picked_apart(cancelling("W2"), cancelling("W1"), 1)
    assert (better.place, worse.place) == (1, 0)
    assert picked_apart(cancelling("W2"), cancelling("W9"), 1) is None
    assert picked_apart(cancelling("W2"), desk("Cancel the vase.", LOOK, ("get_order", {"order_id": "W1"})), 1) is None
    assert picked_apart(cancelling("W2"), desk("Cancel the vase.", LOOK, "Which one?"), 1) is None
    reason, other = ("cancel_order", {"because": "a", "order_id": "W1"}), ("cancel_order", {"because": "b", "order_id": "W2"})
    assert picked_apart(desk("Cancel.", LOOK, reason), desk("Cancel.", LOOK, other), 1) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"amount": 5, "order_id": "W1"}, {"order_id": "W2"}, None),
        ({"order_id": "W1"}, {"amount": 5, "order_id": "W2"}, None),
        ({"confirm": True, "order_id": "W1"}, {"confirm": False, "order_id": "W2"}, None),
        ({"at": None, "order_id": "W1"}, {"at": [1], "order_id": "W2"}, None),
        ({"confirm": True, "order_id": "W1"}, {"confirm": True, "order_id": "W2"}, (0, 1)),
        ({"order_id": "W3", "x": 1}, {"order_id": "W1"}, (2, 0)),
    ],
)
def test_what_differs_first_decides_whatever_kind_of_value_it_is(ours, theirs, expected):
    both = picked_apart(*(desk("Cancel.", LOOK, ("cancel_order", given)) for given in (ours, theirs)), 1)
    assert (tuple(pick.place for pick in both) if both else None) == expected


def pairs_of(*places):
    """Pairs of (better, worse) places."""
    return [picked_apart(cancelling(f"W{better + 1}"), cancelling(f"W{worse + 1}"), 1) for better, worse in places]


def test_a_place_that_is_rejected_more_often_gets_as_many_demonstrations_as_are_missing():
    shown = [tracking("W7", request=f"Track my latest, {name}.") for name in ("please", "now")]
    assert unlike(pairs_of((1, 0), (0, 1)), shown, {}) == []
    found = unlike(pairs_of((1, 0), (2, 0), (1, 0), (1, 0), (0, 1)), shown, {})
    assert len(found) == 3, "four rejections of the first against one preference for it"
    assert {one.demonstration.id for one in found} == {run.id for run in shown}
    for one in found:
        assert one.step == 1
        assert one.altered.messages[:-1] == one.demonstration.messages[:3]
        assert one.altered.steps[1].message.tool_calls[0].parsed() == {"order_id": "W8"}


def test_only_steps_of_the_demonstrations_own_maker_show_anything():
    shown = tracking("W7")
    assert unlike(pairs_of((1, 0)), [shown], {shown.id: 2}) == []
    assert unlike(pairs_of((1, 0)), [tracking("W8")], {}) == [], "nobody takes the first"


def test_a_call_that_writes_the_value_twice_is_left_alone():
    shown = desk("Track my latest.", LOOK, ("track_order", {"order_id": "W1", "note": "W1 is the latest"}))
    assert unlike(pairs_of((1, 0)), [shown], {}) == []


def test_an_entry_that_the_argument_cannot_hold_is_not_put_there_and_another_demonstration_is_taken():
    listed = "Order 12\nOrder 007"
    plain = desk("Track my latest.", LOOK, ("track_order", {"n": 12}), list_result=listed)
    assert unlike(pairs_of((1, 0)), [plain], {}) == [], "007 is no number"
    (found,) = unlike(pairs_of((1, 0)), [plain, tracking("W7")], {})
    assert found.demonstration.id == tracking("W7").id
