"""Pairs come from runs of one task, or from one state; equal things never face each other."""

import random
from collections import Counter
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory
from agentalign.scoring import pairs as making
from agentalign.scoring.pairs import balance, describe, parting_step, runs_by_task
from agentalign.scoring.worth import Worth

SYSTEM = Message(role="system", content="You are a support agent.")
USER = Message(role="user", content="Cancel order W1.")
LOOK = ("get_order", '{"id": "W1"}', "status: shipped")
CANCEL = ("cancel_order", '{"id": "W1"}', "error: shipped")


def run(
    *acts, task="t1", sample=0, ids="call", user=USER, stop=StopReason.ANSWERED, kind="rollout", reference="base", family="", tools="[]"
):
    """A run: each act is (tool, arguments, result) or the text of an answer."""
    messages = [SYSTEM, user]
    for number, act in enumerate(acts):
        if isinstance(act, str):
            messages.append(Message(role="assistant", content=act))
            continue
        name, arguments, result = act
        call = ToolCall(id=f"{ids}_{number}", name=name, arguments=arguments)
        messages.append(Message(role="assistant", tool_calls=(call,)))
        messages.append(Message(role="tool", content=result, tool_call_id=call.id, name=name))
    origin = Origin(kind=kind, reference=reference, task=task or "", sample=sample)
    return Trajectory(taskset="desk", messages=tuple(messages), origin=origin, task_id=task, family=family, stop_reason=stop, tools=tools)


def judged_alike(runs):
    """Runs with their overall values, all by the same criteria."""
    return [(one, None if value is None else Worth(frozenset(), partial(lambda known, _: known, value))) for one, value in runs]


def task_pairs(runs, **options):
    return making.task_pairs(judged_alike(runs), **options)


def step_pairs(runs, **options):
    return making.step_pairs(judged_alike(runs), **options)


def corrections(experts, runs, **options):
    return making.corrections(judged_alike(experts), judged_alike(runs), **options)


def by_order(preferences):
    return sorted(preferences, key=lambda p: p.id)


def test_the_better_run_of_a_task_is_preferred():
    good, bad = run(LOOK, "It has shipped."), run(CANCEL, "Cancelled.")
    (pair,) = task_pairs([(bad, 0.1), (good, 0.9)], margin=0.3, per_task=4, seed=0)
    assert pair.items == (Item(good.id), Item(bad.id))
    assert (pair.source, pair.criterion, pair.decided, pair.taskset) == ("scores", "overall", True, "desk")


def test_runs_of_different_tasks_make_no_pair():
    runs = [(run(LOOK, task="t1"), 0.9), (run(CANCEL, task="t2"), 0.0)]
    assert task_pairs(runs, margin=0.1, per_task=4, seed=0) == []
    assert step_pairs(runs, margin=0.1, per_task=4, seed=0) == []


def test_imported_runs_without_a_task_pair_by_what_came_before_the_first_act():
    good, bad = run("Hello, how can I help?", task=None), run("What?", task=None, sample=1)
    other = run("What?", task=None, user=Message(role="user", content="Where is my parcel?"))
    assert {len(group) for group in runs_by_task([good, bad, other]).values()} == {1, 2}
    (pair,) = task_pairs([(good, 1.0), (bad, 0.2), (other, 0.0)], margin=0.5, per_task=4, seed=0)
    assert pair.items == (Item(good.id), Item(bad.id))


def test_a_gap_below_the_margin_a_tie_and_a_missing_value_make_no_pair():
    one, two = run(LOOK, "Shipped."), run(CANCEL, "Done.")
    for values in ((0.5, 0.4), (0.5, 0.5), (0.9, None), (None, None)):
        runs = list(zip((one, two), values, strict=True))
        assert task_pairs(runs, margin=0.2, per_task=4, seed=0) == []
        assert step_pairs(runs, margin=0.2, per_task=4, seed=0) == []
    assert task_pairs([(one, 0.5), (two, 0.5)], margin=0.0, per_task=4, seed=0) == []
    assert len(task_pairs([(one, 0.5), (two, 0.3)], margin=0.2, per_task=4, seed=0)) == 1


def judged(answers):
    """What a run is worth whose criteria have these values: their mean."""
    return Worth(frozenset(answers), lambda some: sum(answers[name] for name in some) / len(some) if some else None)


