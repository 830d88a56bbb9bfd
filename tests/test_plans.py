"""How the database goes about a list: by an index that fits, never by reading every run. Plans, not times."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, text

from agentalign.records.preference import pair_id
from agentalign.store import filters, tables
from agentalign.store.filters import RunFilter
from agentalign.store.pairs import Draw
from agentalign.store.queue import Rules
from agentalign.store.store import Store

RUNS = 4000
JUDGED = 20
"""Every so manieth run has a verdict."""


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """Runs of ten makers, of which one alone has runs of the split dev; every twentieth is judged; twenty people compared."""
    with Store(store_url) as store:
        engine = create_engine(store_url)
        with engine.begin() as connection:
            connection.execute(insert(tables.trajectories), [run(number) for number in range(1, RUNS + 1)])
            judged = [{"criterion": "tone@1", "trajectory": n, "value": value(n), "spread": 0.0} for n in range(JUDGED, RUNS, JUDGED)]
            connection.execute(insert(tables.verdicts), [*judged, *({**one, "criterion": "solved@1"} for one in judged)])
            connection.execute(insert(tables.preferences), [word(number) for number in range(RUNS)])
            if connection.dialect.name == "postgresql":
                connection.execute(text("ANALYZE"))
        engine.dispose()
        yield store


def value(number: int) -> float:
    return number // JUDGED % 5 + 1.0


def run(number: int) -> dict[str, Any]:
    maker, split = "desk@7" if number % 10 == 0 else f"desk@{number % 10 + 10}", "dev" if number % 10 == 1 else "train"
    names = {"policy": maker, "split": split, "family": "", "taskset": "desk", "origin_kind": "rollout", "stop_reason": "answered"}
    counts = {"n_steps": 1, "n_calls": 0, "n_errors": 0, "excerpt": '""', "created": "2026-01-01"}
    return {"seq": number, "id": f"{number:032x}", "content_digest": f"{number:032x}", "task_id": None, **names, **counts}


def word(number: int) -> dict[str, Any]:
    person, item = "ada" if number % 20 == 0 else f"person {number % 20}", pair_id(f"{number:032x}", f"{number + 1:032x}")
    names = {"taskset": "desk", "criterion": "overall", "source": "human", "person": person, "item": item, "stands": True}
    return {"id": f"word {number}", "record": "{}", "digest": "", **names}


@contextmanager
def heard() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that a database is asked meanwhile, with its parameters."""
    found: list[tuple[str, Any]] = []

    def hear(_connection: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", hear)


def plans(url: str, ask: Callable[[], object], table: str = "trajectories") -> list[str]:
    """Of every query that `ask` makes of the table: how the database goes about it."""
    with heard() as asked:
        ask()
    queries = [(query, values) for query, values in asked if f"FROM {table}" in query or f"JOIN {table}" in query]
    assert queries
    engine = create_engine(url)
    how = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN (FORMAT JSON) "
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":  # a table as small as this one it would rather read whole
            connection.execute(text("SET enable_seqscan = off"))
        found = [connection.exec_driver_sql(how + query, values).all() for query, values in queries]
    engine.dispose()
    return [json.dumps([list(row) for row in rows]) for rows in found]


def reads_all(plan: str, table: str = "trajectories") -> bool:
    """Whether every row of the table is read."""
    return f"SCAN {table}" in plan or any(
        node.get("Node Type") == "Seq Scan" and node.get("Relation Name") == table for node in nodes(json.loads(plan))
    )


def nodes(part: object) -> Iterator[dict[str, Any]]:
    """All objects in JSON."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from nodes(inner)


@pytest.mark.parametrize("taskset", [None, "desk"])
def test_one_makers_runs_of_a_split_are_found_by_both_at_once(store: Store, store_url: str, taskset: str | None) -> None:
    wanted = RunFilter(taskset=taskset, policy="desk@7", split="dev")
    found = plans(store_url, lambda: store.runs(wanted))
    assert len(found) == 2, "a count and a page"
    for plan in found:
        assert not reads_all(plan), plan
        assert "policy_split" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
    assert (store.runs(wanted).rows, store.count(wanted)) == ([], 0)
    assert store.runs(RunFilter(taskset=taskset, policy="desk@7", split="train")).total == RUNS // 10


@pytest.mark.parametrize("taskset", [None, "desk"])
def test_runs_by_a_score_are_found_among_the_judged_ones(
    store: Store, store_url: str, taskset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = RunFilter(taskset=taskset, criterion="tone@1", score_at_most=2.0, hidden_from="ada", waiting_for="ada")
    few = store.runs(wanted, limit=30)
    monkeypatch.setattr(filters, "FEW", 10)
    found = plans(store_url, lambda: store.runs(wanted))
    assert len(found) == 2, "a count and a page"
    for plan in found:
        assert not reads_all(plan), plan
        assert "TEMP B-TREE FOR ORDER" not in plan, plan
    many = store.runs(wanted, limit=30)
    assert many == few, "the same list, read the other way round"
    assert (many.total, many.is_exact) == (sum(value(n) <= 2 for n in range(JUDGED, RUNS, JUDGED)), True)
    pages, after = list(many.rows), many.next
    while after:
        page = store.runs(wanted, limit=30, after=after)
        pages, after = pages + page.rows, page.next
    assert len({row.id for row in pages}) == len(pages) == many.total
    spread = store.runs(wanted.model_copy(update={"score_at_most": None, "disagreement": 0.0}))
    assert spread.total == 0


def test_relatives_of_what_one_rates_blind_are_found_by_their_parents_without_reading_every_run(store: Store, store_url: str) -> None:
    queued = [f"{number:032x}" for number in range(10, 200, 10)]
    store.queue_items.add(queued)
    hand = store.queue(Rules(gold_rate=0.0, repeat_rate=0.0)).take("ada")
    assert hand is not None
    seen = RunFilter(policy="desk@7", hidden_from="ada", waiting_for="ada")
    lists = plans(store_url, lambda: store.runs(seen), "trajectories AS")
    asked = plans(store_url, lambda: store.queue().hidden("ada", queued, waiting=True), "trajectories AS")
    assert (len(lists), len(asked)) == (2, 1), "a count and a page, and whose relatives the runs are"
    for plan in (*lists, *asked):
        assert not reads_all(plan), plan
        assert "ix_trajectories_parent" in plan, plan
    assert store.runs(seen).total == RUNS // 10 - len(queued)


def test_what_a_person_compared_is_found_without_reading_what_others_said(store: Store, store_url: str) -> None:
    draw = Draw("d" * 32, "ada", "desk", "1" * 32, "2" * 32, 0)
    assert len(store.pairs.compared_by("ada", "desk")) == RUNS // 20
    (which,) = plans(store_url, lambda: store.pairs.compared_by("ada", "desk"), "preferences")
    (what,) = plans(store_url, lambda: store.pairs.said(draw), "preferences")
    assert "ix_preferences_person" in which
    assert "ix_preferences_item" in what
    assert not any(reads_all(plan, "preferences") for plan in (which, what))


def test_the_indexes_of_makers_and_splits_are_a_small_part_of_what_a_run_takes(store: Store, store_url: str) -> None:
    if not store_url.startswith("sqlite"):
        pytest.skip("SQLite alone tells which pages an index takes")
    engine = create_engine(store_url)
    with engine.connect() as connection:
        options = connection.execute(text("SELECT compile_options FROM pragma_compile_options")).scalars()
        if "ENABLE_DBSTAT_VTAB" not in set(options):
            pytest.skip("this SQLite was built without dbstat")
        sizes = {row.name: row.size for row in connection.execute(text("SELECT name, sum(pgsize) AS size FROM dbstat GROUP BY name"))}
    engine.dispose()
    new = sum(sizes[f"ix_trajectories_{name}"] for name in ("policy_split", "taskset_policy_split"))
    old = sum(size for name, size in sizes.items() if "trajectories" in name) - new
    assert new < 0.2 * old, "of the short rows and their indexes, without the texts, which are ten times as much"
