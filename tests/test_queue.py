"""The queue on both databases: nobody twice, never more places than wanted, leases by the database's clock, gold and repeats apart."""

import threading
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from agentalign.errors import DataError
from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Assignment, Queue, Rules
from agentalign.store.store import Store

PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)
GONE = PLAIN._replace(lease_seconds=-1.0)
"""A lease that has ended when it begins."""


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def runs(store: Store, number: int, taskset: str = "desk") -> list[str]:
    made = [
        Trajectory(
            taskset=taskset, messages=(Message(role="user", content=f"{i}"),), origin=Origin(kind="import", reference="f", task=str(i))
        )
        for i in range(number)
    ]
    store.add(made)
    return [run.id for run in made]


def mark(store: Store, run: str, person: str, value: float = 4, criterion: str = "tone@1") -> None:
    store.add_scores([Score(trajectory=run, criterion=criterion, value=value, rater=person, rater_kind="human")])


def taken(queue: Queue, person: str, **options: Any) -> Assignment:
    found = queue.take(person, **options)
    assert found is not None
    return found


def test_a_run_is_had_until_it_is_finished_and_never_again(store: Store) -> None:
    store.queue_items.add(runs(store, 2))
    queue = store.queue(PLAIN)
    first = taken(queue, "ada")
    assert taken(queue, "ada").id == first.id, "asking again gives the run in hand"
    assert queue.current("ada") is not None and 590 < first.left <= 600
    assert queue.finish(first.id, "ada") == (False, False)
    assert queue.finish(first.id, "ada") == (True, False)
    second = taken(queue, "ada")
    assert second.trajectory != first.trajectory
    queue.finish(second.id, "ada")
    assert queue.take("ada") is None and queue.current("ada") is None


def test_a_run_goes_to_as_many_people_as_wanted_and_to_nobody_twice(store: Store) -> None:
    store.queue_items.add(runs(store, 1), overlap=2)
    queue = store.queue(PLAIN)
    ada, bob = taken(queue, "ada"), taken(queue, "bob")
    assert queue.take("eve") is None
    queue.finish(ada.id, "ada")
    assert queue.take("ada") is None and queue.take("eve") is None
    queue.finish(bob.id, "bob")
    (item,) = store.queue_items.items()
    assert (item.status, item.done, item.live) == ("full", 2, 0)
    assert store.queue_items.add([item.trajectory], overlap=3) == (0, 1)
    assert queue.take("ada") is None, "one more place is for somebody else"
    assert taken(queue, "eve").trajectory == item.trajectory


def test_a_lease_that_ran_out_frees_the_place_and_a_late_answer_is_kept_apart(store: Store) -> None:
    store.queue_items.add(runs(store, 1))
    late = taken(store.queue(GONE), "ada")
    queue = store.queue(PLAIN)
    assert queue.current("ada") is None
    again = taken(queue, "bob")
    beat = queue.beat(late.id, "ada")
    assert (beat.state, beat.left < 0) == ("open", True), "bob has the place now"
    assert queue.take("ada") is None
    assert queue.finish(late.id, "ada") == (False, True)
    assert queue.finish(late.id, "ada") == (True, True)
    assert store.queue_items.items()[0]._asdict() | {"trajectory": ""} == {
        "trajectory": "", "taskset": "desk", "overlap": 1, "is_gold": False, "priority": 0.0, "status": "open", "done": 0, "live": 1,
        "late": 1, "skips": (), "other": None, "gold_by": None,
    }  # fmt: skip
    assert queue.finish(again.id, "bob") == (False, False)
    assert store.queue_items.items()[0].status == "full"
    assert [(a.person, a.state) for a in store.queue_items.assignments([late.trajectory])] == [("ada", "late"), ("bob", "done")]


