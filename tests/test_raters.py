"""From scores and preferences to who agrees with whom: people, machines, first errors, habits, and what is left to decide."""

import random
from itertools import count

import pytest

from agentalign.records.criterion import Criterion, Score, ScoreStatus
from agentalign.records.preference import Item, Preference
from agentalign.scoring.agreement_report import agreement_report
from agentalign.scoring.cases import Question, Rater, panel
from agentalign.scoring.disputes import disputes
from agentalign.scoring.habits import habits
from agentalign.scoring.raters import confusion, questions

TONE = Criterion(name="tone", description="Friendly?", scale=(1, 5))
STEP = Criterion(name="good_step", description="Right?", level="step")
CRITERIA = (TONE, STEP)
ticks = count()


def run_id(number):
    return f"{number:032x}"


def mark(run, value, rater="ada", kind="human", *, criterion="tone@1", step=None, seconds=None, note=""):
    seconds = next(ticks) if seconds is None else seconds
    day, rest = divmod(seconds, 86400)
    return Score(
        trajectory=run_id(run), criterion=criterion, step=step, value=value, rater=rater, rater_kind=kind, note=note,
        status=ScoreStatus.NOT_APPLICABLE if value is None else ScoreStatus.VALUE,
        time=f"2026-01-{5 + day:02}T{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}.{next(ticks) % 1000000:06}+00:00",
    )  # fmt: skip


def vote(better, worse, rater="ada", *, left=None, source="human", **rest):
    return Preference(
        taskset="desk", items=(Item(run_id(better)), Item(run_id(worse))), source=source, rater=rater,
        left=None if left is None else run_id(left), note=str(next(ticks)), **rest,
    )  # fmt: skip


def report(scores=(), preferences=()):
    return agreement_report(panel(scores, preferences), "desk", CRITERIA)


def test_only_people_count_in_alpha_and_machines_stand_beside_them():
    draw = random.Random(0)
    truth = [draw.randint(1, 5) for _ in range(40)]
    people = [mark(n, v, name) for n, v in enumerate(truth) for name in ("ada", "bob")]
    judge = [mark(n, draw.randint(1, 5), "gpt", "judge") for n in range(40)]
    (tone,) = report([*people, *judge]).questions
    assert (tone.alpha.value, tone.alpha.n, tone.metric, tone.shared, tone.split) == (1, 40, "ordinal", 40, 0)
    found = {(k.first.name, k.second.name): k.kappa.value for k in tone.kappas}
    assert found[("ada", "bob")] == 1
    assert abs(found[("ada", "gpt")]) < 0.4
    assert found[("ada", "gpt")] == found[("bob", "gpt")]
    (machine,) = tone.machines
    assert machine.rater == Rater("judge", "gpt")
    assert sum(map(sum, machine.confusion.counts)) == 40
    gaps = [abs(worst.people - worst.machine) for worst in machine.worst]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == max(abs(score.value - truth[n]) for n, score in enumerate(judge))


def test_the_newest_answer_counts_and_one_that_does_not_apply_is_missing_but_split():
    scores = [mark(1, 1, "ada"), mark(1, 5, "bob"), mark(1, 5, "ada"), mark(2, None, "ada"), mark(2, 3, "bob")]
    (tone,) = report(scores).questions
    assert (tone.shared, tone.split, tone.open) == (2, 1, 1)
    assert (tone.alpha.n, tone.alpha.why) == (1, "too few")


def test_marks_of_another_version_of_a_criterion_are_in_no_figure():
    assert report([mark(n, 3, name, criterion="tone@2") for n in range(30) for name in ("ada", "bob")]).questions == ()


def test_binary_answers_and_pairs_are_nominal():
    scores = [mark(n, n % 2, name, criterion="good_step@1", step=0) for n in range(25) for name in ("ada", "bob")]
    votes = [vote(*pair, name) for n in range(25) for name in ("ada", "bob") for pair in [(n, 100 + n) if n % 2 else (100 + n, n)]]
    step, pair = report(scores, votes).questions
    assert (step.metric, step.level, pair.metric, pair.level) == ("nominal", "step", "nominal", "pair")
    assert (step.alpha.value, pair.alpha.value, pair.alpha.n) == (1, 1, 25)


def test_two_who_saw_a_pair_mirrored_agree_when_they_mean_the_same_run():
    (case,) = panel([], [vote(2, 1, "ada", left=1), vote(2, 1, "bob", left=2)]).answers.items()
    assert [answer.value for answer in case[1].values()] == [1.0, 1.0]


