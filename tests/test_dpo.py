"""What a pair compares: the cheaper form has the same margin and the same gradient as both whole runs."""

import math

import pytest
import torch

from agentalign.config.dpo import DPOConfig
from agentalign.errors import DataError
from agentalign.recipes.compared import sides_of
from agentalign.recipes.data import Part, RunData, Turn, whole
from agentalign.recipes.dpo import Pair, make_pairs, pair_batches, pair_loss, with_reference
from agentalign.recipes.preferences import settled
from agentalign.recipes.reward import rank
from agentalign.records.preference import Item, Preference
from agentalign.training.render import Rendered, RenderedTurn
from agentalign.training.tree import build_tree
from tests.test_attention import CONFIGS, ids, make_model
from tests.test_pairs import run


def rendered(name, *turns):
    return Rendered(name, tuple(RenderedTurn(i, context, completion) for i, (context, completion) in enumerate(turns)))


def two_runs():
    """Equal first turns, second turns that begin alike, and a third turn of the better one."""
    draw = torch.Generator().manual_seed(3)
    prompt, first, result, start = ids(draw, 30), ids(draw, 6), ids(draw, 4), ids(draw, 3)
    later = (*prompt, *first, *result)
    better, worse = (*start, 7, *ids(draw, 2)), (*start, 8, *ids(draw, 4))
    last = (*later, *better, *ids(draw, 3))
    return (
        rendered("better", (prompt, first), (later, better), (last, ids(draw, 5))),
        rendered("worse", (prompt, first), (later, worse)),
    )