def test_a_lease_that_was_lost_for_good_ends_and_hides_nothing_more(store: Store) -> None:
    ids = runs(store, 3)
    queue = store.queue(PLAIN)
    for run, how in zip(ids, ("done", "closed", "held"), strict=True):
        store.queue_items.add([run], overlap=2 if how == "held" else 1)
        lost = taken(store.queue(GONE), "ada")
        again = taken(queue, "bob")
        assert queue.take("ada") is None if how == "done" else lost.trajectory == run
        assert queue.hidden("ada", [run]) == {run: 0}, "bob may give it back, and then it is ada's again"
        if how == "done":
            assert store.queue_items.progress("ada").waiting == 0
            queue.finish(again.id, "bob")
        elif how == "closed":
            queue.finish(again.id, "bob")
            store.queue_items.set_status([run], "closed")
        else:
            queue.skip(again.id, "bob", "not English")
            queue.skip(taken(queue, "eve").id, "eve", "cut off")
        assert queue.take("ada") is None
        assert (queue.hidden("ada", [run], waiting=True), store.queue_items.progress("ada").waiting) == ({}, 0)
        assert queue.beat(lost.id, "ada").state == "lapsed"
        assert queue.finish(lost.id, "ada") == (False, True)


def test_a_heartbeat_keeps_a_lease_and_takes_up_a_free_place_again(store: Store) -> None:
    store.queue_items.add(runs(store, 1))
    gone = taken(store.queue(GONE), "ada")
    queue = store.queue(PLAIN)
    assert queue.beat(gone.id, "ada").left == 600
    assert queue.take("bob") is None
    assert queue.finish(gone.id, "ada") == (False, False)


def test_a_short_lease_ends_by_itself(store: Store) -> None:
    store.queue_items.add(runs(store, 1))
    short, lasting = store.queue(PLAIN._replace(lease_seconds=1.0)), store.queue(PLAIN)
    began = time.monotonic()
    taken(short, "ada")
    found = lasting.take("bob")
    # A machine that stood still for the whole lease may give it to bob at once; else it is ada's.
    assert found is None or time.monotonic() - began >= 1.0
    while found is None:
        time.sleep(0.02)
        found = lasting.take("bob")
    assert lasting.take("ada") is None


def test_what_is_someone_elses_cannot_be_touched(store: Store) -> None:
    store.queue_items.add(runs(store, 1))
    queue = store.queue(PLAIN)
    ada = taken(queue, "ada")
    for act in (lambda: queue.beat(ada.id, "bob"), lambda: queue.finish(ada.id, "bob"), lambda: queue.skip(ada.id, "bob", "no")):
        with pytest.raises(DataError, match="not in your queue"):
            act()
    with pytest.raises(DataError, match="not in your queue"):
        queue.assignment("0" * 32, "ada")


def test_finishing_needs_the_answers_given_since_the_run_was_taken(store: Store) -> None:
    (run,) = runs(store, 1)
    mark(store, run, "ada", 1)
    store.queue_items.add([run])
    queue = store.queue(PLAIN)
    ada = taken(queue, "ada")
    mark(store, run, "bob")
    with pytest.raises(DataError, match="not answered yet: tone@1"):
        queue.finish(ada.id, "ada", ["tone@1"])
    mark(store, run, "ada", 5)
    assert queue.finish(ada.id, "ada", ["tone@1"]) == (False, False)


def test_a_skipped_run_does_not_come_again_and_two_skips_make_it_wait_for_a_lead(store: Store) -> None:
    (run,) = runs(store, 1)
    store.queue_items.add([run], overlap=3)
    queue = store.queue(PLAIN)
    ada, bob = taken(queue, "ada"), taken(queue, "bob")
    with pytest.raises(DataError, match="needs a reason"):
        queue.skip(ada.id, "ada", "  ")
    assert queue.skip(ada.id, "ada", "not English") == (False, False)
    assert queue.skip(ada.id, "ada", "not English") == (True, False)
    assert queue.take("ada") is None
    with pytest.raises(DataError, match="was skipped"):
        queue.finish(ada.id, "ada")
    queue.skip(bob.id, "bob", "cut off")
    (item,) = store.queue_items.items(status="held")
    assert item.skips == ("not English", "cut off")
    assert queue.take("eve") is None
    assert store.queue_items.set_status([run], "open") == 1
    eve = taken(queue, "eve")
    queue.finish(eve.id, "eve")
    with pytest.raises(DataError, match="finished already"):
        queue.skip(eve.id, "eve", "late thought")


