"""Pairs in the queue, on both databases: balanced sides, repeats swapped, answers needed, runs hidden, old stores brought up."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from agentalign.errors import DataError
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.preference import Item, Preference, in_force
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.scoring.agreement_report import stored_panel
from agentalign.scoring.to_compare import choose, comparable
from agentalign.store import tables
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Assignment, Queue, Rules
from agentalign.store.schema import MIGRATIONS
from agentalign.store.sides import item_of
from agentalign.store.store import Store

PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)
AGAIN = Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=2)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(maker: str, task: int, sample: int = 0) -> Trajectory:
    messages = (Message(role="user", content=f"Task {task}"), Message(role="assistant", content=f"{maker} {sample}"))
    return Trajectory(taskset="desk", task_id=f"t{task}", messages=messages, origin=Origin(kind="rollout", reference=maker, sample=sample))


def fill(store: Store, tasks: int, makers: tuple[str, str] = ("old", "new")) -> list[tuple[str, str]]:
    made = [(run(makers[0], task), run(makers[1], task, 1)) for task in range(tasks)]
    store.add([one for pair in made for one in pair])
    return [(one.id, two.id) for one, two in made]


def taken(queue: Queue, person: str, chance: Random | None = None) -> Assignment:
    found = queue.take(person, chance=chance)
    assert found is not None
    return found


def answer(store: Store, hand: Assignment, criterion: str = "overall", **said: Any) -> None:
    items = (Item(hand.trajectory), Item(hand.other or ""))
    said_by = {"source": "human", "rater": hand.person, "left": hand.on_left}
    store.add_preferences([Preference(taskset="desk", items=items, criterion=criterion, **said_by, **said)])


def test_each_maker_stands_on_the_left_equally_often_for_each_person(store: Store) -> None:
    store.pairs.add(fill(store, 12), overlap=2)
    makers = {row.id: row.policy for row in store.runs(RunFilter(), limit=100).rows}
    orders = []
    for seed, person in enumerate(("ada", "bob")):
        queue, order = store.queue(PLAIN), ""
        for _ in range(12):
            hand = taken(queue, person, Random(f"{seed} {len(order)}"))
            assert hand.on_left in (hand.trajectory, hand.other)
            order += makers[hand.on_left or ""][0]
            queue.finish(hand.id, person)
        assert [order[at : at + 2].count("o") for at in range(0, 12, 2)] == [1] * 6, "of every two pairs each maker is on the left once"
        orders.append(order)
    assert len({order[at : at + 2] for order in orders for at in range(0, 12, 2)}) == 2, "in which order is chance"


def test_pairs_by_one_maker_are_balanced_too_and_what_one_opens_on_ones_own_counts(store: Store) -> None:
    pairs = fill(store, 8, ("new", "new"))
    lows = [store.pairs.draw("ada", *pair).left == min(pair) for pair in pairs]
    assert [sum(lows[at : at + 2]) for at in range(0, 8, 2)] == [1] * 4
    assert [store.pairs.draw("ada", *pair).left == min(pair) for pair in pairs] == lows, "drawn once"
    draw = store.pairs.draw("ada", *pairs[0])
    assert store.pairs.drawn(draw.id, "ada") == draw
    with pytest.raises(DataError, match="never drawn for you"):
        store.pairs.drawn(draw.id, "bob")
    store.pairs.add(pairs[:1])
    assert taken(store.queue(PLAIN), "ada").on_left == draw.left
    assert store.queue().hidden("ada", pairs[1]) == {}, "a pair opened on one's own hides nothing"
    for end in (lambda id: store.queue().skip(id, "ada", "tired"), lambda id: store.queue().finish(id, "ada")):
        with pytest.raises(DataError, match="not in your queue"):
            end(draw.id)
    assert store.pairs.waiting("ada") == {item_of(*pairs[0])}, "so nobody sees by that way where queued runs came from"


def test_a_repeat_comes_with_its_sides_swapped_and_is_asked_anew(store: Store) -> None:
    store.pairs.add(fill(store, 3))
    plain = store.queue(PLAIN)
    first: dict[str, Assignment] = {}
    for _ in range(3):
        hand = taken(plain, "ada")
        answer(store, hand)
        plain.finish(hand.id, "ada", ["overall"])
        first[hand.item] = hand
    again = taken(store.queue(AGAIN), "ada")
    assert again.kind == "repeat"
    assert again.on_left != first[again.item].on_left
    assert store.pairs.drawn(again.id, "ada").left == again.on_left
    with pytest.raises(DataError, match=r"not answered yet: overall. Answer each, or skip the pair."):
        plain.finish(again.id, "ada", ["overall"])
    answer(store, again)
    assert plain.finish(again.id, "ada", ["overall"]) == (False, False)
    assert store.queue_items.progress("ada").team_done == 3, "a repeat fills no place"


def test_a_pair_is_finished_when_every_question_is_answered_since_it_was_taken(store: Store) -> None:
    (pair,) = fill(store, 1)
    store.pairs.add([pair])
    queue = store.queue(PLAIN)
    hand = taken(queue, "ada")
    answer(store, hand._replace(person="bob"))
    answer(store, hand, withdrawn=True)
    answer(store, hand, "tone@1", tie=True)
    with pytest.raises(DataError, match="not answered yet: overall"):
        queue.finish(hand.id, "ada", ["overall", "tone@1"])
    answer(store, hand)
    queue.finish(hand.id, "ada", ["overall", "tone@1"])
    (item,) = store.queue_items.items()
    assert (item.trajectory, item.other, item.status, item.done) == (min(pair), max(pair), "full", 1)
    assert store.queue_items.set_status([item_of(*pair)], "closed") == 1


def test_both_runs_of_a_pair_are_hidden_while_it_waits_or_is_open(store: Store) -> None:
    first, second = fill(store, 2)
    store.pairs.add([first])
    queue = store.queue(PLAIN)
    every = [*first, *second]
    assert queue.hidden("ada", every) == {}
    assert queue.hidden("ada", every, waiting=True) == dict.fromkeys(first, 0)
    assert store.pairs.waiting("ada") == {item_of(*first)}
    store.pairs.draw("ada", *first)
    assert queue.hidden("ada", every, waiting=True) == dict.fromkeys(first, 0), "opening it on one's own finishes nothing"
    assert {r.id for r in store.trajectories(RunFilter(waiting_for="ada", hidden_from="ada"))} == set(second)
    hand = taken(queue, "ada")
    assert queue.hidden("ada", every) == dict.fromkeys(first, 0)
    queue.skip(hand.id, "ada", "unreadable")
    assert queue.hidden("ada", every, waiting=True) == {}
    assert store.pairs.waiting("ada") == set()


def test_what_cannot_be_compared_is_not_queued(store: Store) -> None:
    ((one, two),) = fill(store, 1)
    twin = run("other", 0)
    twin = Trajectory.model_validate({**twin.model_dump(exclude={"id"}), "messages": store.trajectory(one).messages})
    store.add([twin])
    with pytest.raises(DataError, match="word for word the same"):
        store.pairs.add([(one, twin.id)])
    with pytest.raises(DataError, match="not in the store"):
        store.pairs.add([(one, "0" * 32)])
    with pytest.raises(DataError, match="overlap 0"):
        store.pairs.add([(one, two)], overlap=0)
    assert store.queue_items.items() == []


def test_who_cannot_judge_has_answered_and_has_no_opinion(store: Store) -> None:
    (pair,) = fill(store, 1)
    store.pairs.add([pair])
    queue = store.queue(PLAIN)
    hand = taken(queue, "ada")
    answer(store, hand)
    answer(store, hand, cant_judge=True)
    queue.finish(hand.id, "ada", ["overall"])
    assert store.pairs.compared_by("ada", "desk") == {item_of(*pair)}
    assert [p.decided for p in in_force(store.preferences("desk"))] == [False]
    assert stored_panel(store, "desk").answers == {}
    answer(store, hand, withdrawn=True)
    assert store.pairs.compared_by("ada", "desk") == set()
    answer(store, hand, tie=True)
    assert store.pairs.compared_by("ada", "desk") == {item_of(*pair)}
    assert store.pairs.compared_by("bob", "desk") == store.pairs.compared_by("ada", "other") == set()
    assert store.check().problems == ()


def test_a_gold_pair_is_met_once_by_everybody_fills_no_place_and_tells_who_is_right(store: Store) -> None:
    first, second = fill(store, 2)
    better = first[1]
    store.pairs.add([first], gold={"overall": better, "tone@1": "both bad"})
    store.pairs.add([first, second])
    assert [item.is_gold for item in store.queue_items.items()] == [True, False], "adding all pairs of a task leaves the known ones known"
    for person, said in (("ada", {}), ("bob", {"tie": True}), ("eve", {"cant_judge": True})):
        hand = taken(store.queue(PLAIN._replace(gold_rate=1.0)), person)
        assert (hand.kind, hand.item) == ("gold", item_of(*first))
        items = (Item(better), Item(next(id for id in first if id != better)))
        word = {"taskset": "desk", "source": "human", "rater": person, "left": hand.on_left}
        store.add_preferences([Preference(items=items, **said, **word), Preference(items=items, criterion="tone@1", both_bad=True, **word)])
        if person == "eve":
            store.add_preferences([Preference(items=items, criterion="tone@1", withdrawn=True, **word)])
        store.queue(PLAIN).finish(hand.id, person, ["overall"])
        store.add_preferences([Preference(items=items[::-1], note="afterwards", **word)])
    marks = store.queue_items.gold_marks("desk")
    at = float(sorted(first).index(better))
    assert [(mark.person, mark.criterion, mark.expected, mark.given) for mark in sorted(marks)] == [
        ("ada", "overall", at, at),
        ("ada", "tone@1", 3.0, 3.0),
        ("bob", "overall", at, 2.0),
        ("bob", "tone@1", 3.0, 3.0),
        ("eve", "overall", at, None),
    ]
    assert {mark.other for mark in marks} == {max(first)}
    assert taken(store.queue(PLAIN._replace(gold_rate=1.0)), "ada").item == item_of(*second), "nobody meets it twice"
    for wrong, word in (({"overall": second[0]}, "no answer about a pair"), ({"overall": "first"}, "no answer about a pair")):
        with pytest.raises(DataError, match=word):
            store.pairs.add([first], gold=wrong)
    with pytest.raises(DataError, match="these are 2"):
        store.pairs.add([first, second], gold={"overall": "tie"})
    store.forget(person="ada", reason="left")
    assert {mark.person for mark in store.queue_items.gold_marks()} == {"bob", "eve"}
    assert store.check().problems == ()


def test_who_set_a_known_pair_does_not_meet_it_and_it_does_not_wait_for_them(store: Store) -> None:
    (pair,) = fill(store, 1)
    store.pairs.add([pair], gold={"overall": pair[0]}, gold_by="lea")
    always_gold = store.queue(PLAIN._replace(gold_rate=1.0))
    assert (always_gold.take("lea"), taken(always_gold, "ada").kind) == (None, "gold")
    assert (store.pairs.waiting("lea"), store.pairs.waiting("ada")) == (set(), {item_of(*pair)})


def test_runs_go_with_their_pairs_when_they_are_forgotten(store: Store) -> None:
    pairs = fill(store, 2)
    store.pairs.add(pairs)
    hand = taken(store.queue(PLAIN), "ada")
    store.pairs.draw("bob", *pairs[1])
    store.forget([pairs[1][1]], reason="asked for")
    assert {(item.trajectory, item.other) for item in store.queue_items.items()} == {tuple(sorted(pairs[0]))}
    assert all(pairs[1][1] not in (found.trajectory, found.other) for found in store.queue_items.assignments([item_of(*pairs[1])]))
    assert store.check().problems == ()
    assert hand.item in (item_of(*pair) for pair in pairs)


def test_pairs_of_a_task_use_every_run_once_before_any_twice_and_prefer_two_makers(store: Store) -> None:
    store.add([run(maker, 0, sample) for maker in ("old", "new") for sample in (0, 1)] + [run("old", 1)])
    groups = comparable(store, RunFilter(taskset="desk"), 100)
    assert [len(group) for group in groups] == [6]
    pairs = choose(groups, 2)
    assert len({row.id for pair in pairs for row in pair}) == 4
    assert all(one.policy != two.policy for one, two in pairs)
    assert choose(groups, 2) == pairs
    assert len(choose(groups, 99)) == 6


def test_a_mark_that_was_taken_back_counts_as_none(store: Store) -> None:
    ((one, two),) = fill(store, 1)
    unrated = RunFilter(unrated_by="ada")

    def mark(status: str, id: str, step: int | None = None) -> None:
        value = 4.0 if status == "value" else None
        said = {"rater": "ada", "rater_kind": "human", "id": id, "step": step, "value": value}
        store.add_scores([Score(trajectory=one, criterion="tone@1", status=ScoreStatus(status), **said)])

    mark("value", "a")
    assert store.count(unrated) == 1
    mark("value", "b")
    mark("withdrawn", "c")
    assert store.count(unrated) == 2
    mark("value", "d", step=0)
    assert store.count(unrated) == 1, "the mark on a step is another one"
    mark("cant_judge", "e")
    mark("withdrawn", "f", step=0)
    assert store.count(unrated) == 1, "who looked and cannot tell has looked"
    store.queue_items.add([two])
    queue = store.queue(PLAIN)
    hand = taken(queue, "ada")
    said = {"trajectory": two, "criterion": "tone@1", "rater": "ada", "rater_kind": "human"}
    store.add_scores([Score(**said, value=4, id="g"), Score(**said, status=ScoreStatus.WITHDRAWN, id="h")])
    with pytest.raises(DataError, match="not answered yet: tone@1"):
        queue.finish(hand.id, "ada", ["tone@1"])
    assert store.check().problems == ()


def test_a_queue_of_the_schema_before_is_brought_up_with_all_that_was_taken(store_url: str, tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/new/store.db") as store:
        pairs = fill(store, 2)
        store.queue_items.add(list(pairs[0]))
        done = taken(store.queue(PLAIN), "ada")
        store.queue(PLAIN).finish(done.id, "ada")
        held = taken(store.queue(PLAIN), "ada")
        said = {"trajectory": done.trajectory, "criterion": "tone@1", "rater": "ada", "rater_kind": "human"}
        store.add_scores([Score(**said, value=4, id="g"), Score(**said, status=ScoreStatus.WITHDRAWN, id="h")])
        before = (store.queue_items.items(), store.queue_items.progress("ada", "desk")[:6])
    _copy_into_schema("0003", tmp_path / "new" / "store.db", store_url)
    with Store(store_url) as store:
        assert (store.queue_items.items(), store.queue_items.progress("ada", "desk")[:6]) == before
        assert taken(store.queue(PLAIN), "ada").id == held.id
        assert store.count(RunFilter(unrated_by="ada")) == 4, "what was taken back before counts as none"
        store.pairs.add(pairs[1:])
        store.pairs.add([(pairs[0][0], pairs[1][1])])
        assert store.check().problems == ()


def test_known_answers_of_before_their_setters_were_recorded_stay_known(store_url: str, tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/new/store.db") as store:
        (pair,) = fill(store, 1)
        store.pairs.add([pair], gold={"overall": "tie"})
        before = store.queue_items.items()
    _copy_into_schema("0007", tmp_path / "new" / "store.db", store_url)
    with Store(store_url) as store:
        assert store.queue_items.items() == before
        assert [(item.is_gold, item.gold_by) for item in before] == [(True, None)]
        store.pairs.add([pair], gold={"overall": "tie"}, gold_by="lea")
        assert store.queue(PLAIN._replace(gold_rate=1.0)).take("lea") is None
        assert store.check().problems == ()


def test_what_was_compared_before_a_store_knew_persons_is_known_afterwards(store_url: str, tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/new/store.db") as store:
        pairs = fill(store, 3)
        store.pairs.add(pairs)
        hands = [taken(store.queue(PLAIN), person) for person in ("ada", "bob")]
        answer(store, hands[0], note="kept", chips=("vague",))
        answer(store, hands[1])
        answer(store, hands[1], withdrawn=True)
        steps = (Item(pairs[2][0], 0), Item(pairs[2][1], 0))
        store.add_preferences([Preference(taskset="desk", items=steps, source="human", rater="ada")])
        store.add_preferences([Preference(taskset="desk", items=(Item(pairs[2][0]), Item(pairs[2][1])), source="scores", rater="overall")])
        before = store.preferences("desk")
    _copy_into_schema("0004", tmp_path / "new" / "store.db", store_url)
    with Store(store_url) as store:
        assert store.preferences("desk") == before
        assert store.pairs.compared_by("ada", "desk") == {hands[0].item}
        assert store.pairs.compared_by("bob", "desk") == set()
        assert [word.chips for word in store.pairs.said(store.pairs.drawn(hands[0].id, "ada"))] == [("vague",)]
        assert store.check().problems == ()


def _copy_into_schema(revision: str, source: Path, url: str) -> None:
    """The same records in a store that the migrations made up to this one."""
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    engine, full, old = sa.create_engine(url), sa.create_engine(f"sqlite:///{source}"), sa.MetaData()
    with engine.begin() as connection, full.begin() as there:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        old.reflect(connection, only=[table.name for table in tables.metadata.sorted_tables])
        for table in tables.metadata.sorted_tables:
            columns = old.tables[table.name].columns.keys()
            rows = [dict(row._mapping) for row in there.execute(sa.select(*(table.c[name] for name in columns)))]
            if rows:
                connection.execute(old.tables[table.name].insert(), rows)
            if rows and "seq" in columns and connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "seq"), rows[-1]["seq"])))
    engine.dispose()
    full.dispose()
