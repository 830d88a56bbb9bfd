"""The order in which scores are stored decides, in every place that asks: `overall`, filters, the check, and stores made before."""

import pytest

from agentalign.records.criterion import Criterion, Score, ScoreStatus, overall
from agentalign.store import tables
from agentalign.store.database import open_database
from agentalign.store.filters import RunFilter
from agentalign.store.queue import Finish, Rules
from agentalign.store.store import Store
from tests.test_store import run

TONE = Criterion(name="tone", description="How does it sound?", scale=(1, 5))


def mark(about, value, time, rater="ada"):
    status = ScoreStatus.VALUE if value is not None else ScoreStatus.WITHDRAWN
    return Score(trajectory=about.id, criterion="tone@1", value=value, status=status, rater=rater, rater_kind="human", time=time)


@pytest.fixture
def runs():
    return [run(f"t{number}") for number in range(3)]


def test_a_withdrawal_from_a_machine_that_runs_behind_counts(store_url, runs):
    with Store(store_url) as store:
        store.add(runs)
        store.add_scores([mark(runs[0], 5, "2026-01-02"), mark(runs[1], 5, "2026-01-02")])
        store.add_scores([mark(runs[0], None, "2026-01-01"), mark(runs[1], 2, "2026-01-01")])
        assert overall([TONE], store.scores([runs[0].id])) is None
        assert [row.id for row in store.runs(RunFilter(criterion="tone@1", score_at_most=2)).rows] == [runs[1].id]
        assert store.runs(RunFilter(criterion="tone@1", score_at_least=1)).total == 1
        assert store.runs(RunFilter(unrated_by="ada")).total == 2, "and so says what raters are asked next"
        assert store.check().problems == ()


def test_a_store_that_went_by_time_is_put_right_when_it_is_opened(store_url, runs):
    with Store(store_url) as store:
        store.add(runs)
        store.add_scores([mark(runs[0], 5, "2026-01-02"), mark(runs[1], 4, "2026-01-02"), mark(runs[2], 1, "2026-01-02")])
        store.add_scores([mark(runs[0], None, "2026-01-01"), mark(runs[1], 2, "2026-01-01"), mark(runs[2], 3, "2026-01-03")])
        store.queue_items.add([runs[0].id])
        hand = store.queue(Rules(gold_rate=0, repeat_rate=0)).take("bob")
    database = open_database(store_url)
    with database.write() as connection:
        by_time = {"criterion": "tone@1", "spread": 0.0}
        connection.execute(tables.verdicts.delete().where(tables.verdicts.c.trajectory < 3))
        connection.execute(tables.verdicts.insert(), [{**by_time, "trajectory": 1, "value": 5}, {**by_time, "trajectory": 2, "value": 4}])
        connection.execute(tables.assignments.update().values(after=100))
        connection.exec_driver_sql("ALTER TABLE queue_items DROP COLUMN gold_by")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0006'")
    database.close()
    with Store(store_url) as store:
        assert store.check().problems == ()
        assert {row.id for row in store.runs(RunFilter(criterion="tone@1", score_at_least=1)).rows} == {runs[1].id, runs[2].id}
        store.add_scores([mark(runs[0], 1, "2026-01-04", "bob")])
        assert store.queue(Rules()).finish(hand.id, "bob", ["tone@1"]) == Finish(False, False)


def test_a_store_in_which_one_mark_hid_what_a_check_said_of_other_steps_is_put_right_when_it_is_opened(store_url, runs):
    about = {"trajectory": runs[0].id, "criterion": "valid@1"}
    checks = [Score(**about, step=step, value=float(step == 1), rater="check", rater_kind="check") for step in range(2)]
    with Store(store_url) as store:
        store.add(runs)
        store.add_scores([*checks, Score(**about, step=1, value=1, rater="ada", rater_kind="human")])
    database = open_database(store_url)
    with database.write() as connection:
        connection.execute(tables.verdicts.update().values(value=1.0))
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0008'")
    database.close()
    with Store(store_url) as store:
        assert store.check().problems == ()
        assert store.runs(RunFilter(criterion="valid@1", score_at_most=0.5)).total == 1