def test_gold_and_repeats_stand_outside_the_overlap(store: Store) -> None:
    ids = runs(store, 3)
    store.queue_items.add(ids[:2])
    store.queue_items.add(ids[2:], gold={"tone@1": 5.0})
    always_gold = store.queue(Rules(gold_rate=1.0, repeat_rate=0.0))
    for person, value in (("ada", 5), ("bob", 3)):
        gold = taken(always_gold, person)
        assert (gold.trajectory, gold.kind) == (ids[2], "gold")
        mark(store, ids[2], person, value)
        always_gold.finish(gold.id, person)
        mark(store, ids[2], person, 1)
    assert [(m.person, m.expected, m.given) for m in store.queue_items.gold_marks("desk")] == [("ada", 5.0, 5.0), ("bob", 5.0, 3.0)]
    assert taken(always_gold, "ada").kind == "normal", "every gold run comes once to everyone"
    queue = store.queue(PLAIN)
    first = taken(queue, "ada")
    queue.finish(first.id, "ada")
    second = taken(queue, "ada")
    queue.finish(second.id, "ada")
    assert queue.take("ada") is None and queue.take("bob") is None, "both places are filled"
    store.queue_items.add(runs(store, 4))
    again = taken(store.queue(Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=1)), "ada")
    assert (again.trajectory, again.kind) == (first.trajectory, "repeat")
    queue.finish(again.id, "ada")
    assert [item.done for item in store.queue_items.items() if item.trajectory == first.trajectory] == [1]


def test_what_was_closed_comes_to_nobody_as_a_repeat(store: Store) -> None:
    store.queue_items.add(runs(store, 3))
    queue = store.queue(PLAIN)
    first = taken(queue, "ada")
    queue.finish(first.id, "ada")
    queue.finish(taken(queue, "ada").id, "ada")
    always = store.queue(Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=1))
    store.queue_items.set_status([first.trajectory], "closed")
    other = taken(always, "ada")
    assert other.kind == "normal"
    always.skip(other.id, "ada", "later")
    store.queue_items.set_status([first.trajectory], "open")
    again = taken(always, "ada")
    assert (again.trajectory, again.kind) == (first.trajectory, "repeat")


def test_nobody_is_tested_by_an_answer_of_their_own(store: Store) -> None:
    first, second = runs(store, 2)
    always_gold = store.queue(Rules(gold_rate=1.0, repeat_rate=0.0))
    store.queue_items.add([first, second], gold={"tone@1": 5.0}, gold_by="lea")
    assert [item.gold_by for item in store.queue_items.items()] == ["lea", "lea"]
    assert always_gold.take("lea") is None
    assert store.queue().hidden("lea", [first, second], waiting=True) == {}, "what does not come is not hidden"
    assert store.queue().hidden("max", [first, second], waiting=True) == {first: 0, second: 0}
    for person in ("max", "ada"):
        gold = taken(always_gold, person)
        mark(store, gold.trajectory, person, 5)
        always_gold.finish(gold.id, person)
    store.queue_items.add([first, second], gold={"tone@1": 4.0}, gold_by="max")
    store.queue_items.add([first, second], overlap=2)
    assert [(m.person, m.set_by, m.expected) for m in store.queue_items.gold_marks()] == [("ada", "max", 4.0)], "max set it anew"
    assert taken(always_gold, "lea").kind == "gold"
    store.forget(person="max", reason="left")
    assert [(item.is_gold, item.gold_by) for item in store.queue_items.items()] == [(True, None)] * 2
    store.queue_items.add([first], gold={"tone@1": 3.0})
    assert taken(always_gold, "bob").kind == "gold", "nobody said who"
    with pytest.raises(DataError, match="who knows the answer"):
        store.queue_items.add([first], gold={"tone@1": 3.0}, gold_by="x" * 501)
    assert store.check().problems == ()