def test_first_errors_are_compared_run_by_run():
    def marks(run, rater, bad, steps=4):
        return [mark(run, float(step not in bad), rater, criterion="good_step@1", step=step) for step in range(steps)]

    scores = [*marks(1, "ada", {1}), *marks(1, "bob", {3}), *marks(2, "ada", {2, 3}), *marks(2, "bob", {2})]
    scores += [*marks(3, "ada", {0}), *marks(3, "bob", set()), *marks(4, "ada", set()), *marks(4, "bob", set()), *marks(5, "ada", {1})]
    (step,) = report(scores).questions
    errors = step.first_errors
    assert errors is not None
    assert (errors.same.share, errors.same.n, errors.mean_distance, errors.one_only, errors.neither) == (0.5, 2, 1.0, 1, 1)


def test_a_long_scale_is_told_in_thirds_and_a_short_one_value_by_value():
    assert confusion([(1, 2), (1, 1), (2, 2)], (1, 5)) == confusion([(2, 2), (1, 1), (1, 2)], (1, 5))
    assert confusion([(1, 2), (1, 1), (2, 2)], (1, 5)).counts == ((1, 1), (0, 1))
    long = confusion([(n, n) for n in range(0, 100, 10)], (0, 100))
    assert long.labels == ("low", "middle", "high")
    assert sum(map(sum, long.counts)) == 10


def test_disputes_are_listed_widest_first_and_decided_ones_last():
    scores = [
        mark(1, 3, "ada"),
        mark(1, 4, "bob"),
        mark(2, 1, "ada"),
        mark(2, 5, "bob"),
        mark(3, 1, "ada"),
        mark(3, 5, "bob"),
        mark(4, 2, "ada"),
    ]
    decision = mark(3, 2, "lead", "adjudicator", note="see the last step")
    found = panel([*scores, decision], [])
    listed = disputes(found, Question("tone@1", "mark"), TONE)
    assert [(d.items[0].trajectory, d.spread) for d in listed] == [(run_id(2), 1.0), (run_id(1), 0.25), (run_id(3), 1.0)]
    assert [(a.rater.name, a.word) for a in listed[0].answers] == [("ada", "1"), ("bob", "5")]
    assert listed[2].decision is not None
    assert (listed[2].decision.word, listed[2].decision.note) == ("2", "see the last step")
    assert disputes(found, Question("tone@1", "mark"), TONE, [Rater("human", "ada"), Rater("human", "eve")]) == []
    (tone,) = questions(found, CRITERIA)
    assert (tone.split, tone.open, tone.decided) == (3, 2, 1)
    assert (tone.raters, len(found.answers)) == ((Rater("human", "ada"), Rater("human", "bob")), 4), (
        "an adjudicator is not one of the raters"
    )


def test_a_favoured_side_is_a_share_with_an_interval_and_ties_are_no_choice():
    votes = [vote(n, 100 + n, left=n) for n in range(24)] + [vote(50, 51, left=51), vote(60, 61, left=60, tie=True)]
    (ada,) = report((), votes).people
    assert (ada.pairs, ada.left.n) == (26, 25)
    assert ada.left.share == pytest.approx(24 / 25)
    assert "chooses the left side more often than chance" in ada.flags
    fair = [vote(n, 100 + n, left=n if n % 2 else 100 + n) for n in range(40)]
    assert not any("side" in flag for flag in report((), fair).people[0].flags)


def test_an_answer_changed_within_the_hour_is_a_correction_and_a_later_one_a_repeat():
    scores = [
        mark(1, 3, seconds=0),
        mark(1, 4, seconds=60),
        mark(1, 4, seconds=90_000),
        mark(2, 1, seconds=100),
        mark(2, 2, seconds=99_000),
    ]
    (ada,) = report(scores).people
    assert (ada.repeat.share, ada.repeat.n) == (0.5, 2)


def test_an_answer_after_ten_other_runs_is_a_repeat_however_soon_it_comes():
    between = [mark(n, 3, seconds=n) for n in range(2, 13)]
    (ada,) = report([mark(1, 4, seconds=0), *between, mark(1, 4, seconds=20)]).people
    assert (ada.repeat.share, ada.repeat.n) == (1, 1)
    (ada,) = report([mark(1, 4, seconds=0), *between[:9], mark(1, 2, seconds=20)]).people
    assert ada.repeat is None


def test_upheld_is_how_often_a_person_had_said_what_was_decided():
    scores = [mark(1, 3, "ada"), mark(1, 4, "bob"), mark(2, 3, "ada"), mark(2, 1, "bob")]
    decisions = [mark(1, 3, "lead", "adjudicator"), mark(2, 3, "lead", "adjudicator")]
    ada, bob = report([*scores, *decisions]).people
    assert (ada.upheld.share, ada.upheld.n, bob.upheld.share) == (1, 2, 0)


