"""An evaluation says what happened per task, family and criterion, and two of them can be paired."""

import pytest

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.evaluation.compare import Comparison, compare, compare_seeds
from agentalign.evaluation.evaluate import Evaluation, summarise
from agentalign.evaluation.tables import comparison_table
from agentalign.records.criterion import Criterion, Score, ScoreStatus
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory

CRITERIA = (
    Criterion(name="task_success", description="Done?", kind="check", check="done", weight=2),
    Criterion(name="policy_kept", description="Allowed?", kind="check", check="kept", gate=True),
    Criterion(name="tone", description="Friendly?", scale=(1, 5)),
)
TASKS = {
    task.id: task
    for task in (
        Task(id="cancel-1", split="test", family="cancel", data='{"branch": "shipped"}'),
        Task(id="cancel-2", split="test", family="cancel", data='{"branch": "open"}'),
        Task(id="count-1", split="test", family="count"),
        Task(id="gift-1", split="test", family="gift", unseen=True),
    )
}


def run(task, sample=0, calls=1, seconds=2.0, stop=StopReason.ANSWERED):
    made = tuple(ToolCall(id=f"c{i}", name="get_order") for i in range(calls))
    messages = (Message(role="user", content=task), Message(role="assistant", tool_calls=made), Message(role="assistant", content="Done."))
    return Trajectory(
        taskset="desk",
        messages=messages,
        origin=Origin(kind="rollout", reference="desk@1", task=task, sample=sample),
        task_id=task,
        family=TASKS[task].family if task in TASKS else "",
        split="test",
        stop_reason=stop,
        seconds=seconds,
    )


def check(trajectory, name, value):
    status = ScoreStatus.ERROR if value is None else ScoreStatus.VALUE
    return Score(trajectory=trajectory.id, criterion=f"{name}@1", value=value, status=status, rater="check", rater_kind="check")


def scored(outcomes, sample=0):
    """{task: (success, policy kept)} to runs and scores."""
    runs = [run(task, sample) for task in outcomes]
    scores = [
        check(one, name, value) for one in runs for name, value in zip(("task_success", "policy_kept"), outcomes[one.task_id], strict=True)
    ]
    return runs, scores


def evaluation(outcomes, adapter="desk@1"):
    runs, scores = scored(outcomes)
    return summarise(adapter, "test", CRITERIA, runs, scores, TASKS)


OUTCOMES = {"cancel-1": (1, 1), "cancel-2": (0, 1), "count-1": (1, 0), "gift-1": (0, 1)}


def test_headline_figures_are_over_seen_families_and_unseen_ones_stand_apart():
    got = evaluation(OUTCOMES)
    assert (got.headline.n, got.headline.success.mean) == (3, pytest.approx(2 / 3))
    assert got.unseen is not None
    assert (got.unseen.n, got.unseen.success.mean) == (1, 0.0)
    assert got.everything.n == 4
    assert got.headline.gate_failed is not None
    assert got.headline.gate_failed.mean == pytest.approx(1 / 3)
    assert got.headline.criteria["policy_kept"].mean == pytest.approx(2 / 3)
    assert got.headline.overall is not None
    assert got.headline.overall.mean == pytest.approx((1.0 + 0.1 + 0.0) / 3), "a failed gate makes the run worth 0"
    assert got.success_means.startswith("criterion task_success@1")
    assert got.pass_k == {}


def test_families_and_branches_have_their_own_figures():
    got = evaluation(OUTCOMES)
    assert {group.name: group.success.mean for group in got.families} == {"cancel": 0.5, "count": 1.0, "gift": 0.0}
    assert {group.name: group.success.mean for group in got.branches} == {"cancel/open": 0.0, "cancel/shipped": 1.0}


def test_a_wide_scale_is_mapped_to_one_and_counts_where_it_was_rated():
    runs, scores = scored(OUTCOMES)
    scores.append(Score(trajectory=runs[0].id, criterion="tone@1", value=4, rater="anna", rater_kind="human"))
    got = summarise("desk@1", "test", CRITERIA, runs, scores, TASKS)
    assert (got.headline.criteria["tone"].mean, got.headline.criteria["tone"].n) == (0.75, 1)