def test_gold_and_repeats_come_at_their_rates(store: Store) -> None:
    ids = runs(store, 120)
    store.queue_items.add(ids[:80])
    store.queue_items.add(ids[80:], gold={"tone@1": 5.0})
    queue, chance, kinds = store.queue(Rules(gold_rate=0.2, repeat_rate=0.1, repeat_after=3)), Random(7), []
    while kinds.count("normal") < 80:
        found = taken(queue, "ada", chance=chance)
        kinds.append(found.kind)
        queue.finish(found.id, "ada")
    assert 10 < kinds.count("gold") <= 35 and 3 < kinds.count("repeat") <= 20


def test_the_urgent_come_first_and_equal_ones_in_an_order_of_ones_own(store: Store) -> None:
    ids = runs(store, 30)
    store.queue_items.add(ids, priority={ids[7]: 1.0, ids[3]: 0.5}, overlap=2)
    queue = store.queue(PLAIN)
    orders = []
    for person in ("ada", "bob"):
        order = []
        while (found := queue.take(person)) is not None:
            order.append(found.trajectory)
            queue.finish(found.id, person)
        orders.append(order)
        assert order[:2] == [ids[7], ids[3]]
    assert orders[0] != orders[1]
    store.queue_items.rank({ids[0]: 2.0})
    assert store.queue_items.items()[0].trajectory == ids[0]


def test_progress_counts_what_is_mine_and_what_the_team_wants(store: Store) -> None:
    store.queue_items.add(runs(store, 4), overlap=2)
    queue = store.queue(PLAIN)
    assert store.queue_items.progress("ada")[:6] == (0, 0, 0, 4, 0, 8)
    assert store.queue_items.progress("ada").seconds_left is None
    queue.finish(taken(queue, "ada").id, "ada")
    queue.skip(taken(queue, "ada").id, "ada", "unreadable")
    taken(queue, "ada")
    found = store.queue_items.progress("ada", "desk")
    assert (found.mine, found.skipped, found.waiting, found.team_done, found.team_wanted, found.at_work) == (1, 1, 2, 1, 8, 1)
    assert found.seconds is not None and found.seconds_left == pytest.approx(2 * found.seconds)
    assert store.queue_items.progress("ada", "other").team_wanted == 0


def test_what_a_rater_is_told_is_left_tells_no_kind_of_run_apart(store: Store) -> None:
    store.queue_items.add(runs(store, 25))
    store.queue_items.add(runs(store, 28)[25:], gold={"tone@1": 5.0})
    kinds = {"normal": PLAIN, "gold": PLAIN._replace(gold_rate=1.0), "repeat": PLAIN._replace(repeat_rate=1.0, repeat_after=1)}
    met, exact, told = ["normal"] * 3 + ["gold", "normal", "repeat", "normal", "gold"], [], []
    for kind in met:
        found = taken(store.queue(kinds[kind]), "ada")
        assert found.kind == kind
        progress = store.queue_items.progress("ada")
        exact.append(progress.waiting)
        told.append(progress.in_steps())
        store.queue(PLAIN).finish(found.id, "ada")
    assert exact == [28, 27, 26, 25, 24, 24, 23, 22], "gold counts like any other; only a repeat takes nothing from what is left"
    assert {(one.waiting, one.team_done) for one in told} == {(30, 0)}
    assert [one.mine for one in told] == list(range(8))
    end = store.queue_items.progress("ada")._replace(waiting=1, team_done=25, seconds=2.0, at_work=1).in_steps()
    assert (end.waiting, end.seconds_left, end.team_done, end.team_seconds_left) == (10, 20.0, 25, 0.0)


