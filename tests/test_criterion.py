"""One number of a run's scores, by hand: gates, weights, who counts, and what cannot be known."""

import pytest

from agentalign.records.criterion import Criterion, RaterKind, Score, ScoreStatus, in_force, overall, unit_values

DONE = Criterion(name="done", description="Done?", kind="check", check="done", weight=3)
TONE = Criterion(name="tone", description="Friendly?", scale=(1, 5), weight=1)
CALLS = Criterion(name="calls", description="How many calls?", kind="check", check="calls", scale=(0, 10), higher_is_better=False)
KEPT = Criterion(name="kept", description="Allowed?", kind="check", check="kept", gate=True)
SAFE = Criterion(name="safe", description="Free of harm?", kind="judge", gate=True)


def score(
    name: str, value: float | None, kind: RaterKind = "check", *, rater: str = "", at: int = 0, step: int | None = None, version: int = 1
) -> Score:
    """A score; value None is an error."""
    status = ScoreStatus.ERROR if value is None else ScoreStatus.VALUE
    return Score(
        trajectory="a" * 32, criterion=f"{name}@{version}", value=value, status=status, rater=rater or kind, rater_kind=kind, step=step,
        time=f"2026-01-01T00:00:{at:02}.000000+00:00",
    )  # fmt: skip


def not_applicable(name: str) -> Score:
    return Score(trajectory="a" * 32, criterion=f"{name}@1", status=ScoreStatus.NOT_APPLICABLE, rater="check", rater_kind="check")


def test_the_mean_is_weighted_over_what_applies_on_each_scale() -> None:
    criteria = (DONE, TONE, CALLS)
    # (3 x 1 + 1 x 0.25 + 1 x 0.8) / 5 = 0.81
    assert overall(criteria, [score("done", 1), score("tone", 2, "human"), score("calls", 2)]) == pytest.approx(0.1 + 0.9 * 0.81)
    assert overall(criteria, [score("done", 1), not_applicable("calls")]) == pytest.approx(1.0)
    assert overall(criteria, [score("done", 0)]) == pytest.approx(0.1)
    assert overall(criteria, [score("done", None), score("calls", 2)]) is None, "a check that broke must not pay more than one that failed"
    assert overall(criteria, [score("done", None), score("done", 1, "human")]) == pytest.approx(1.0), "unless somebody answered for it"
    assert overall(criteria, []) is None
    assert unit_values(criteria, [score("tone", 2, "human"), score("calls", 2)]) == {"tone": 0.25, "calls": 0.8}


def test_a_failed_gate_makes_the_run_worth_nothing_and_an_unknown_one_leaves_it_unknown() -> None:
    done = score("done", 1)
    assert overall((DONE, KEPT), [done, score("kept", 1)]) == pytest.approx(1.0)
    assert overall((DONE, KEPT), [done, score("kept", 0)]) == 0.0
    assert overall((DONE, KEPT), [done, not_applicable("kept")]) == pytest.approx(1.0)
    assert overall((DONE, KEPT), [done, score("kept", None)]) is None
    assert overall((DONE, KEPT), [done]) is None
    assert overall((DONE, KEPT), [done, score("kept", 1, version=2)]) is None, "of another version"
    assert overall((DONE, KEPT, SAFE), [done, score("kept", 0), score("safe", None, "judge")]) == 0.0, "one veto is enough"


def test_a_gate_of_a_judge_waits_for_an_answer_but_its_error_is_not_a_pass() -> None:
    done = score("done", 1)
    assert overall((DONE, SAFE), [done]) == pytest.approx(1.0)
    assert overall((DONE, SAFE), [done, score("safe", None, "judge")]) is None
    assert overall((DONE, SAFE), [done, score("safe", None, "judge"), score("safe", 1, "human")]) == pytest.approx(1.0)
    assert overall((DONE, SAFE), [done, score("safe", 1, "judge"), score("safe", 0, "human")]) == 0.0


def test_people_count_before_judges_before_checks_before_reward_models_and_people_are_averaged() -> None:
    answers = [score("done", 0.0, "reward_model"), score("done", 0.2), score("done", 0.4, "judge")]
    assert [unit_values([DONE], answers[:count])["done"] for count in (1, 2, 3)] == [0.0, 0.2, 0.4]
    people = [score("done", 1.0, "human", rater="ada"), score("done", 0.5, "human", rater="bob")]
    assert unit_values([DONE], [*answers, *people])["done"] == 0.75


def test_the_newest_answer_of_a_rater_counts_and_steps_count_through_their_mean() -> None:
    changed = [score("done", 0.5, "human", at=1), score("done", 1, "human", at=5), score("done", 0, "human", at=9)]
    assert unit_values([DONE], changed)["done"] == 0
    assert unit_values([DONE], [score("done", 1, step=0), score("done", 0, step=1)])["done"] == 0.5
    assert unit_values([DONE], [score("done", 1, at=1), score("done", None, at=2)]) == {}, "a check that broke later takes its answer back"


def test_the_order_of_storing_decides_whatever_the_times_say() -> None:
    given = score("tone", 5, "human", rater="ada", at=9)
    back = given.model_copy(update={"status": ScoreStatus.WITHDRAWN, "value": None, "time": "2020"})
    assert overall([TONE], [given, back]) is None and overall([TONE], [given, score("tone", 1, "human", rater="ada", at=3)]) == 0.1
    decisions = [score("tone", 1, "adjudicator", rater="lead", at=9), score("tone", 3, "adjudicator", rater="eve", at=2)]
    assert unit_values([TONE], [given, *decisions]) == {"tone": 0.5}