def test_the_pace_is_from_run_to_run_and_breaks_are_no_work():
    fast = [mark(n, 3, "ada", seconds=3 * n) for n in range(30)]
    slow = [mark(n, 1 + n % 5, "bob", seconds=120 * n + (7200 if n > 15 else 0)) for n in range(30)]
    ada, bob = habits(panel([*fast, *slow], []), CRITERIA)
    assert (round(ada.seconds_per_run), round(bob.seconds_per_run), bob.runs) == (3, 120, 28)
    assert "takes 3 s a run: hardly time to read one" in ada.flags
    assert not any("takes" in flag for flag in bob.flags)


def test_a_row_of_equal_answers_is_flagged_only_where_the_others_vary():
    draw = random.Random(1)
    same = [mark(n, 4, "ada", seconds=100 * n) for n in range(30)]
    varied = [mark(n, draw.randint(1, 5), "bob", seconds=100 * n) for n in range(30)]
    (streak,) = habits(panel([*same, *varied], []), CRITERIA)[0].streaks
    assert (streak.value, streak.length, streak.marks) == (4, 30, 30)
    easy = [mark(n, 4 if n else 3, "bob", seconds=100 * n) for n in range(30)]
    assert habits(panel([*same, *easy], []), CRITERIA)[0].streaks == (), "where everyone says so it is an easy criterion"


def test_who_became_stricter_is_seen_beside_the_others_week_by_week():
    week = 7 * 86400
    others = [mark(n, 3, "bob", seconds=100 * n) for n in range(60)]
    first = [mark(n, 4 + n % 2, "ada", seconds=100 * n) for n in range(30)]
    later = [mark(n, 2 - n % 2, "ada", seconds=week + 100 * n) for n in range(30, 60)]
    ada = habits(panel([*others, *first, *later], []), CRITERIA)[0]
    assert [(w.week, w.marks, w.shared) for w in ada.weeks] == [("2026-W02", 30, 30), ("2026-W03", 30, 30)]
    assert ada.weeks[0].lean == pytest.approx(0.375)
    assert ada.weeks[1].lean == pytest.approx(-0.375)
    assert ada.weeks[1].low <= ada.weeks[1].lean <= ada.weeks[1].high < 0
    assert "became stricter from 2026-W02 to 2026-W03" in ada.flags


def test_times_that_are_no_times_break_nothing():
    scores = [mark(n, 3).model_copy(update={"time": "", "id": str(n)}) for n in range(30)]
    (ada,) = report(scores).people
    assert (ada.marks, ada.seconds_per_run, ada.weeks) == (30, None, ())


def test_who_did_not_change_is_hardly_ever_said_to_have():
    draw, week, flagged = random.Random(3), 7 * 86400, 0
    for _ in range(40):
        scores = []
        for run in range(24):  # two weeks of twelve runs; ada is milder or stricter by the run, as runs differ
            lean = draw.gauss(0, 0.2)
            for step in range(8):
                seconds = (run >= 12) * week + 100 * run + step
                scores.append(mark(run, 0.5, "bob", criterion="good_step@1", step=step, seconds=seconds))
                own = min(1.0, max(0.0, 0.5 + lean + draw.gauss(0, 0.2)))
                scores.append(mark(run, own, "ada", criterion="good_step@1", step=step, seconds=seconds))
        ada = habits(panel(scores, []), CRITERIA)[0]
        assert [w.low is not None for w in ada.weeks] == [True, True]
        flagged += any("became" in flag for flag in ada.flags)
    assert flagged <= 2


def test_a_week_of_equal_answers_is_no_certainty():
    week = 7 * 86400
    others = [mark(n, 3, "bob", seconds=100 * n) for n in range(40)]
    own = [mark(n, 3 if n < 36 else 5, "ada", seconds=(n >= 20) * week + 100 * n) for n in range(40)]
    first, second = habits(panel([*others, *own], []), CRITERIA)[0].weeks
    assert (first.lean, first.low < 0 < first.high) == (0.0, True)
    assert second.low <= first.high, "four of twenty against none of twenty may be chance"


def test_steps_of_one_run_that_went_well_are_no_row_of_equal_answers():
    draw, flagged = random.Random(5), 0
    for _ in range(40):
        scores = []
        for run in range(40):
            right = 0.97 if draw.random() < 0.6 else 0.4
            for name in ("ada", "bob"):
                scores += [
                    mark(run, float(draw.random() < right), name, criterion="good_step@1", step=step, seconds=100 * run + step)
                    for step in range(6)
                ]
        flagged += bool(habits(panel(scores, []), CRITERIA)[0].streaks)
    assert flagged <= 2