def test_with_no_other_run_left_each_known_answer_comes_once(store: Store) -> None:
    *ids, own = runs(store, 5)
    store.queue_items.add(ids[:1])
    store.queue_items.add(ids[1:], gold={"tone@1": 5.0})
    store.queue_items.add([own], gold={"tone@1": 5.0}, gold_by="ada")
    queue, met = store.queue(Rules(gold_rate=0.0, repeat_rate=0.0)), []
    while (found := queue.take("ada")) is not None:
        met.append(found.trajectory)
        queue.finish(found.id, "ada")
    assert (sorted(met), met[0], store.queue_items.progress("ada").waiting) == (sorted(ids), ids[0], 0)


def test_runs_that_are_open_or_waiting_are_hidden_from_their_rater_alone(store: Store) -> None:
    ids = runs(store, 3)
    store.queue_items.add(ids[:2])
    queue = store.queue(PLAIN)
    mark(store, ids[2], "bob")
    ada = taken(queue, "ada")
    other = next(id for id in ids[:2] if id != ada.trajectory)
    assert queue.hidden("ada", ids) == {ada.trajectory: 1}
    assert queue.hidden("ada", ids, waiting=True) == {ada.trajectory: 1, other: 0}
    assert queue.hidden("bob", ids) == {}
    seen = RunFilter(hidden_from="ada", waiting_for="ada")
    assert [run.id for run in store.trajectories(seen)] == [ids[2]]
    assert {run.id for run in store.trajectories(RunFilter(hidden_from="ada"))} == {other, ids[2]}
    gone = taken(store.queue(GONE), "ada")
    assert gone.id == ada.id
    assert queue.hidden("ada", ids) == {ada.trajectory: 1}, "letting a lease run out opens nothing"
    queue.finish(ada.id, "ada")
    assert queue.hidden("ada", ids) == {}


def test_what_began_as_a_hidden_run_is_hidden_with_it(store: Store) -> None:
    asked, plain = (store.trajectory(id) for id in runs(store, 2))
    said = Message(role="assistant", content="as somebody would have it")
    changed = asked.model_copy(update={"id": "", "messages": (*asked.messages, said), "parent": (asked.id, 0)})
    branch = Trajectory.model_validate(changed.model_dump())
    grandchild = Trajectory.model_validate({**branch.model_dump(exclude={"id"}), "split": "dev", "parent": (branch.id, 0)})
    store.add([branch, grandchild])
    store.queue_items.add([asked.id])
    queue = store.queue(PLAIN)
    waiting, taken_by_ada = RunFilter(waiting_for="ada"), RunFilter(hidden_from="ada")
    began = [branch.id, grandchild.id]
    assert queue.hidden("ada", began, waiting=True) == dict.fromkeys(began, 0)
    assert [run.id for run in store.trajectories(waiting)] == [plain.id]
    assignment = taken(queue, "ada")
    assert queue.hidden("ada", began) == dict.fromkeys(began, 0) and queue.hidden("bob", began) == {}
    assert [run.id for run in store.trajectories(taken_by_ada)] == [plain.id]
    assert not list(store.trajectories(RunFilter(text="somebody would", hidden_from="ada")))
    queue.finish(assignment.id, "ada")
    assert queue.hidden("ada", began) == {}
    assert {run.id for run in store.trajectories(taken_by_ada)} == {asked.id, plain.id, *began}


def test_only_stored_runs_can_be_queued(store: Store) -> None:
    with pytest.raises(DataError, match="is not in the store"):
        store.queue_items.add(["f" * 32])
    for overlap in (0, 101):
        with pytest.raises(DataError, match=f"overlap {overlap} is not between"):
            store.queue_items.add(runs(store, 1), overlap=overlap)
    assert store.queue_items.items() == []


def test_many_at_once_never_share_more_places_than_there_are(store: Store) -> None:
    ids = runs(store, 20)
    store.queue_items.add(ids, overlap=3)
    queue = store.queue(PLAIN)

    def rate(person: str) -> None:
        while (found := queue.take(person)) is not None:
            queue.finish(found.id, person)

    threads = [threading.Thread(target=rate, args=(f"r{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = store.queue_items.assignments(ids)
    assert len(given) == 60 and len({(a.trajectory, a.person) for a in given}) == 60
    assert all(item.done == 3 and item.status == "full" for item in store.queue_items.items())
