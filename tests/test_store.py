"""The Store on both databases: what goes in comes out, once, in order, and only what was asked for."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentalign.errors import DataError, StoreError
from agentalign.records.adapter import Training
from agentalign.records.base import canonical_json, digest
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, StopReason, TokenRecord, ToolCall, Trajectory, TurnTokens
from agentalign.store import tables
from agentalign.store.adding import AddReport
from agentalign.store.filters import RunFilter
from agentalign.store.rows import storable
from agentalign.store.store import Store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def run(
    task: str, *, sample: int = 0, said: str = "Please cancel W1.", tool: str = "cancel", policy: str = "base", **fields: Any
) -> Trajectory:
    """A run of one call; more fields as Trajectory has them."""
    messages = (
        Message(role="user", content=said),
        Message(role="assistant", tool_calls=(ToolCall(id="c1", name=tool, arguments='{"order": "W1"}'),)),
        Message(role="tool", content="done", tool_call_id="c1", name=tool),
        Message(role="assistant", content="Cancelled."),
    )
    origin = Origin(kind="rollout", reference=policy, task=task, sample=sample)
    return Trajectory(taskset="desk", messages=messages, origin=origin, task_id=task, **fields)


def score(trajectory: Trajectory, value: float = 1.0, *, rater: str = "ada", criterion: str = "tone@1", **fields: Any) -> Score:
    return Score(trajectory=trajectory.id, criterion=criterion, value=value, rater=rater, rater_kind="human", **fields)


def ids(store: Store, **wanted: Any) -> list[str]:
    """Ids of the runs that a filter finds, oldest first."""
    return [trajectory.id for trajectory in store.trajectories(RunFilter(**wanted))]


def test_a_run_comes_back_as_it_was_stored_after_the_store_was_reopened(store_url: str) -> None:
    first = run(
        "t1", family="cancel", split="dev", stop_reason=StopReason.ANSWERED, seconds=1.5, parent=("a" * 32, 2), metadata='{"a":null}'
    )
    with Store(store_url) as store:
        assert store.add([first]) == AddReport(stored=1, known=0)
    with Store(store_url) as store:
        assert store.trajectory(first.id) == first


def test_storing_a_run_again_counts_it_as_known_and_changes_nothing(store: Store) -> None:
    first, second = run("t1"), run("t1", sample=1)
    assert store.add([first, first]) == AddReport(1, 1)
    assert store.add([first, second]) == AddReport(1, 1)
    assert store.add([]) == AddReport(0, 0)
    assert ids(store) == [first.id, second.id]


def test_identical_rollouts_are_two_runs_with_one_content(store: Store) -> None:
    first, second = run("t1"), run("t1", sample=1)
    store.add([first, second])
    assert first.content_digest == second.content_digest
    assert store.duplicates([first.content_digest, "0" * 32]) == {first.content_digest: [first.id, second.id]}


def test_a_missing_run_is_said_in_one_sentence(store: Store) -> None:
    with pytest.raises(DataError, match="there is no run 'f00'"):
        store.trajectory("f00")
    with pytest.raises(DataError, match="no NUL characters"):
        store.trajectory("a\0b")


def test_an_id_is_found_by_a_prefix_that_only_it_has(store: Store) -> None:
    stored = [run(f"t{i}") for i in range(40)]
    store.add(stored)
    for trajectory in stored:
        assert store.resolve_id(trajectory.id) == trajectory.id
    wanted = stored[0].id
    length = next(n for n in range(1, 33) if sum(t.id.startswith(wanted[:n]) for t in stored) == 1)
    assert store.resolve_id(wanted[:length].upper()) == wanted
    shared = next(a.id[0] for a in stored if sum(b.id[0] == a.id[0] for b in stored) > 1)
    with pytest.raises(DataError, match="several runs' ids begin"):
        store.resolve_id(shared)
    for wrong in ("", "zz", "%", "\0"):
        with pytest.raises(DataError):
            store.resolve_id(wrong)


def test_every_filter_finds_its_runs_and_no_others(store: Store) -> None:
    refund = run("t1", tool="refund", policy="desk@2", family="refund", split="dev", stop_reason=StopReason.ANSWERED)
    cancel = run("t2", family="cancel", split="train", said="50%_off\\ ÄPFEL")
    other = Trajectory.model_validate({**run("t2", sample=1).model_dump(), "taskset": "other", "id": ""})
    expert = Trajectory(taskset="desk", messages=(Message(role="user", content="hi"),), origin=Origin(kind="expert", reference="expert"))
    store.add([refund, cancel, other, expert])
    assert ids(store, taskset="desk") == [refund.id, cancel.id, expert.id]
    assert ids(store, task_id="t2") == [cancel.id, other.id]
    assert ids(store, family="refund") == ids(store, split="dev") == ids(store, stop_reason="answered") == [refund.id]
    assert ids(store, policy="desk@2") == ids(store, tool="refund") == [refund.id]
    assert ids(store, origin_kind="expert") == [expert.id]
    assert ids(store, ids=(expert.id, cancel.id, "f" * 32)) == [cancel.id, expert.id]
    assert ids(store, ids=()) == []
    assert ids(store, taskset="desk", tool="cancel", split="train") == [cancel.id]
    assert store.choices("desk").policy == ["base", "desk@2", "expert"]
    assert store.choices().taskset == ["desk", "other"]


def test_text_is_found_without_regard_to_case_and_signs_stand_for_themselves(store: Store) -> None:
    odd = run("t1", said="50%_off\\ ÄPFEL Straße\0nul \ud800")
    store.add([odd, run("t2")])
    for text in ("50%_", "OFF\\ äpfel", "STRASSE", "straße", "\0NUL", "\ud800", '"order":"W1"', "Cancelled"):
        assert odd.id in ids(store, text=text), text
    for text in ("50_", "o%f", "Apfel", "role", "\\\\ä"):
        assert odd.id not in ids(store, text=text), text
    with pytest.raises(DataError, match="Look for a shorter part"):
        ids(store, text="x" * 501)


def test_runs_of_a_training_are_those_it_sampled_and_those_of_its_adapter(store: Store) -> None:
    sampled, step, adapter, other = (
        run("t1", policy="ppo-1"),
        run("t1", policy="ppo-1/step-20"),
        run("t1", policy="desk@3"),
        run("t1", policy="ppo-10"),
    )
    store.add([sampled, step, adapter, other])
    assert ids(store, training="ppo-1") == [sampled.id, step.id]
    store.save_training(Training(id="ppo-1", recipe="ppo", taskset="desk", config="{}", adapter="desk@3", status="done"))
    assert ids(store, training="ppo-1") == [sampled.id, step.id, adapter.id]


def test_pages_show_every_run_once_newest_first_while_runs_are_added(store: Store) -> None:
    stored = [run(f"t{i}") for i in range(25)]
    store.add(stored)
    page = store.runs(limit=10)
    assert page.total == 25
    assert page.rows[0].id == stored[-1].id and page.rows[0].n_calls == 1 and page.rows[0].n_steps == 2 and page.rows[0].policy == "base"
    assert page.rows[0].created  # when it was stored, as the run did not say
    seen = [row.id for row in page.rows]
    while page.next is not None:
        store.add([run("late", sample=len(seen))])
        page = store.runs(limit=10, after=page.next)
        seen += [row.id for row in page.rows]
    assert seen == [trajectory.id for trajectory in reversed(stored)]
    assert store.runs(RunFilter(task_id="t3"), limit=1).next is None
    for wrong in ("x", "-1", "1;", "٣", "9" * 30):
        with pytest.raises(DataError, match="not a place in a list"):
            store.runs(after=wrong)


def test_streaming_keeps_the_order_and_ends_where_it_began(store: Store) -> None:
    stored = [run(f"t{i}") for i in range(450)]
    store.add(stored)
    seen: list[str] = []
    for trajectory in store.trajectories():
        if not seen:
            store.add([run("late")])
        seen.append(trajectory.id)
    assert seen == [trajectory.id for trajectory in stored]


def test_more_ids_than_a_database_takes_parameters(store: Store) -> None:
    stored = [run(f"t{i}") for i in range(3)]
    store.add(stored)
    many = [f"{i:032x}" for i in range(70_000)]
    assert len(ids(store, ids=(*many, stored[1].id))) == 1
    assert store.scores([*many]) == []
    assert store.duplicates([*many, stored[0].content_digest]) != {}


def test_tokens_come_back_exactly_and_are_kept_apart_from_the_run(store: Store) -> None:
    first, second = run("t1"), run("t2")
    turns = (
        TurnTokens(message_index=1, context=tuple(range(300)), completion=(7, 2**31 - 1), logprobs=(-0.5, -12.25)),
        TurnTokens(message_index=3, context=(), completion=(1,), logprobs=()),
    )
    record = TokenRecord(trajectory=first.id, base="b" * 32, turns=turns)
    store.add([first, second], [record])
    assert store.tokens(first.id) == record
    assert store.tokens(second.id) is None
    store.add([], [record.model_copy(update={"turns": ()})])
    assert store.tokens(first.id) == record
    with pytest.raises(DataError, match="Store the run before its tokens"):
        store.add([run("t3")], [record.model_copy(update={"trajectory": "e" * 32})])
    assert store.runs().total == 2  # t3 was not stored either
    with pytest.raises(DataError, match="beyond 32 bits"):
        store.add([], [record.model_copy(update={"turns": (turns[0].model_copy(update={"context": (2**31,)}),)})])


def test_logprobs_lose_only_what_float32_cannot_hold(store: Store) -> None:
    first = run("t1")
    record = TokenRecord(
        trajectory=first.id, base="b", turns=(TurnTokens(message_index=1, context=(1,), completion=(2,), logprobs=(-0.1,)),)
    )
    store.add([first], [record])
    stored = store.tokens(first.id)
    assert stored is not None and abs(stored.turns[0].logprobs[0] + 0.1) < 1e-8


def test_scores_are_appended_and_asked_for_by_run_taskset_and_criterion(store: Store) -> None:
    first, second = run("t1"), run("t2")
    store.add([first, second])
    scores = [
        score(first, 0.2),
        score(first, 0.9),
        score(second, criterion="tone@2", step=1),
        Score(
            trajectory=second.id, criterion="polite@1", status=ScoreStatus.ERROR, rater="check", rater_kind="check", note="\0 broke \udc80"
        ),
    ]
    assert store.add_scores(scores) == AddReport(4, 0)
    assert store.scores() == store.scores(taskset="desk") == scores
    assert store.scores([first.id]) == scores[:2]
    assert store.scores([]) == store.scores(taskset="other") == []
    assert store.scores(criterion="tone") == scores[:3]
    assert store.scores(criterion="tone@1") == scores[:2]
    assert store.scores([second.id], taskset="desk", criterion="polite") == scores[3:]


def test_a_score_saved_again_is_one_score_even_when_it_was_made_anew(store: Store) -> None:
    first = run("t1")
    store.add([first])
    made = score(first, id="tab-7", time="2026-01-01T00:00:00+00:00")
    assert store.add_scores([made, made]) == AddReport(1, 1)
    assert store.add_scores([score(first, id="tab-7")]) == AddReport(0, 1)
    assert store.scores() == [made]


def test_another_answer_under_a_known_id_is_refused_and_the_first_stays(store: Store) -> None:
    first = run("t1")
    store.add([first])
    made = score(first, 1.0, id="tab-7")
    store.add_scores([made])
    with pytest.raises(DataError, match="'tab-7' is stored with other content"):
        store.add_scores([score(first, 0.5, id="new"), score(first, 0.0, id="tab-7")])
    assert store.scores() == [made]  # all of it or nothing


def test_nothing_can_be_said_about_a_run_or_step_that_is_not_there(store: Store) -> None:
    first = run("t1")
    store.add([first])
    with pytest.raises(DataError, match="Store the run first"):
        store.add_scores([score(run("t2"))])
    with pytest.raises(DataError, match="has 2 steps, so it has no step 2"):
        store.add_scores([score(first, step=2)])
    with pytest.raises(DataError, match="no step -1"):
        store.add_scores([score(first, step=-1)])
    with pytest.raises(DataError, match="Store the run first"):
        store.add_preferences([Preference(taskset="desk", items=(Item(first.id), Item("f" * 32)), source="human", rater="ada")])
    assert store.scores() == []


def test_preferences_are_kept_in_order_and_asked_for_by_criterion_and_source(store: Store) -> None:
    first, second = run("t1"), run("t1", sample=1)
    store.add([first, second])
    whole = Preference(taskset="desk", items=(Item(first.id), Item(second.id)), source="human", rater="ada", left=second.id, strength=2)
    steps = Preference(taskset="desk", items=(Item(second.id, 1), Item(first.id, 1)), source="scores", rater="pairs", criterion="tone@1")
    assert store.add_preferences([whole, steps, whole]) == AddReport(2, 1)
    assert store.preferences("desk") == [whole, steps]
    assert store.preferences("desk", criterion="overall") == store.preferences("desk", source="human") == [whole]
    assert store.preferences("desk", criterion="tone", source="scores") == [steps]
    assert store.preferences("other") == []


def test_a_training_is_replaced_under_its_id_and_keeps_its_place(store: Store) -> None:
    first = Training(id="a", recipe="sft", taskset="desk", config='{"seed":1}')
    second = Training(id="b", recipe="dpo", taskset="desk", config="{}")
    store.save_training(first)
    store.save_training(second)
    done = first.model_copy(update={"status": "done", "adapter": "desk@1"})
    store.save_training(done)
    assert store.trainings() == store.trainings("desk") == [done, second]
    assert store.training("a") == done and store.trainings("other") == []
    with pytest.raises(DataError, match="there is no training 'c'"):
        store.training("c")


HOSTILE = st.text(alphabet=st.characters(), max_size=40)  # every code point, lone surrogates and NUL included


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one store may hold all examples
@given(texts=st.lists(HOSTILE, min_size=4, max_size=4), arguments=st.dictionaries(HOSTILE, HOSTILE, max_size=3))
def test_any_text_comes_back_unaltered_and_is_found(store: Store, texts: list[str], arguments: dict[str, str]) -> None:
    said, tool, result, note = texts
    call = ToolCall(id=tool, name=tool, arguments=canonical_json({**arguments}))
    messages = (Message(role="user", content=said), Message(role="assistant", tool_calls=(call,)), Message(role="tool", content=result))
    trajectory = Trajectory(
        taskset="desk", messages=messages, origin=Origin(kind="import", reference=digest(note)), metadata=canonical_json(note)
    )
    store.add([trajectory])
    assert store.trajectory(trajectory.id) == trajectory
    made = score(trajectory, note=note, time="now")
    store.add_scores([made])
    assert store.scores([trajectory.id]) == [made]
    assert ids(store, tool=tool, ids=(trajectory.id,)) == [trajectory.id]
    for text in (said[:20], result[-20:]):
        assert ids(store, text=text, ids=(trajectory.id,)) == [trajectory.id]
    for guess in texts:  # a filter's value never breaks a query: it finds, finds nothing, or is refused
        try:
            store.runs(RunFilter(family=guess, policy=guess, task_id=guess, training=guess))
        except DataError:
            assert not storable(guess)


@pytest.mark.parametrize("field", ["taskset", "task_id", "family", "split"])
@pytest.mark.parametrize("value", ["a\0b", "\udc00", "x" * 501])
def test_a_name_that_no_column_can_hold_is_refused_before_anything_is_written(store: Store, field: str, value: str) -> None:
    fields = {
        "taskset": "desk",
        "messages": (Message(role="user", content="hi"),),
        "origin": Origin(kind="import", reference="f"),
        field: value,
    }
    with pytest.raises(DataError, match=r"Remove them\.|Shorten it\."):
        store.add([run("t1"), Trajectory.model_validate(fields)])
    assert store.runs().total == 0


def test_a_long_message_is_kept_whole(store: Store) -> None:
    long = run("t1", said="ü\0" * 2_000_000)
    store.add([long])
    assert store.trajectory(long.id) == long


def test_threads_write_and_read_at_once_and_nothing_is_lost(store: Store) -> None:
    trajectory = run("t0")
    store.add([trajectory])
    broken: list[Exception] = []

    def rate(rater: int) -> None:
        try:
            for number in range(15):
                store.add_scores([score(trajectory, 0.5, rater=f"r{rater}", id=f"{rater}-{number}")])
                store.runs(limit=3)
        except Exception as error:  # noqa: BLE001 - handed to the test's own thread
            broken.append(error)

    threads = [threading.Thread(target=rate, args=(rater,)) for rater in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []
    assert len({made.id for made in store.scores()}) == len(store.scores()) == 90


def test_a_check_reads_everything_and_names_what_does_not_fit(store: Store) -> None:
    first = run("t1")
    record = TokenRecord(trajectory=first.id, base="b", turns=())
    store.add([first, run("t2")], [record])
    store.add_scores([score(first)])
    store.save_training(Training(id="a", recipe="sft", taskset="desk", config="{}"))
    report = store.check()
    assert report[:5] == (2, 1, 1, 0, 1) and report.problems == ()
    with store._database.write() as connection:
        connection.execute(
            tables.bodies.update().where(tables.bodies.c.trajectory == 1).values(record=first.model_dump_json().replace("W1", "W2"))
        )
        connection.execute(tables.scores.update().values(criterion="tone@9"))
        connection.execute(tables.tokens.update().values(data=b"no zlib"))
    problems = store.check().problems
    assert len(problems) == 3
    assert f"trajectory {first.id} is damaged" in problems[0] and "tokens" in problems[1] and "column criterion is 'tone@9'" in problems[2]
    with pytest.raises(StoreError, match=r"is damaged in the store.* Restore a backup"):
        store.trajectory(first.id)


def test_closing_twice_is_closing_once(store_url: str) -> None:
    store = Store(store_url)
    store.close()
    store.close()
