"""Runs kept parsed: the same object while the run is there, and never a word of one that is gone."""

from collections.abc import Iterator

import pytest
from small_desk import make_run

from agentalign.errors import DataError
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store import recent
from agentalign.store.store import Store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as store:
        yield store


def test_a_run_is_parsed_once_while_it_is_asked_for(store: Store) -> None:
    run = make_run()
    store.add([run])
    first = store.recent.trajectory(run.id)
    assert first == run == store.trajectory(run.id)
    assert store.recent.trajectory(run.id) is first
    assert store.recent.taskset(run.id) == "desk"


def test_a_run_that_another_process_forgot_is_gone_at_once(store: Store, store_url: str) -> None:
    run = make_run()
    store.add([run])
    store.recent.trajectory(run.id)
    with Store(store_url) as other:
        other.forget([run.id], reason="asked for")
    with pytest.raises(DataError, match=r"was forgotten on .* \(asked for\)"):
        store.recent.trajectory(run.id)
    assert run.id not in store.recent._kept
    with pytest.raises(DataError, match="there is no run"):
        store.recent.taskset("0" * 32)


def test_the_least_recently_asked_for_falls_out_and_long_runs_are_kept_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(sample=number) for number in range(recent.KEPT + 2)]
    said = (*runs[0].messages, Message(role="user", content="and?"))
    long = Trajectory(taskset="desk", messages=said, origin=Origin(kind="import", reference="file"))
    store.add([*runs, long])
    for run in runs[: recent.KEPT]:
        store.recent.trajectory(run.id)
    first = store.recent.trajectory(runs[0].id)
    store.recent.trajectory(runs[-1].id)
    assert store.recent.trajectory(runs[0].id) is first
    assert runs[1].id not in store.recent._kept and len(store.recent._kept) == recent.KEPT
    monkeypatch.setattr(recent, "MOST_MESSAGES", len(long.messages) - 1)
    store.recent.trajectory(long.id)
    assert list(store.recent._kept) == [long.id]