def test_runs_are_compared_by_the_criteria_that_both_have_answers_to():
    rated, unseen, other = (run(LOOK, f"{word}.") for word in ("Shipped", "Sent", "Lost"))
    for make in (making.task_pairs, making.step_pairs):
        scored = [(rated, judged({"check": 1.0, "tone": 0.0})), (unseen, judged({"check": 1.0}))]
        assert make(scored, margin=0.2, per_task=9, seed=0) == []
        scored = [*scored, (other, judged({"check": 0.9, "tone": 1.0}))]
        (pair,) = make(scored, margin=0.2, per_task=9, seed=0)
        assert [item.trajectory for item in pair.items] == [other.id, rated.id]
    assert making.task_pairs([(rated, judged({"tone": 1.0})), (unseen, judged({"check": 0.0}))], margin=0.0, per_task=9, seed=0) == []


def test_of_two_contents_what_more_criteria_say_stands():
    good, fine = (run(LOOK, word, sample=n) for n, word in enumerate(("Shipped.", "Sent.")))
    kind, cold = run(LOOK, "Sent.", sample=3), run(LOOK, "Shipped.", sample=4)
    scored = [(good, judged({"check": 1.0})), (fine, judged({"check": 0.6}))]
    scored += [(cold, judged({"check": 1.0, "tone": 0.0})), (kind, judged({"check": 0.6, "tone": 1.0}))]
    for make, items in ((making.task_pairs, (Item(kind.id), Item(cold.id))), (making.step_pairs, (Item(kind.id, 1), Item(cold.id, 1)))):
        (pair,) = make(scored, margin=0.25, per_task=9, seed=0)
        assert pair.items == items


def test_of_two_contents_opposite_words_of_as_many_criteria_say_nothing():
    texts = ("Shipped.", 0), ("Sent.", 0), ("Shipped.", 1), ("Sent.", 1)
    runs = [run(LOOK, word, sample=sample) for word, sample in texts]
    answers = {"tone": 1.0}, {"tone": 0.0}, {"brief": 0.1}, {"brief": 1.0}
    scored = [(one, judged(said)) for one, said in zip(runs, answers, strict=True)]
    for make in (making.task_pairs, making.step_pairs):
        assert make(scored, margin=0.25, per_task=9, seed=0) == []
        assert len(make(scored[:2], margin=0.25, per_task=9, seed=0)) == 1


def test_who_said_the_same_as_a_vetoed_run_is_no_better_for_not_having_been_asked():
    unasked, vetoed, wrong = run(LOOK, "Shipped."), run(LOOK, "Shipped.", sample=1), run(LOOK, "Lost.")
    scored = [(unasked, judged({"check": 1.0})), (wrong, judged({"check": 0.0}))]
    assert len(making.task_pairs(scored, margin=0.25, per_task=9, seed=0)) == 1
    bad = Worth(frozenset({"check", "polite"}), lambda _: 0.0, vetoed=True)
    assert making.task_pairs([*scored, (vetoed, bad)], margin=0.25, per_task=9, seed=0) == []


def test_an_expert_nobody_rated_corrects_by_what_the_checks_say():
    expert = run(LOOK, "It has shipped.", kind="expert", reference="expert")
    wrong, kind = run(CANCEL, "Cancelled."), run(LOOK, "It has been sent.")
    runs = [(wrong, judged({"check": 0.0, "tone": 1.0})), (kind, judged({"check": 1.0, "tone": 0.0}))]
    (pair,) = making.corrections([(expert, judged({"check": 1.0}))], runs, margin=0.6, per_task=4, seed=0)
    assert pair.items[1].trajectory == wrong.id
    assert pair.note == "overall 1.000 over 0.000, without tone"


def test_exact_duplicates_make_no_pair_even_with_other_call_ids_and_values():
    one, again = run(LOOK, "Shipped.", sample=0), run(LOOK, "Shipped.", sample=1, ids="chatcmpl-7f")
    assert one.content_digest != again.content_digest
    for values in ((0.9, 0.1), (0.1, 0.9)):
        runs = list(zip((one, again), values, strict=True))
        assert task_pairs(runs, margin=0.1, per_task=4, seed=0) == []
        assert step_pairs(runs, margin=0.1, per_task=4, seed=0) == []


def test_repeated_content_is_paired_once():
    goods = [run(LOOK, "Shipped.", sample=i) for i in range(4)]
    bads = [run(CANCEL, "Done.", sample=i) for i in range(4)]
    runs = [(t, 0.9) for t in goods] + [(t, 0.0) for t in bads]
    assert len(task_pairs(runs, margin=0.3, per_task=9, seed=0)) == 1
    assert len(step_pairs(runs, margin=0.3, per_task=9, seed=0)) == 1


