"""What a pair compares: the cheaper form has the same margin and the same gradient as both whole runs."""

import pytest
import torch

from agentalign.config.dpo import DPOConfig
from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.recipes.data import Part, Turn, whole
from agentalign.recipes.dpo import Pair, _sides, balanced, pair_batches, pair_loss
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
    sides = _sides(better, worse, 1, "run")
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
    chosen, rejected = _sides(better, worse, 1, "run")
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
    sides = _sides(*two_runs(), 1, credit)
    assert [len(turn.completion) for side in sides for turn in side.turns] == completions
    assert sides[0].turns[0].completion[0] == 7
    assert sides[1].turns[0].completion[0] == 8
    assert sides[0].turns[0].context == sides[1].turns[0].context


def test_equal_sides_are_no_pair_and_a_run_that_goes_on_keeps_a_token_on_both():
    better, worse = two_runs()
    assert _sides(better, better, None, "run") is None
    shorter = rendered("shorter", *((turn.context, turn.completion) for turn in better.turns[:2]))
    second, third = whole(better).turns[1:]
    end = Turn((*second.context, *second.completion[:-1]), second.completion[-1:])
    assert _sides(better, shorter, 2, "run") == (Part((end, third)), Part((end,)))
    assert _sides(better, worse, None, "turn") is None


def judged(*sides):
    """Pairs of refund tasks, one per side named, with their runs and tasks; sides "open" and "closed" are known."""
    tasks = {
        f"t-{side}-{i}": Task(id=f"t-{side}-{i}", split="train", family="refund", data={"branch": side})
        for side in ("open", "closed")
        for i in (0, 1)
    }
    runs, pairs = {}, []
    for number, side in enumerate(sides):
        task = f"t-{side}-{sides[:number].count(side)}"
        found = [run(f"{word} {number}", task=task, sample=i, family="refund") for i, word in enumerate(("better", "worse"))]
        runs |= {one.id: one for one in found}
        part = Part((Turn((number,), (1,)),))
        pairs.append(Pair(part, part, 1.0, (found[0].id, found[1].id), None, "scores"))
    return pairs, runs, tasks


def test_pairs_of_one_side_of_a_judgement_are_not_trained_on_wherever_they_came_from(caplog):
    config = DPOConfig(taskset="desk")
    pairs, runs, tasks = judged("open", "closed", "open")
    assert balanced(pairs, runs, tasks, config) == pairs
    pairs, runs, tasks = judged("open", "open")
    with pytest.raises(DataError, match="all 2 pairs left are of judgements of which another side has none"):
        balanced(pairs, runs, tasks, config)
    assert "2 pairs of refund/open are left out" in caplog.text
    assert balanced(pairs, runs, {}, config) == pairs, "imported runs have no task that could say its side"
