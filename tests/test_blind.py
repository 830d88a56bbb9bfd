"""Whose relatives are hidden with a run that is rated blind: all of the tree that it grew in, and nobody else's, on both databases."""

from collections.abc import Iterator

import pytest

from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Rules
from agentalign.store.store import Store

PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(said: str, parent: Trajectory | None = None) -> Trajectory:
    began = None if parent is None else (parent.id, 0)
    return Trajectory(
        taskset="desk", messages=(Message(role="user", content=said),), origin=Origin(kind="import", reference="f"), parent=began
    )


def seen(store: Store, **by: str) -> set[str]:
    return {found.messages[0].content for found in store.trajectories(RunFilter(**by))}


def test_the_whole_tree_of_a_run_in_ones_hands_is_hidden_and_no_other_tree(store: Store) -> None:
    chat, stranger = run("chat"), run("stranger")
    branch, sibling = run("branch", chat), run("sibling", chat)
    proposal = run("proposal", branch)
    correction, theirs = run("correction", proposal), run("a stranger's child", stranger)
    tree = [chat.id, branch.id, sibling.id, proposal.id, correction.id]
    store.add([chat, stranger, branch, sibling, proposal, correction, theirs])
    store.queue_items.add([branch.id])
    queue = store.queue(PLAIN)
    assert queue.hidden("ada", tree, waiting=True) == dict.fromkeys(tree, 0)
    assert queue.hidden("ada", tree) == {}, "it is hidden from leads when they take it"
    assert seen(store, waiting_for="ada") == {"stranger", "a stranger's child"}
    hand = queue.take("ada")
    assert hand is not None and hand.trajectory == branch.id
    assert queue.hidden("ada", [*tree, stranger.id, theirs.id]) == dict.fromkeys(tree, 0)
    assert seen(store, hidden_from="ada") == {"stranger", "a stranger's child"}
    assert store.count(RunFilter(parent=chat.id, hidden_from="ada")) == 0, "a parent's links are a list as well"
    assert store.count(RunFilter(text="correction", hidden_from="ada")) == 0
    assert len(seen(store, hidden_from="bob", waiting_for="bob")) == 2, "the queue has still to give it to bob"
    queue.finish(hand.id, "ada")
    assert queue.hidden("ada", tree) == {}
    assert len(seen(store, hidden_from="ada", waiting_for="ada")) == 7


def test_a_parent_that_was_never_stored_still_makes_siblings_and_a_pair_hides_both_trees(store: Store) -> None:
    gone, other = run("never stored"), run("other")
    one, two, child = run("one", gone), run("two", gone), run("child", other)
    plain = run("plain")
    store.add([one, two, other, child, plain])
    store.pairs.add([(one.id, other.id)])
    queue = store.queue(PLAIN)
    hand = queue.take("ada")
    assert hand is not None and hand.other is not None
    assert queue.hidden("ada", [one.id, two.id, other.id, child.id, plain.id, gone.id]) == dict.fromkeys(
        (one.id, two.id, other.id, child.id), 0
    )
    assert seen(store, hidden_from="ada") == {"plain"}


def test_a_run_keeps_the_number_from_which_on_ones_own_marks_are_shown_whatever_its_relatives_are(store: Store) -> None:
    parent = run("parent")
    child = run("child", parent)
    store.add([parent, child])
    store.add_scores([Score(trajectory=parent.id, criterion="tone@1", value=4, rater="ada", rater_kind="human")])
    store.queue_items.add([parent.id])
    queue = store.queue(PLAIN)
    assert queue.taken_at("ada", parent.id) is None
    hand = queue.take("ada")
    assert hand is not None
    assert queue.hidden("ada", [parent.id, child.id]) == {parent.id: 1, child.id: 0}
    assert queue.taken_at("ada", parent.id) == hand.taken
    assert queue.taken_at("ada", child.id) is None and queue.taken_at("bob", parent.id) is None
