"""What is forgotten is gone from every table and from the files, stays gone, and leaves a tombstone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentalign.errors import DataError
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, TokenRecord, Trajectory, TurnTokens
from agentalign.scoring.corrected import Act, correct_step, correction_pair
from agentalign.store.backup import backup, restore
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Finish, Rules
from agentalign.store.store import AddReport, Store

NEEDLE = "needle-4711-in-the-haystack"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(said: str, parent: tuple[str, int] | None = None) -> Trajectory:
    messages = (Message(role="user", content=said), Message(role="assistant", content="Done."))
    return Trajectory(taskset="desk", messages=messages, origin=Origin(kind="import", reference="f", task=said), parent=parent)


def score(run: Trajectory, person: str) -> Score:
    return Score(trajectory=run.id, criterion="tone@1", value=1, rater=person, rater_kind="human", note=f"{NEEDLE} by {person}")


def preference(better: Trajectory, worse: Trajectory, person: str) -> Preference:
    return Preference(taskset="desk", items=(Item(better.id), Item(worse.id)), source="human", rater=person)


def test_a_run_goes_with_its_forks_and_all_that_was_said_about_it(store: Store) -> None:
    first, kept = run(f"My number is {NEEDLE}."), run("Hello.")
    fork = run(f"My number is {NEEDLE}. Again.", (first.id, 0))
    second_fork = run("Third.", (fork.id, 0))
    tokens = TokenRecord(
        trajectory=first.id, base="b", turns=(TurnTokens(message_index=1, context=(1,), completion=(2,), logprobs=(-0.5,)),)
    )
    store.add([first, kept, fork, second_fork], [tokens])
    about, other = score(first, "ada"), score(kept, "ada")
    store.add_scores([about, other])
    pair = preference(first, kept, "ada")
    store.add_preferences([pair])
    store.queue_items.add([first.id, kept.id])
    done = store.forget([first.id], reason="asked for by the customer")
    assert (set(done.runs), done.scores, done.preferences) == ({first.id, fork.id, second_fork.id}, (about.id,), (pair.id,))
    assert [run.id for run in store.trajectories(RunFilter())] == [kept.id]
    assert store.scores() == [other] and store.preferences("desk") == [] and store.tokens(first.id) is None
    assert [item.trajectory for item in store.queue_items.items()] == [kept.id]
    assert store.check().problems == ()
    stones = store.tombstones([*done.ids, kept.id])
    assert {stone.id: stone.what for stone in stones.values()} == {
        first.id: "run", fork.id: "run", second_fork.id: "run", about.id: "score", pair.id: "preference",
    }  # fmt: skip
    assert stones[first.id].reason == "asked for by the customer"
    with pytest.raises(DataError, match=r"was forgotten on .*asked for by the customer"):
        store.trajectory(first.id)


def test_what_was_forgotten_does_not_come_back(store: Store) -> None:
    first = run("Hello.")
    store.add([first])
    mark = score(first, "ada")
    store.add_scores([mark])
    store.forget(person="ada", reason="left the team")
    assert store.add_scores([mark]) == AddReport(0, 0, 1)
    store.forget([first.id], reason="asked")
    tokens = TokenRecord(trajectory=first.id, base="b", turns=())
    assert store.add([first], [tokens]) == AddReport(0, 0, 1)
    assert store.runs().total == 0 and store.scores() == []


def test_a_person_goes_with_every_word_and_their_runs_in_the_queue_wait_again(store: Store) -> None:
    one, two = run("One."), run("Two.")
    store.add([one, two])
    store.add_scores([score(one, "ada"), score(one, "bob")])
    store.add_preferences([preference(one, two, "ada"), preference(two, one, "bob")])
    store.accounts.set("ada", "rater", "correct horse battery")
    store.queue_items.add([one.id])
    queue = store.queue(Rules(gold_rate=0, repeat_rate=0))
    taken = queue.take("ada")
    assert taken is not None
    queue.finish(taken.id, "ada")
    assert store.queue_items.items()[0].status == "full"
    done = store.forget(person="ada", reason="left the team")
    assert (done.runs, len(done.scores), len(done.preferences), done.assignments, done.accounts) == ((), 1, 1, 1, 1)
    assert [found.rater for found in store.scores()] == ["bob"] and [p.rater for p in store.preferences("desk")] == ["bob"]
    assert store.queue_items.items()[0].status == "open" and store.accounts.find("ada") is None


def test_a_person_goes_with_what_they_decided_and_corrected(store: Store) -> None:
    one, two = run("One."), run("Two.")
    corrected = correct_step(one, 0, Act(f"Done, {NEEDLE}.", "", ()), "ada")
    store.add([one, two, corrected, run("Of the fork.", (corrected.id, 0))])
    decision = Score(trajectory=one.id, criterion="tone@1", value=0, rater="ada", rater_kind="adjudicator", note=NEEDLE)
    others = Score(trajectory=one.id, criterion="tone@1", value=1, rater="bob", rater_kind="adjudicator", note="as ada says", time="1")
    check = Score(trajectory=one.id, criterion="tone@1", value=1, rater="ada", rater_kind="judge", note='an "adjudicator" of that name')
    store.add_scores([others, decision, check])
    pair = {"taskset": "desk", "items": (Item(one.id), Item(two.id)), "note": NEEDLE}
    store.add_preferences([correction_pair(corrected, one, note=NEEDLE), Preference(source="adjudicator", rater="ada", **pair)])
    store.queue_items.add([corrected.id])
    seen = store.foreseen(person="ada")
    assert (len(seen.runs), seen.scores, len(seen.preferences)) == (2, (decision.id,), 2) and store.runs().total == 4
    assert store.forget(person="ada", reason="left the team") == seen
    assert {found.id for found in store.scores()} == {others.id, check.id} and store.preferences("desk") == []
    assert {row.id for row in store.runs().rows} == {one.id, two.id} and store.queue_items.items() == []
    assert not [found for found in store.trajectories() if NEEDLE in found.model_dump_json()]
    assert store.runs(RunFilter(criterion="tone@1", score_at_least=1)).total == 1, "the decision that is left counts again"
    assert store.check().problems == ()


def test_what_begins_as_a_forgotten_run_did_is_not_let_in_later(store: Store) -> None:
    first, kept = run(f"My number is {NEEDLE}."), run("Hello.")
    fork = run(f"My number is {NEEDLE}. Again.", (first.id, 0))
    second, third = run(f"{NEEDLE}, second.", (fork.id, 0)), run(f"{NEEDLE}, third.", (fork.id, 0))
    corrected = correct_step(first, 0, Act("Done at once.", "", ()), "ada")
    store.add([first, kept])
    store.forget([first.id], reason="asked for")
    tokens = TokenRecord(trajectory=fork.id, base="b", turns=())
    assert store.add([second, fork, run("Of another.", (kept.id, 0))], [tokens]) == AddReport(1, 0, 2), "in any order"
    assert store.add([third]) == AddReport(0, 0, 1), "though its parent was never stored"
    assert store.add([corrected, first]) == AddReport(0, 0, 2)
    assert {row.excerpt for row in store.runs().rows} == {"Hello.", "Of another."}
    with pytest.raises(DataError, match=r"was forgotten on .*asked for"):
        store.trajectory(fork.id)
    with pytest.raises(DataError, match="was forgotten, or goes back to a run that was"):
        store.add_preferences([correction_pair(corrected, first)])
    assert store.add([run("After a score.", (score(kept, "ada").id, 0))]) == AddReport(1, 0), "a parent that nobody knows is no reason"


@pytest.mark.parametrize("restored", [False, True])
def test_an_answer_after_something_was_forgotten_is_one(store_url: str, tmp_path: Path, restored: bool) -> None:
    here, gone, third = run("Here."), run("Gone."), run("Third.")
    with Store(store_url) as store:
        store.add([here, gone, third])
        store.add_scores([score(gone, person) for person in ("bob", "cleo", "dora")])
        store.add_preferences([preference(gone, third, person) for person in ("bob", "cleo", "dora")])
        store.queue_items.add([here.id])
        store.pairs.add([(here.id, third.id)])
        queue = store.queue(Rules(gold_rate=0, repeat_rate=0))
        hands = [queue.take(person) for person in ("ada", "eve")]
        backup(store_url, tmp_path / "old.db")
        store.forget([gone.id], reason="asked for")
    if restored:
        restore(tmp_path / "old.db", store_url, force=True)
    with Store(store_url) as store:
        queue = store.queue(Rules())
        for person, hand in zip(("ada", "eve"), hands, strict=True):
            assert hand is not None
            with pytest.raises(DataError, match="not answered yet"):
                queue.finish(hand.id, person, ["tone@1" if hand.other is None else "overall"])
            if hand.other is None:
                store.add_scores([score(here, person)])
                assert queue.finish(hand.id, person, ["tone@1"]) == Finish(False, False)
            else:
                store.add_preferences([preference(here, third, person)])
                assert queue.finish(hand.id, person, ["overall"]) == Finish(False, False)


def test_no_byte_of_it_is_left_in_the_files_of_a_sqlite_store(tmp_path: Path) -> None:
    gone = run(f"{NEEDLE} " + "long enough to fill pages of its own. " * 2000)
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        store.add([gone, run("Hello.")])
        store.add_scores([score(gone, "ada")])
        written = b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
        assert NEEDLE.encode() in written
        store.forget([gone.id], reason="asked")
        left = b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
        assert NEEDLE.encode() not in left
        assert b"fill pages of its own" not in left


def test_an_old_backup_does_not_bring_back_what_was_forgotten_since(store_url: str, tmp_path: Path) -> None:
    gone, kept = run(f"My number is {NEEDLE}."), run("Hello.")
    fork = run(f"My number is {NEEDLE}. Again.", (gone.id, 0))
    with Store(store_url) as store:
        store.add([gone, kept, fork])
        mild = Score(trajectory=kept.id, criterion="tone@1", value=1, rater="eve", rater_kind="human")
        scores = [score(gone, "ada"), score(kept, "bob"), mild]
        store.add_scores(scores)
        store.add_preferences([preference(gone, kept, "ada")])
        store.queue_items.add([gone.id, kept.id])
    backup(store_url, tmp_path / "old.db")
    with Store(store_url) as store:
        done = store.forget([gone.id], reason="asked for")
        left = store.forget(person="bob", reason="left the team")
        stones = store.tombstones([*done.ids, *left.ids])
    for _again in range(2):
        report = restore(tmp_path / "old.db", store_url, force=True)
        assert (report.trajectories, report.scores, report.preferences, report.forgotten) == (1, 1, 0, 5)
        with Store(store_url) as store:
            assert [one.id for one in store.trajectories()] == [kept.id]
            assert [(one.rater, one.trajectory) for one in store.scores()] == [("eve", kept.id)]
            assert [item.trajectory for item in store.queue_items.items()] == [kept.id]
            assert store.tombstones([*done.ids, *left.ids]) == stones, "with the reason and the day it had"
            assert store.add([gone]) == AddReport(0, 0, 1)
            assert store.check().problems == ()
    if store_url.startswith("sqlite"):
        files = list((tmp_path / ".agentalign").iterdir())
        assert not [path.name for path in files if path.is_file() and NEEDLE.encode() in path.read_bytes()]


def test_forgetting_needs_a_reason(store: Store) -> None:
    with pytest.raises(DataError, match="needs a reason"):
        store.forget(person="ada", reason=" ")


def test_a_password_is_kept_as_a_hash_and_a_new_one_ends_sessions(store: Store) -> None:
    accounts = store.accounts
    assert accounts.set("ada", "rater", "correct horse battery") is True
    first = accounts.log_in("ada", "correct horse battery")
    assert first is not None and (first.name, first.role) == ("ada", "rater")
    assert accounts.log_in("ada", "correct horse") is None and accounts.log_in("eve", "correct horse battery") is None
    assert accounts.set("ada", "lead", "correct horse battery") is False
    again = accounts.find("ada")
    assert again is not None and again.role == "lead" and again.stamp != first.stamp
    for name, role, password in (("Ada", "rater", "x" * 12), ("ada", "king", "x" * 12), ("ada", "rater", "short")):
        with pytest.raises(DataError):
            accounts.set(name, role, password)
    assert [account.name for account in accounts.all()] == ["ada"]
    assert accounts.remove("ada") is True and accounts.remove("ada") is False