def test_without_a_success_criterion_overall_of_a_half_is_success():
    runs, scores = scored(OUTCOMES)
    plain = (Criterion(name="policy_kept", description="Allowed?", kind="check", check="kept"),)
    got = summarise("desk@1", "test", plain, runs, scores, TASKS)
    assert "overall value of at least 0.5" in got.success_means
    assert got.headline.success.mean == pytest.approx(2 / 3)


def test_runs_that_broke_and_checks_that_broke_are_told_with_the_first_reason():
    runs = [
        run("cancel-1"),
        run("cancel-2"),
        run("count-1", stop=StopReason.ERROR).model_copy(update={"error": "Traceback\nOSError: gone"}),
    ]
    scores = [check(runs[0], "task_success", 1), check(runs[2], "task_success", 0)]
    scores.append(check(runs[1], "task_success", None).model_copy(update={"note": "Traceback\nKeyError: 'room'\n"}))
    got = summarise("desk@1", "test", CRITERIA, runs, scores, TASKS)
    assert got.trouble[0].startswith("1 of 3 runs broke; the first")
    assert got.trouble[0].endswith("OSError: gone.")
    assert "1 of 3 runs could not be known" in got.trouble[1]
    assert got.trouble[1].endswith("KeyError: 'room'.")
    assert got.unusable == pytest.approx(2 / 3)
    scores[1] = check(runs[2], "task_success", None)
    both = summarise("desk@1", "test", CRITERIA, runs, scores, TASKS)
    assert both.unusable == pytest.approx(2 / 3), "a run that broke and has no score counts once"
    assert (evaluation(OUTCOMES).trouble, evaluation(OUTCOMES).unusable) == ((), 0)
    with pytest.raises(DataError, match=r"None of the 1 runs .*KeyError: 'room'"):
        summarise("desk@1", "test", CRITERIA, runs[1:2], scores, TASKS)


def test_a_veto_whose_check_broke_leaves_runs_unusable_though_they_succeeded():
    runs, scores = scored(OUTCOMES)
    torn = [check(one, "policy_kept", None).model_copy(update={"note": "KeyError: 'room'"}) for one in runs]
    got = summarise("desk@1", "test", CRITERIA, runs, [*(one for one in scores if one.criterion == "task_success@1"), *torn], TASKS)
    assert (got.unscored, got.unusable) == (0, 1.0)
    assert got.trouble == (f"{len(runs)} checks broke; the first, policy_kept@1: KeyError: 'room'.",)
    one_lost = summarise("desk@1", "test", CRITERIA, runs, [*scores[:-2], check(runs[-1], "task_success", None), *torn], TASKS)
    assert "1 of 4 runs could not be known" in one_lost.trouble[0]
    assert one_lost.trouble[1].startswith("3 checks broke in runs whose success is known; the first, policy_kept@1")


def test_a_run_whose_check_broke_is_unscored_and_no_failure():
    got = evaluation({**OUTCOMES, "cancel-2": (None, 1)})
    assert (got.unscored, got.headline.n, got.headline.success.mean) == (1, 2, 1.0)
    assert got.stop_reasons == {"answered": 4}


def test_several_samples_are_averaged_per_task_and_give_pass_k():
    first, second = scored(OUTCOMES), scored({**OUTCOMES, "cancel-1": (0, 1)}, sample=1)
    got = summarise("desk@1", "test", CRITERIA, first[0] + second[0], first[1] + second[1], TASKS)
    assert (got.headline.n, got.headline.success.mean) == (3, pytest.approx(0.5))
    assert got.pass_k == {1: pytest.approx(1.5 / 4), 2: pytest.approx(1 / 4)}


