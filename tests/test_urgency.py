"""What a queue hands out first: runs that people or the reward model cannot agree on, then kinds that nobody has looked at."""

import math

import pytest

from agentalign.records.criterion import Criterion, Score, ScoreStatus
from agentalign.scoring.urgency import coverage, disagreement, reward, uncertainties, urgency
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from tests.test_store import run

TONE = Criterion(name="tone", description="How does it sound?", scale=(1, 5))
CRITERIA = {"desk": [TONE]}


def said(trajectory, value, rater="ada", kind="human", time="2026-01-01T00:00:00Z", **fields):
    found = {"trajectory": trajectory.id, "criterion": "tone@1", "rater": rater, "rater_kind": kind, "time": time}
    return Score(**found, value=value, **fields)


def test_disagreement_is_the_distance_of_two_peoples_last_words_as_a_share_of_the_scale():
    one = run("t1")
    ada, ben = said(one, 5), said(one, 1, rater="ben")
    assert disagreement([ada], [TONE]) == 0.0
    assert disagreement([ada, ben], [TONE]) == 1.0
    again = said(one, 4, rater="ben", time="2026-01-02T00:00:00Z")
    assert disagreement([ada, ben, again], [TONE]) == 0.25, "an answer that was changed still counts"
    back = said(one, None, rater="ben", time="2026-01-03T00:00:00Z", status=ScoreStatus.WITHDRAWN)
    assert disagreement([ada, ben, back], [TONE]) == 0.0, "an answer that was taken back still counts"


def test_of_three_people_the_mean_distance_counts_and_of_several_questions_the_worst():
    one = run("t1")
    tone = [said(one, 5), said(one, 5, rater="ben"), said(one, 1, rater="cleo")]
    assert disagreement(tone, [TONE]) == pytest.approx(2 / 3)
    step = [said(one, 3, step=0), said(one, 1, rater="ben", step=0)]
    assert disagreement(step, [TONE]) == 0.5
    assert disagreement([*tone, *step], [TONE]) == pytest.approx(2 / 3)


def test_neither_checks_nor_other_versions_of_a_criterion_disagree_with_people():
    one = run("t1")
    check = said(one, 1, rater="check", kind="check")
    assert disagreement([said(one, 5), check], [TONE]) == 0.0
    assert disagreement([said(one, 5), said(one, 1, rater="ben")], [TONE.model_copy(update={"version": 2})]) == 0.0


def test_a_reward_model_that_calls_two_runs_of_a_task_even_does_not_know(tmp_path):
    runs = [run("t1"), run("t1", sample=1), run("t1", sample=2), run("t2")]
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.add(runs)
        rows = store.runs(RunFilter(), limit=10).rows
    values = dict(zip((one.id for one in runs), (0.3, 0.3, 5.3, 0.3), strict=True))
    found = uncertainties(rows, values)
    assert found[runs[0].id] == found[runs[1].id] == 1.0
    # 2 (1 - sigmoid(5)): twice the chance that the worse one is the better one.
    assert found[runs[2].id] == pytest.approx(2 / (1 + math.exp(5)))
    assert runs[3].id not in found, "a run without another of its task is compared with nothing"


def test_the_reward_models_last_word_on_the_whole_run_counts():
    one = run("t1")
    first, last = (said(one, v, kind="reward_model", rater="rm@1", time=f"2026-01-0{v}T00:00:00Z") for v in (1, 2))
    step = said(one, 4, kind="reward_model", rater="rm@1", time="2026-01-09T00:00:00Z", step=0)
    assert reward([first, last, step]) == 2
    assert reward([said(one, 5)]) is None


def test_a_kind_that_was_looked_at_often_is_no_longer_wanting_and_what_was_taken_back_was_not_looked_at(tmp_path):
    runs = [run("t1", family="cancel"), run("t2", family="cancel"), run("t3", family="refund")]
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.add(runs)
        rows = store.runs(RunFilter(), limit=10).rows
        ids = [one.id for one in runs]
        assert coverage(rows, {ids[0]}) == {ids[0]: 0.9, ids[1]: 0.9, ids[2]: 1.0}
        assert urgency(store, ids, CRITERIA) == dict.fromkeys(ids, 0.5)
        store.add_scores([said(runs[0], 5)])
        assert urgency(store, ids, CRITERIA) == {ids[0]: 0.45, ids[1]: 0.45, ids[2]: 0.5}
        store.add_scores([said(runs[0], None, status=ScoreStatus.WITHDRAWN, time="2026-01-02T00:00:00Z")])
        assert urgency(store, ids, CRITERIA) == dict.fromkeys(ids, 0.5)
        store.add_scores([said(runs[2], 5), said(runs[2], 1, rater="ben")])
        assert urgency(store, ids, CRITERIA)[ids[2]] == 1.0