def test_a_pair_whose_reference_is_no_number_is_not_taken_for_noise(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    config = DPOConfig(taskset="toy_desk", min_reference_prob=0.05)
    pair = Pair(*(Part((Turn((5, 6, 7), (word,)),)) for word in (8, 9)), strength=1.0, trajectories=("a", "b"), anchor=None, source="test")
    with pytest.raises(DataError, match=r"less than 0\.05"):  # a drawn model writes no word of 300 so often
        with_reference(model, [pair], config, tmp_path / "cache")
    with torch.no_grad():
        model.parameters_of("policy")[1].fill_(float("nan"))
    (kept,) = with_reference(model, [pair], config, tmp_path / "cache")
    assert not any(map(math.isfinite, kept.reference)), "the first step sees it, and says whose it is"


def margin(model, chosen, rejected):
    tree = build_tree([chosen, rejected])
    with model.using("policy"):
        sums = tree.sum_by_run(model.token_logprobs(tree))
        found = sums[0] - sums[1]
        found.backward()
    gradients = [p.grad.clone() for p in model.parameters_of("policy")]
    for parameter in model.parameters_of("policy"):
        parameter.grad = None
    return found.detach(), gradients, len(tree.labels)


def test_tokens_that_both_sides_wrote_are_context_and_the_margin_and_its_gradient_stay(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    better, worse = two_runs()
    sides = sides_of(better, worse, 1, "run")
    assert [len(turn.completion) for side in sides for turn in side.turns] == [3, 5, 5]
    wide, wide_gradients, many = margin(model, whole(better), whole(worse))
    slim, slim_gradients, few = margin(model, *sides)
    torch.testing.assert_close(slim, wide, atol=0, rtol=1e-5)
    for a, b in zip(slim_gradients, wide_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    # Six tokens of the first turn and three of the second.
    assert many - few == 9


def test_ipo_compares_tokens_and_not_lengths(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    better, worse = two_runs()
    chosen, rejected = sides_of(better, worse, 1, "run")
    pair = Pair(chosen, rejected, 1.0, ("better", "worse"), None, "test", reference=(-40.0, -70.0))
    config = DPOConfig(taskset="toy", loss_type="ipo", beta=0.25, nll_coefficient=0.0)
    (micro,) = pair_batches([pair], [], {}, 4096)
    with model.using("policy"), torch.no_grad():
        sums = micro.tree.sum_by_run(model.token_logprobs(micro.tree))
        found = pair_loss(model, micro, config).terms["dpo"].values
    # Eight tokens of the better side, in two turns, and five of the worse.
    margin = (sums[0] + 40.0) / 8 - (sums[1] + 70.0) / 5
    torch.testing.assert_close(found, ((margin - 2.0) ** 2)[None])


@pytest.mark.parametrize(("credit", "completions"), [("turn", [3, 5]), ("token", [1, 1])])
def test_a_turn_is_compared_from_its_first_difference_on(credit, completions):
    sides = sides_of(*two_runs(), 1, credit)
    assert [len(turn.completion) for side in sides for turn in side.turns] == completions
    assert sides[0].turns[0].completion[0] == 7
    assert sides[1].turns[0].completion[0] == 8
    assert sides[0].turns[0].context == sides[1].turns[0].context


def test_equal_sides_are_no_pair_and_a_run_that_goes_on_keeps_a_token_on_both():
    better, worse = two_runs()
    assert sides_of(better, better, None, "run") is None
    shorter = rendered("shorter", *((turn.context, turn.completion) for turn in better.turns[:2]))
    second, third = whole(better).turns[1:]
    end = Turn((*second.context, *second.completion[:-1]), second.completion[-1:])
    assert sides_of(better, shorter, 2, "run") == (Part((end, third)), Part((end,)))
    assert sides_of(better, worse, None, "turn") is None


def answers(*completions):
    """Runs of one task that answer at once, by their completion, and what was rendered of them; equal completions are equal tokens."""
    runs = [run(f"answer {number}", sample=number) for number in range(len(completions))]
    return runs, RunData({one.id: rendered(one.id, ((1, 2, 3), tokens)) for one, tokens in zip(runs, completions, strict=True)}, [])


def prefer(better, worse, source, *, step=None, strength=1.0, rater="me"):
    items = (Item(better.id, step), Item(worse.id, step))
    return Preference(taskset="desk", items=items, source=source, rater=rater, strength=strength)


def test_words_that_narrow_down_to_one_token_and_contradict_each_other_are_one_pair_of_who_counts_more(caplog):
    (act, ask), data = answers((7, 9), (8, 9))
    words = [prefer(act, ask, "scores", step=0, rater="overall"), prefer(ask, act, "human", strength=2.0)]
    with caplog.at_level("INFO"):
        (pair,) = make_pairs(words, {one.id: one for one in (act, ask)}, data, DPOConfig(taskset="desk"), set())
    assert (pair.trajectories, pair.strength, pair.source) == ((ask.id, act.id), 2.0, "human")
    assert "2 preferences make 1 pairs; 1 left out: who counts more spoke of the same two runs" in caplog.text


@pytest.mark.parametrize("credit", ["token", "turn", "run"])
def test_a_tie_about_two_runs_silences_what_scores_say_of_their_steps(credit, caplog):
    (act, ask, other), data = answers((7, 9), (8, 9), (6, 9))
    known = {one.id: one for one in (act, ask, other)}
    tie = prefer(act, ask, "human").model_copy(update={"tie": True})
    words = settled([prefer(act, ask, "scores", step=0), tie, prefer(act, other, "scores", step=0)], known)
    with caplog.at_level("INFO"):
        (pair,) = make_pairs(words, known, data, DPOConfig(taskset="desk", credit=credit), set())
    assert pair.trajectories == (act.id, other.id)
    assert "1 left out: who counts more spoke of the same two runs" in caplog.text
    against = [prefer(act, ask, "scores", step=0), prefer(ask, act, "human")]
    (pair,) = make_pairs(against, known, data, DPOConfig(taskset="desk", credit=credit), set())
    assert pair.trajectories == (ask.id, act.id)


def test_of_equal_comparisons_the_majority_is_learned_and_an_even_split_is_not(caplog):
    runs, data = answers((7, 9), (8, 9), (7, 4), (8, 4))
    act, ask, act_too, ask_too = runs
    known = {one.id: one for one in runs}
    config = DPOConfig(taskset="desk")
    two_to_one = [prefer(act, ask, "scores"), prefer(act_too, ask_too, "scores"), prefer(ask, act_too, "scores")]
    (pair,) = make_pairs(two_to_one, known, data, config, set())
    assert pair.trajectories == (act.id, ask.id)
    assert pair.strength == pytest.approx(1 / 3)
    one_person = [*two_to_one, prefer(ask_too, act_too, "human")]
    (pair,) = make_pairs(one_person, known, data, config, set())
    assert (pair.trajectories, pair.source) == ((ask_too.id, act_too.id), "human")
    tied = [*two_to_one, prefer(ask_too, act_too, "human").model_copy(update={"tie": True})]
    with pytest.raises(DataError, match="are ties"):
        make_pairs(tied, known, data, config, set())
    with caplog.at_level("INFO"), pytest.raises(DataError, match=r"none of the 2 preferences .* contradict each other evenly"):
        make_pairs(two_to_one[1:], known, data, config, set())
    assert "2 left out: a tie, or as many say the opposite" in caplog.text


def test_a_reward_model_learns_equal_runs_in_one_order():
    runs, data = answers((7, 9), (8, 9), (7, 9))
    act, ask, same = runs
    known = {one.id: one for one in runs}
    words = [prefer(act, ask, "scores"), prefer(ask, same, "human", strength=3.0)]
    (ranked,) = rank(words, known, data, {act.id: 0.9, ask.id: 0.2, same.id: 0.4})
    assert (ranked.trajectories, ranked.strength, ranked.source) == ((ask.id, same.id), 3.0, "human")
    assert rank([words[0], prefer(ask, same, "scores")], known, data, {}) == [], "even"
    judges = [prefer(act, ask, "judge", strength=2.0), prefer(ask, same, "judge")]
    (ranked,) = rank(judges, known, data, {act.id: 0.9, ask.id: 0.2, same.id: 0.4})
    assert (ranked.trajectories, ranked.targets, ranked.strength) == ((act.id, ask.id), (0.9, 0.2), 0.5)
