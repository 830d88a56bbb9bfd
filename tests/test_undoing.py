"""Undo while rating blind: what was said before the run came stands again, for runs and pairs, everywhere that it counts."""

from collections.abc import Iterator
from typing import Any

import pytest

from agentalign.errors import DataError
from agentalign.records.criterion import Criterion, Score, ScoreStatus, in_force, overall
from agentalign.records.preference import Item, Preference
from agentalign.records.preference import in_force as words_in_force
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.agreement_report import stored_panel
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Assignment, Rules
from agentalign.store.store import Store

PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)
AGAIN = Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=0)
TONE = Criterion(name="tone", description="Friendly?", scale=(1, 5))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(answer: str) -> Trajectory:
    messages = (Message(role="user", content="Cancel it."), Message(role="assistant", content=answer))
    return Trajectory(taskset="desk", task_id="t", messages=messages, origin=Origin(kind="rollout", reference=answer))


def taken(store: Store, rules: Rules) -> Assignment:
    found = store.queue(rules).take("ada")
    assert found is not None
    return found


def mark(store: Store, id: str, value: float | None, criterion: str = "tone@1", step: int | None = None) -> None:
    """A mark; None takes it back."""
    status = ScoreStatus.WITHDRAWN if value is None else ScoreStatus.VALUE
    said = {"rater": "ada", "rater_kind": "human", "criterion": criterion, "step": step}
    store.add_scores([Score(trajectory=id, value=value, status=status, **said)])


def values(store: Store, id: str) -> dict[tuple[str, int | None], float | None]:
    return {(score.criterion, score.step): score.value for score in in_force(store.scores([id]))}


def test_a_mark_of_before_stands_again_when_all_that_was_said_in_the_repeat_was_taken_back(store: Store) -> None:
    one = run("Done.")
    store.add([one])
    store.queue_items.add([one.id])
    first = taken(store, PLAIN)
    mark(store, one.id, 5)
    mark(store, one.id, 1, "good_step@1", 0)
    store.queue().finish(first.id, "ada", ["tone@1"])
    again = taken(store, AGAIN)
    assert again.kind == "repeat"
    for value in (2, None, 3, None):
        mark(store, one.id, value)
    mark(store, one.id, 0, "good_step@1", 0)
    mark(store, one.id, 4, "new@1")
    mark(store, one.id, None, "new@1")
    assert store.queue().skip(again.id, "ada", "cannot tell") == (False, False)
    assert store.queue().skip(again.id, "ada", "cannot tell").known
    assert values(store, one.id) == {("tone@1", None): 5, ("good_step@1", 0): 0, ("new@1", None): None}
    assert overall([TONE], store.scores([one.id])) == 1.0
    assert store.count(RunFilter(criterion="tone@1", score_at_least=5.0)) == 1
    assert store.count(RunFilter(criterion="tone@1", score_at_most=4.0)) == 0
    assert store.count(RunFilter(unrated_by="ada")) == 0
    assert store.check().problems == ()
    said = len(store.scores([one.id]))
    mark(store, one.id, None)
    assert values(store, one.id)["tone@1", None] is None, "on a page that shows it, taking it back takes it back"
    assert len(store.scores([one.id])) == said + 1


def test_what_is_finished_with_an_answer_taken_back_is_asked_for_all_the_same(store: Store) -> None:
    one = run("Done.")
    store.add([one])
    mark(store, one.id, 5)
    store.queue_items.add([one.id], gold={"tone@1": 5.0})
    hand = taken(store, Rules(gold_rate=1.0, repeat_rate=0.0))
    mark(store, one.id, 2)
    mark(store, one.id, None)
    with pytest.raises(DataError, match="not answered yet: tone@1"):
        store.queue().finish(hand.id, "ada", ["tone@1"])
    store.queue().finish(hand.id, "ada")
    assert values(store, one.id) == {("tone@1", None): 5}
    assert store.queue_items.gold_marks("desk") == [], "what was said before is no answer to the gold run"


def test_only_an_answer_given_since_is_undone(store: Store) -> None:
    one, two = run("Done."), run("No.")
    store.add([one, two])
    for id in (one.id, two.id):
        mark(store, id, 5)
    mark(store, two.id, None)
    store.queue_items.add([one.id, two.id])
    for _ in range(2):
        hand = taken(store, PLAIN)
        if hand.trajectory == one.id:
            mark(store, one.id, None)  # on a page from before that showed the 5
        else:
            mark(store, two.id, 3)
            mark(store, two.id, None)
        store.queue().finish(hand.id, "ada")
    assert values(store, one.id) == values(store, two.id) == {("tone@1", None): None}
    assert store.count(RunFilter(unrated_by="ada")) == 2


def test_a_word_on_a_pair_stands_again_too(store: Store) -> None:
    one, two = run("Done."), run("No.")
    store.add([one, two])
    store.pairs.add([(one.id, two.id)])

    def say(hand: Assignment, criterion: str = "overall", **said: Any) -> None:
        items = (Item(one.id), Item(two.id))
        by = {"source": "human", "rater": "ada", "left": hand.on_left, "criterion": criterion}
        store.add_preferences([Preference(taskset="desk", items=items, **by, **said)])

    first = taken(store, PLAIN)
    say(first, strength=3.0, note="far better")
    say(first, "tone@1", tie=True)
    store.queue().finish(first.id, "ada", ["overall"])
    again = taken(store, AGAIN)
    assert again.kind == "repeat" and store.pairs.said(store.pairs.drawn(again.id, "ada")) == []
    say(again, both_bad=True)
    say(again, withdrawn=True)
    say(again, "tone@1")
    assert store.pairs.compared_by("ada", "desk") == set(), "as long as the repeat is open, what was said last holds"
    store.queue().skip(again.id, "ada", "cannot tell")
    found = {word.criterion: word for word in words_in_force(store.preferences("desk"))}
    assert (found["overall"].decided, found["overall"].strength, found["overall"].note) == (True, 3.0, "far better")
    assert found["tone@1"].decided and len(found) == 2
    assert store.pairs.compared_by("ada", "desk") == {again.item}
    (answers,) = [answers for case, answers in stored_panel(store, "desk").answers.items() if case.question.criterion == "overall"]
    assert [answer.value for answer in answers.values()] == [found["overall"].pair_answer]
    assert store.check().problems == ()