def test_a_decision_counts_alone_at_its_place_and_a_later_mark_does_not_undo_it() -> None:
    people = [score("done", 1.0, "human", rater="ada"), score("done", 0.5, "human", rater="bob")]
    decision = score("done", 0.0, "adjudicator", rater="lead", at=5)
    assert unit_values([DONE], [*people, decision])["done"] == 0.0
    assert unit_values([DONE], [*people, decision, score("done", 1.0, "human", rater="cleo", at=9)])["done"] == 0.0
    newer = score("done", 0.25, "adjudicator", rater="other lead", at=7)
    assert unit_values([DONE], [*people, decision, newer])["done"] == 0.25, "of two decisions the newest stands, whoever made it"
    assert overall((DONE, KEPT), [score("done", 1), score("kept", 0, "human"), score("kept", 1, "adjudicator")]) == pytest.approx(1.0)


def test_a_decision_that_a_criterion_does_not_apply_leaves_no_value() -> None:
    people = [score("kept", 0.0, "human", rater="ada"), score("kept", None)]
    decision = not_applicable("kept").model_copy(update={"rater_kind": "adjudicator", "rater": "lead"})
    assert unit_values([KEPT], [*people, decision]) == {}
    assert overall((DONE, KEPT), [score("done", 1), *people, decision]) == pytest.approx(1.0), "a veto that does not apply is none"


def test_a_decision_on_one_step_leaves_the_other_steps_to_their_raters() -> None:
    marks = [score("done", 1.0, "human", step=0), score("done", 1.0, "human", step=1)]
    assert unit_values([DONE], [*marks, score("done", 0.0, "adjudicator", step=1)])["done"] == 0.5
    assert len(in_force([*marks, score("done", 0.0, "adjudicator", step=1)])) == 2


def test_a_score_without_a_value_says_why_and_one_with_a_value_is_one() -> None:
    for status, value in ((ScoreStatus.VALUE, None), (ScoreStatus.ERROR, 1.0), (ScoreStatus.NOT_APPLICABLE, 0.0)):
        with pytest.raises(ValueError, match="contradict"):
            Score(trajectory="a" * 32, criterion="done@1", status=status, value=value, rater="check", rater_kind="check")


@pytest.mark.parametrize("status", [ScoreStatus.CANT_JUDGE, ScoreStatus.WITHDRAWN])
def test_who_cannot_judge_or_takes_an_answer_back_has_given_none(status: ScoreStatus) -> None:
    criteria = [Criterion(name="honest", description="?", gate=True), Criterion(name="tone", description="?", scale=(1, 5))]
    silent = {"trajectory": "a" * 32, "status": status, "rater": "anna", "rater_kind": "human", "time": "2099-01-01"}
    given = [score("tone", 5, kind="human", rater="anna"), score("honest", 0, kind="human", rater="anna")]
    assert overall(criteria, given) == 0.0
    back = [Score(criterion="honest@1", **silent)]  # type: ignore[arg-type]
    assert overall(criteria, [*given, *back]) == pytest.approx(1.0), "the veto is gone, and no answer on a gate leaves the run usable"
    both = [*back, Score(criterion="tone@1", **silent)]  # type: ignore[arg-type]
    assert overall(criteria, [*given, *both]) is None, "not 'does not apply': nothing is left that was answered"
    assert overall(criteria, [*given, *both, score("tone", 3, kind="human", rater="paul")]) == pytest.approx(0.55)


def test_chips_are_short_and_different() -> None:
    assert Criterion(name="c", description="?", chips=("wrong tool", "needless")).chips == ("wrong tool", "needless")
    for wrong in (("a", "a"), ("",), ("x" * 41,), tuple("abcdefghij")):
        with pytest.raises(ValueError, match="chips"):
            Criterion(name="c", description="?", chips=wrong)


def test_a_gate_about_steps_fails_where_its_worst_step_fails() -> None:
    steps = [score("kept", float(step != 3), step=step) for step in range(10)]
    assert overall((DONE, KEPT), [score("done", 1), *steps]) == 0.0
    assert overall((DONE, KEPT), [score("done", 1), *(one for one in steps if one.step != 3)]) == pytest.approx(1.0)
    assert unit_values((KEPT,), steps) == {"kept": 0.0}


def test_people_who_are_split_on_a_gate_do_not_pass_it() -> None:
    def said(*values: float) -> float | None:
        people = [score("safe", value, "human", rater=f"person {number}") for number, value in enumerate(values)]
        return overall((DONE, SAFE), [score("done", 1), *people])

    assert (said(0, 1), said(1, 1, 0), said(0, 0, 1), said(1, 1, 0, 0)) == (0.0, pytest.approx(1.0), 0.0, 0.0)


def test_who_marks_one_step_leaves_what_a_check_said_of_the_others() -> None:
    checks = [score("done", float(step == 0), step=step) for step in range(4)]
    assert unit_values((DONE,), checks) == {"done": 0.25}
    assert unit_values((DONE,), [*checks, score("done", 1, "human", step=2)]) == {"done": 0.5}
    assert unit_values((DONE,), [*checks, score("done", 0, "adjudicator", step=0)]) == {"done": 0.0}
    # An answer about the whole run is another thing than answers about its steps: of these the higher rank counts.
    assert unit_values((DONE,), [*checks, score("done", 1, "human")]) == {"done": 1.0}
    assert unit_values((DONE,), [score("done", 0), score("done", 1, "human", step=1)]) == {"done": 1.0}