def test_costs_are_means_per_run():
    runs = [run("cancel-1", calls=1, seconds=1.0), run("cancel-2", calls=3, seconds=3.0, stop=StopReason.MAX_TURNS)]
    scores = [check(one, "task_success", 1.0) for one in runs]
    got = summarise("desk@1", "test", CRITERIA, runs, scores, TASKS, sampled_tokens={runs[0].id: 10, runs[1].id: 30})
    assert (got.cost.turns, got.cost.calls, got.cost.seconds, got.cost.sampled_tokens) == (2.0, 2.0, 2.0, 20.0)
    assert got.stop_reasons == {"answered": 1, "max_turns": 1}


def test_nothing_to_evaluate_is_said_in_a_sentence():
    with pytest.raises(DataError, match="no runs of desk@1 on split 'test'"):
        summarise("desk@1", "test", CRITERIA, [], [], TASKS)
    with pytest.raises(DataError, match="None of the 1 runs"):
        summarise("desk@1", "test", CRITERIA, [run("cancel-1")], [], TASKS)


def test_records_survive_json():
    got = evaluation(OUTCOMES)
    assert Evaluation.model_validate_json(got.model_dump_json()) == got
    difference = compare(got, evaluation({**OUTCOMES, "cancel-2": (1, 1)}, "desk@2"))
    assert Comparison.model_validate_json(difference.model_dump_json()) == difference


def test_a_comparison_is_paired_by_task():
    before = evaluation(OUTCOMES)
    after = evaluation({"cancel-1": (1, 1), "cancel-2": (1, 1), "count-1": (0, 1), "gift-1": (1, 1)}, "desk@2")
    got = compare(before, after)
    assert (got.before, got.after, got.unpaired) == ("desk@1", "desk@2", 0)
    assert (got.headline.won, got.headline.lost, got.headline.p) == (1, 1, 1.0)
    assert got.headline.success.delta == pytest.approx(0.0)
    assert {family.name: family.success.delta for family in got.families} == {"cancel": 0.5, "count": -1.0, "gift": 1.0}
    assert got.unseen is not None
    assert got.unseen.success.delta == 1.0
    assert got.criteria["policy_kept"].delta == pytest.approx(1 / 3)
    assert "tone" not in got.criteria


def test_tasks_that_only_one_side_has_are_left_out_and_counted():
    fewer = {task: values for task, values in OUTCOMES.items() if task != "count-1"}
    got = compare(evaluation(OUTCOMES), evaluation(fewer))
    assert (got.headline.success.n, got.unpaired) == (2, 1)


def test_seeds_are_paired_in_order():
    before = [evaluation(OUTCOMES, f"desk@{i}") for i in (1, 2)]
    after = [evaluation({**OUTCOMES, "cancel-2": (1, 1)}, f"desk@{i}") for i in (3, 4)]
    got = compare_seeds(before, after)
    assert (got.before, got.after, got.headline.success.seeds) == ("desk@1, desk@2", "desk@3, desk@4", 2)
    assert got.headline.success.delta == pytest.approx(1 / 3)


def test_sides_that_were_computed_on_other_processors_are_said():
    before, after = evaluation(OUTCOMES), evaluation(OUTCOMES, "desk@2")
    assert compare(before, after).notes == ()
    on_cpu, on_gpu = (one.model_copy(update={"computed_on": on}) for one, on in ((before, "cpu in float32"), (after, "cuda in bfloat16")))
    assert compare(before, on_gpu).notes == compare(on_cpu, on_cpu).notes == (), "of the one nothing is known; the same"
    (said,) = compare_seeds([on_cpu, on_cpu], [on_cpu, on_gpu]).notes
    assert "before were computed on cpu in float32 and those after on cpu in float32 and cuda in bfloat16" in said
    assert "on cuda in bfloat16" in comparison_table([("one to two", compare(on_cpu, on_gpu))]).caption


def test_what_cannot_be_compared_is_refused():
    base = evaluation(OUTCOMES)
    with pytest.raises(DataError, match="same split"):
        compare(base, base.model_copy(update={"split": "dev"}))
    with pytest.raises(DataError, match="meant different things"):
        compare(base, base.model_copy(update={"success_means": "something else"}))
    with pytest.raises(DataError, match="share no task"):
        compare(evaluation({"cancel-1": (1, 1)}), evaluation({"count-1": (1, 1)}))