def test_a_broken_run_is_evidence_of_nothing():
    good, broken = run(LOOK, "Shipped."), run(CANCEL, stop=StopReason.ERROR)
    assert task_pairs([(good, 0.9), (broken, 0.0)], margin=0.1, per_task=4, seed=0) == []


def test_step_pairs_compare_the_first_step_where_runs_part():
    good, bad = run(LOOK, "It has shipped."), run(LOOK, CANCEL, "Cancelled.")
    (pair,) = step_pairs([(good, 0.9), (bad, 0.0)], margin=0.3, per_task=4, seed=0)
    assert pair.items == (Item(good.id, 1), Item(bad.id, 1))
    assert parting_step(good, bad) == 1


def test_steps_are_compared_in_equal_states_only():
    shipped, pending = run(LOOK, "It has shipped."), run((*LOOK[:2], "status: pending"), "I will ask.")
    assert step_pairs([(shipped, 0.9), (pending, 0.0)], margin=0.3, per_task=4, seed=0) == []
    offered = run(LOOK, "It has shipped.", tools='[{"type":"function"}]')
    assert parting_step(offered, run(CANCEL)) is None
    assert parting_step(run(LOOK), run(LOOK, "It has shipped.")) is None, "one run simply ends"


def test_a_step_is_preferred_only_where_runs_that_took_it_did_better_on_average():
    via_look = [(run(LOOK, f"answer {i}", sample=i), value) for i, value in enumerate((1.0, 0.0))]
    via_cancel = [(run(CANCEL, f"answer {i}", sample=i), value) for i, value in enumerate((1.0, 0.0))]
    pairs = step_pairs([*via_look, *via_cancel], margin=0.3, per_task=9, seed=0)
    assert pairs, "the answers inside each side still differ"
    assert all(item.step == 1 for pair in pairs for item in pair.items), "looking first or not made no difference on average"


def test_an_unreadable_call_is_never_the_better_step():
    origin = Origin(kind="rollout", reference="base")
    broken = Message(role="assistant", content="<tool_call>{", malformed="no JSON")
    messy = Trajectory(taskset="desk", messages=(SYSTEM, USER, broken), origin=origin, task_id="t1")
    assert step_pairs([(messy, 0.9), (run(CANCEL), 0.0)], margin=0.3, per_task=4, seed=0) == []
    assert len(step_pairs([(messy, 0.0), (run(LOOK), 0.9)], margin=0.3, per_task=4, seed=0)) == 1


def many(tasks=3, samples=6):
    return [
        (run(f"answer {i % 4}", f"then {i}", task=f"t{t}", sample=i), ((i * 7 + t) % 10) / 10) for t in range(tasks) for i in range(samples)
    ]


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 3), st.integers(1, 4))
def test_pairs_depend_on_the_seed_but_not_on_the_order_of_runs(shuffler: random.Random, seed, per_task):
    runs = many()
    mixed = list(runs)
    shuffler.shuffle(mixed)
    for make in (task_pairs, step_pairs):
        first, second = (make(given_runs, margin=0.2, per_task=per_task, seed=seed) for given_runs in (runs, mixed))
        assert [p.id for p in first] == [p.id for p in second]
        tasks = {t.id: t.task_id for t, _ in runs}
        assert max(Counter(tasks[p.items[0].trajectory] for p in first).values()) <= per_task
        values = {t.id: v for t, v in runs}
        assert all(values[p.items[0].trajectory] >= values[p.items[1].trajectory] + 0.2 - 1e-6 for p in first)


def test_a_few_pairs_of_a_task_use_different_runs_first():
    runs = [(run(f"good {i}", sample=i), 0.9) for i in range(3)] + [(run(f"bad {i}", sample=i), 0.1) for i in range(3)]
    pairs = task_pairs(runs, margin=0.5, per_task=3, seed=1)
    assert len({item.trajectory for pair in pairs for item in pair.items}) == 6


def test_making_pairs_again_gives_the_same_ids():
    first, second = (task_pairs(many(), margin=0.2, per_task=2, seed=0) for _ in range(2))
    assert [p.id for p in first] == [p.id for p in second]
    assert len({p.id for p in first}) == len(first)


def test_very_many_runs_of_one_task_are_thinned_out():
    runs = [(run(f"answer {i}", task=None, sample=i), (i % 2) * 1.0) for i in range(600)]
    assert len(task_pairs(runs, margin=0.5, per_task=5, seed=0)) == 5


