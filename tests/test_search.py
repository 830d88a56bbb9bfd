"""Finding runs: by text, by what raters said, by errors and origin; on both databases, and for stores made before there was an index."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, insert, select, table

from agentalign.errors import DataError
from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.store import rows, search, store, tables, verdicts
from agentalign.store.database import open_database
from agentalign.store.filters import RunFilter
from agentalign.store.schema import MIGRATIONS, migrate
from agentalign.store.store import Store


@pytest.fixture
def desk(store_url: str) -> Iterator[Store]:
    with Store(store_url) as desk:
        yield desk


def run(said: str, *, result: str = "done", sample: int = 0, error: bool = False, **fields: Any) -> Trajectory:
    messages = (
        Message(role="user", content=said),
        Message(role="assistant", reasoning="Look it up.", tool_calls=(ToolCall(id="c", name="lookup", arguments='{"order":"W1"}'),)),
        Message(role="tool", content=result, tool_call_id="c", name="lookup", error=error),
        Message(role="assistant", content="Your parcel is on its way."),
    )
    return Trajectory(
        **{"taskset": "desk", "messages": messages, "origin": Origin(kind="rollout", reference="base", sample=sample), **fields}
    )


def score(run: Trajectory, value: float | None, rater: str = "ada", kind: str = "human", **fields: Any) -> Score:
    status = "value" if value is not None else "not_applicable"
    return Score.model_validate(
        {"trajectory": run.id, "criterion": "tone@1", "value": value, "status": status, "rater": rater, "rater_kind": kind, **fields}
    )


def found(desk: Store, **wanted: Any) -> list[str]:
    """Ids of a list, newest first; the stream of whole runs must find the same ones."""
    filter = RunFilter(**wanted)
    ids, after = [], None
    while True:
        page = desk.runs(filter, limit=2, after=after)
        ids += [row.id for row in page.rows]
        after = page.next
        if after is None:
            break
    assert [run.id for run in desk.trajectories(filter)] == ids[::-1]
    assert desk.count(filter) == len(ids) == page.total
    return ids


def test_words_are_found_in_messages_reasoning_arguments_and_results(desk: Store) -> None:
    one, two, three = run("Where is my order?"), run("Refund 50%_off", result="ORDER W77 delivered"), run("Bye", sample=1)
    desk.add([one, two, three])
    assert found(desk, text="order") == [three.id, two.id, one.id], "the arguments of all three name an order"
    assert found(desk, text="WHERE IS") == [one.id]
    assert found(desk, text="w77 deliv") == found(desk, text="50%_o") == [two.id]
    assert found(desk, text="look it up") == [three.id, two.id, one.id]
    assert found(desk, text='"order":"w1"', taskset="desk", tool="lookup") == [three.id, two.id, one.id]
    assert found(desk, text="order refund") == [], "a text is looked for as it stands, not word by word"
    assert found(desk, text="50_") == []


def test_one_or_two_characters_are_found_too(desk: Store) -> None:
    one, two = run("退款"), run("%", sample=1)
    desk.add([one, two])
    assert found(desk, text="退款") == [one.id]
    assert found(desk, text="%") == [two.id]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(), min_size=3, max_size=60))
def test_any_text_is_found_by_the_index(desk: Store, text: str) -> None:
    stored = run(text)
    desk.add([stored])
    for part in (text, text[:3], text[-3:]):
        assert stored.id in [row.id for row in desk.runs(RunFilter(text=part), limit=200).rows]


def test_a_text_that_only_has_the_same_pieces_is_not_found(desk: Store) -> None:
    desk.add([run("abcx bcdx cdex")])
    assert found(desk, text="abcde") == [], "its pieces abc, bcd and cde all stand there, but apart"


def test_a_run_that_is_deleted_is_no_longer_in_the_index(store_url: str) -> None:
    with Store(store_url) as desk:
        desk.add([run("a secret"), run("a secret", sample=1)])
        database = open_database(store_url)
        with database.write() as connection:
            connection.execute(tables.bodies.delete().where(tables.bodies.c.trajectory == 1))
            connection.execute(tables.calls.delete().where(tables.calls.c.trajectory == 1))
            connection.execute(tables.trajectories.delete().where(tables.trajectories.c.seq == 1))
            search.forget(connection)
        database.close()
        assert desk.runs(RunFilter(text="a secret")).total == 1
        assert desk.check().problems == ()


def test_a_common_text_is_counted_only_so_far_and_that_is_said(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "COUNTED", 4)
    monkeypatch.setattr(store, "COUNTED_TEXTS", 2)
    desk.add([run("hello", sample=sample) for sample in range(4)])
    assert [(page.total, page.is_exact) for page in (desk.runs(), desk.runs(RunFilter(text="hello")))] == [(4, True), (2, False)]
    assert len(desk.runs(RunFilter(text="hello")).rows) == 4
    assert desk.count(RunFilter(text="hello")) == 4


def test_runs_are_found_by_the_score_that_counts(desk: Store) -> None:
    low, high, none = run("a"), run("b"), run("c")
    desk.add([low, high, none])
    desk.add_scores([score(low, 5, "check", "check"), score(low, 1), score(low, 2, "bob"), score(high, 4), score(none, None)])
    assert found(desk, criterion="tone@1") == [high.id, low.id]
    assert found(desk, criterion="tone@1", score_at_most=1.5) == [low.id], "people before checks, and their mean"
    assert found(desk, criterion="tone@1", score_at_least=1.6) == [high.id]
    assert found(desk, criterion="tone@2") == []
    desk.add_scores([score(low, 5, time="9999"), score(low, 5, "bob", time="9999")])
    assert found(desk, criterion="tone@1", score_at_least=5) == [low.id], "the newest word of each counts"
    with pytest.raises(ValueError, match="need a criterion"):
        RunFilter(score_at_least=1)


def test_runs_are_found_whose_raters_disagree_at_the_same_place(desk: Store) -> None:
    apart, alike, elsewhere = run("a"), run("b"), run("c")
    desk.add([apart, alike, elsewhere])
    desk.add_scores([score(apart, 1), score(apart, 4, "bob"), score(alike, 3), score(alike, 3, "judge-7b", "judge")])
    desk.add_scores([score(alike, 0.1, "desk-reward@1", "reward_model")])
    desk.add_scores([score(elsewhere, 1, step=0), score(elsewhere, 5, "bob", step=1)])
    assert found(desk, disagreement=0) == found(desk, disagreement=2, criterion="tone@1") == [apart.id]
    assert found(desk, disagreement=3) == found(desk, disagreement=0, criterion="other@1") == []


def test_conditions_on_other_tables_find_the_same_when_many_match(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(f"r{i}") for i in range(5)]
    desk.add(runs)
    desk.add_scores([score(one, i % 2) for i, one in enumerate(runs)])
    wanted: dict[str, Any] = {"tool": "lookup", "criterion": "tone@1", "score_at_least": 1, "unrated_by": "bob"}
    expected = [runs[3].id, runs[1].id]
    assert found(desk, **wanted) == expected
    monkeypatch.setattr("agentalign.store.filters.FEW", 1)
    assert found(desk, **wanted) == expected


def test_errors_parents_and_excerpts_stand_in_the_list(desk: Store) -> None:
    first = run("x" * 200, error=True)
    child = run("again", parent=(first.id, 1))
    desk.add([first, child])
    assert found(desk, errors=True) == [first.id]
    assert found(desk, parent=first.id) == [child.id]
    newest, oldest = desk.runs().rows
    assert (newest.parent, newest.n_errors, newest.excerpt) == (first.id, 0, "again")
    assert (oldest.parent, oldest.n_errors, oldest.excerpt) == (None, 1, "x" * 140)


def test_choices_are_the_values_that_occur(desk: Store) -> None:
    desk.add([run("a", family="f"), run("b", family="e", split="dev"), run("c", taskset="other", family="g")])
    assert desk.choices()[:3] == (["desk", "other"], ["e", "f", "g"], ["dev"])
    assert desk.choices("desk")[1:] == (["e", "f"], ["dev"], ["base"], ["unknown"], ["lookup"], [])
    assert desk.choices("none")[1:] == ([], [], [], [], [], [])


def test_a_store_of_the_first_schema_is_filled_when_it_is_opened(store_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(
        MIGRATIONS,
        folder,
        ignore=lambda _folder, names: [name for name in names if name == "__pycache__" or (name[:4].isdigit() and name[:4] > "0001")],
    )
    runs = [run("Wärme \ud800", error=True), run("b", sample=1, family="f")]
    runs.append(run("c", parent=(runs[0].id, 0)))
    scores = [score(runs[0], 1), score(runs[0], 3, "bob"), score(runs[1], 2, step=1), score(runs[1], 0.5, "r@1", "reward_model")]
    old = store_url.replace("/store.db", "/old.db")
    if old != store_url:
        (tmp_path / ".agentalign").mkdir()
    database = open_database(store_url)  # for PostgreSQL its schema is emptied again
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            for name in ("alembic_version", *(table.name for table in reversed(tables.metadata.sorted_tables))):
                connection.exec_driver_sql(f"DROP TABLE {name} CASCADE")
            _make_old(connection, folder, runs, scores)
    database.close()
    if old != store_url:
        from agentalign.store import sqlite

        path = Path(old.removeprefix("sqlite:///"))
        with sqlite.file_engine(path) as engine, engine.begin() as connection:
            _make_old(connection, folder, runs, scores)
        sqlite.set_wal(path)
    with Store(old) as opened:
        assert [row.id for row in opened.runs().rows] == [one.id for one in reversed(runs)]
        assert found(opened, text="wärme") == found(opened, errors=True) == [runs[0].id]
        assert found(opened, parent=runs[0].id) == [runs[2].id]
        assert found(opened, disagreement=1.5) == found(opened, criterion="tone@1", score_at_most=2, family="") == [runs[0].id]
        assert opened.runs(RunFilter(text="wärme")).rows[0].excerpt == "Wärme \ud800"
        opened.add([run("Wärme", sample=9)])
        assert opened.runs(RunFilter(text="wärme")).total == 2
        assert opened.check().problems == ()


def _make_old(connection: Any, folder: Path, runs: list[Trajectory], scores: list[Score]) -> None:
    migrate(connection, folder=folder)
    for seq, one in enumerate(runs, 1):
        row = {"seq": seq, **rows.trajectory_row(one)}
        for late in ("parent", "n_errors", "excerpt"):
            del row[late]
        connection.execute(insert(tables.trajectories).values(row))
        connection.execute(insert(tables.bodies).values(trajectory=seq, **rows.body_row(one)))
        connection.execute(insert(tables.calls).values(tool="lookup", trajectory=seq))
    for one_score in scores:
        row = {name: value for name, value in rows.score_row(one_score).items() if name != "stands"}
        connection.execute(insert(table("scores", *(column(name) for name in row))).values(row))
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT setval(pg_get_serial_sequence('trajectories', 'seq'), 10)")


def test_the_check_sees_an_index_or_verdicts_that_are_out_of_step(store_url: str) -> None:
    with Store(store_url) as desk:
        one = run("a")
        desk.add([one])
        desk.add_scores([score(one, 1)])
        assert desk.check().problems == ()
        database = open_database(store_url)
        with database.write() as connection:
            connection.execute(tables.verdicts.update().values(value=5.0))
            if connection.dialect.name == "sqlite":
                text = connection.execute(select(tables.bodies.c.search)).scalar_one()
                connection.exec_driver_sql("INSERT INTO run_text(run_text, rowid, search) VALUES ('delete', 1, ?)", (text,))
        database.close()
        problems = desk.check().problems
        assert "1 verdicts that filters read differ from the scores" in problems[0]
        assert store_url.startswith("postgresql") or "the text index holds 0 runs of 1" in problems[1]


def test_verdicts_are_checked_a_few_runs_at_a_time(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "CHUNK", 1)
    with Store(store_url) as desk:
        runs = [run(name) for name in "abc"]
        desk.add(runs)
        desk.add_scores([score(one, 1) for one in runs])
        assert desk.check().problems == ()
        database = open_database(store_url)
        with database.write() as connection:
            connection.execute(tables.verdicts.update().where(tables.verdicts.c.trajectory > 1).values(value=5.0))
        database.close()
        (problem,) = desk.check().problems
        assert "2 verdicts that filters read differ from the scores" in problem
        assert "of run number 2" in problem


def test_a_text_that_no_run_can_hold_is_refused(desk: Store) -> None:
    with pytest.raises(DataError, match="Look for a shorter part"):
        desk.runs(RunFilter(text="x" * 501))
    assert json.loads(rows.excerpt("a\0\ud800")) == "a\0\ud800"