def test_a_correction_is_the_experts_step_where_the_run_went_wrong():
    expert = run(LOOK, "It has shipped.", kind="expert", reference="expert")
    wrong = run(LOOK, CANCEL, "Cancelled.")
    (pair,) = corrections([(expert, 1.0)], [(wrong, 0.0)], margin=0.3, per_task=4, seed=0)
    assert pair.items == (Item(expert.id, 1), Item(wrong.id, 1))
    assert (pair.source, pair.rater) == ("correction", "expert")
    assert corrections([(expert, 1.0)], [(run(LOOK, "It has been sent."), 0.9)], margin=0.3, per_task=4, seed=0) == []


def test_of_several_experts_the_one_that_parts_latest_speaks():
    other_way = run(("find_order", "{}", "W1"), "It has shipped.", kind="expert", reference="expert")
    wrong = run(LOOK, CANCEL, "Cancelled.")
    fork = run(LOOK, "Sorry, it has shipped.", kind="correction", reference="anna")
    (pair,) = corrections([(other_way, 1.0), (fork, 1.0)], [(wrong, 0.0)], margin=0.3, per_task=4, seed=0)
    assert pair.items == (Item(fork.id, 1), Item(wrong.id, 1))
    assert pair.rater == "anna"


def test_another_way_that_mostly_works_is_not_corrected():
    expert = run(("find_order", "{}", "W1"), "It has shipped.", kind="expert", reference="expert")
    fine = [(run(LOOK, f"It has shipped. {i}", sample=i), 1.0) for i in range(4)]
    slip = run(LOOK, "It haz shiped.")
    assert corrections([(expert, 1.0)], [*fine, (slip, 0.1)], margin=0.5, per_task=4, seed=0) == []


def preferences(groups):
    made = []
    for (family, branch), count in groups.items():
        for i in range(count):
            good, bad = (run(f"{family} {branch} {i} {word}", sample=i, task=f"{family}-{branch}-{i}", family=family) for word in "ab")
            made += [(p, (family, branch)) for p in task_pairs([(good, 1.0), (bad, 0.0)], margin=0.5, per_task=1, seed=0)]
    return [p for p, _ in made], {p.id: group for p, group in made}


def test_balance_caps_every_branch_and_keeps_both_directions_near():
    made, groups = preferences({("cancel", "shipped"): 20, ("cancel", "open"): 3, ("lookup", ""): 20})
    kept = balance(made, lambda p: groups[p.id], cap=8, name_of=lambda p: p.id, ratio=2.0)
    assert Counter(groups[p.id] for p in kept) == {("cancel", "shipped"): 6, ("cancel", "open"): 3, ("lookup", ""): 8}
    assert kept == [p for p in made if p in kept], "order is kept"
    assert kept == balance(made, lambda p: groups[p.id], cap=8, name_of=lambda p: p.id, ratio=2.0)
    assert kept != balance(made, lambda p: groups[p.id], cap=8, name_of=lambda p: p.id, ratio=2.0, seed=1)


def test_a_judgement_with_pairs_on_one_side_only_keeps_none_and_that_is_said(caplog):
    made, groups = preferences({("unnamed", "one"): 4, ("refund", "open"): 2, ("refund", "closed"): 2, ("lookup", ""): 1})
    sides = [("unnamed", "one"), ("unnamed", "several"), ("refund", "open"), ("refund", "closed")]
    kept = balance(made, lambda p: groups[p.id], cap=8, name_of=lambda p: p.id, branches=sides)
    assert Counter(groups[p.id] for p in kept) == {("refund", "open"): 2, ("refund", "closed"): 2, ("lookup", ""): 1}
    assert "4 pairs of unnamed/one are left out" in caplog.text
    assert "refund" not in caplog.text


def test_describe_counts_what_there_is_to_learn_from():
    made, groups = preferences({("cancel", "shipped"): 2, ("lookup", ""): 1})
    items = (Item("a", 0), Item("b", 0))
    made.append(Preference(taskset="desk", items=items, source="human", rater="anna", tie=True, criterion="tone@1"))
    counts = describe(made, lambda p: groups.get(p.id, ("", "")))
    assert counts["criterion"] == {"overall": 3, "tone@1": 1}
    assert counts["source"] == {"scores": 3, "human": 1}
    assert counts["level"] == {"run": 3, "step": 1}
    assert counts["outcome"] == {"decided": 3, "tie": 1}
    assert counts["branch"] == {"": 1, "cancel/shipped": 2, "lookup": 1}
