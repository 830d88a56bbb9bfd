"""A tree that would be trained wrongly is noticed before the first gradient is used."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from agentalign.recipes.data import Part, Turn, fixed_logprobs
from agentalign.training.engine import train
from agentalign.training.model import Model
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner, Pass, row_tokens
from agentalign.training.top_tokens import turn_logprobs
from agentalign.training.tree import build_tree, pack
from agentalign.training.tree_check import TOLERANCE, advise, check_tree, settle_trees
from tests.test_attention import CONFIGS, make_model, three_levels_deep
from tests.test_engine import micro, sft


@pytest.mark.parametrize("name", list(CONFIGS))
def test_trees_that_score_rightly_are_kept(tmp_path, name):
    model = make_model(tmp_path, CONFIGS[name])
    with model.using("policy"):
        assert check_tree(model, build_tree(three_levels_deep())) < 1e-4
    assert model.tree_capable


def test_trees_that_score_wrongly_are_given_up_loudly(tmp_path, caplog):
    model = make_model(tmp_path, CONFIGS["llama"])
    right = build_tree(three_levels_deep())
    wrong = replace(right, positions=torch.flip(right.positions, (0,)))
    with model.using("policy"), torch.no_grad():
        expected = model.token_logprobs(right)
        assert check_tree(model, wrong) > 1e-2
        assert not model.tree_capable
        assert "no prefix is shared" in caplog.text
        torch.testing.assert_close(model.token_logprobs(right), expected, atol=1e-5, rtol=0)


def test_what_is_off_everywhere_by_little_is_found_by_the_mean(tmp_path, monkeypatch, caplog):
    # As in bf16, where one token may be off by much more than this.
    monkeypatch.setitem(TOLERANCE, torch.float32, 0.7)
    model = make_model(tmp_path, CONFIGS["llama"])
    right = build_tree(three_levels_deep())
    with model.using("policy"):
        wrong = replace(right, positions=right.positions + torch.arange(right.n_tokens) % 3)
        off = check_tree(model, wrong)
    assert 1e-3 < off < 0.7
    assert not model.tree_capable and "in the mean" in caplog.text


def looking_back(folder) -> Model:
    """A Llama by its config, whose first layer also mixes in the token before: in a tree that may be another branch's."""
    model = make_model(folder, CONFIGS["llama"])
    model.backbone.layers[0].register_forward_hook(lambda _module, _given, states: states + 10 * F.pad(states, (0, 0, 1, 0))[:, :-1])
    return model


def in_rows(folder) -> Model:
    model = looking_back(folder)
    model.give_up_trees()
    return model


PARTS = [Part(run.turns) for run in three_levels_deep()]


def test_what_is_read_before_the_first_step_is_not_read_by_wrong_trees(tmp_path):
    expected = fixed_logprobs(in_rows(tmp_path / "rows"), "policy", PARTS, max_tokens=1000)
    kept = []
    # Of the second two, one computes what was not asked for yet, and one nothing: as trainings that are taken up again.
    for attempt, asked in enumerate((PARTS[:2], PARTS, PARTS)):
        model = looking_back(tmp_path / str(attempt))
        kept.append(fixed_logprobs(model, "policy", asked, max_tokens=1000, cache=tmp_path / "cache"))
        assert not model.tree_capable
        for one, other in zip(kept[-1], expected, strict=False):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert all(torch.equal(one, other) for one, other in zip(*kept[1:], strict=True))


def test_what_a_policy_is_remembered_by_is_not_read_by_wrong_trees(tmp_path):
    turns = [part.turns[0] for part in PARTS[:2]]
    expected = dict(turn_logprobs(in_rows(tmp_path / "rows"), "policy", turns, together=True))
    for index, found in turn_logprobs(looking_back(tmp_path / "trees"), "policy", turns, together=True):
        torch.testing.assert_close(found, expected[index], atol=1e-5, rtol=0)


def test_a_tree_without_branches_proves_nothing_of_one_with_some(tmp_path):
    model = looking_back(tmp_path)
    settle_trees(model, "policy", PARTS[:1], max_tokens=1000)
    assert model.tree_capable
    # The first batch holds one run, and is no proof either.
    settle_trees(model, "policy", PARTS, max_tokens=170)
    assert not model.tree_capable


def test_a_step_that_finds_trees_wrong_is_cut_anew_for_rows(tmp_path):
    runs = [Part((Turn((*range(5, 45), 50 + number), (6, 7, 8)),)) for number in range(6)]  # 40 tokens in common, 4 of their own
    seen = []

    def loss(model, batch):
        seen.append((model.tree_capable, row_tokens(batch.tree)))
        return sft(model, batch)

    one = Pass("policy", lambda tokens: [micro(some) for some in pack(runs, max_tokens=tokens, runs_of=lambda run: [run])], loss)
    model = looking_back(tmp_path / "model")
    plan = Plan(total_steps=1, schedule="constant", micro_batch_tokens=100)
    train(model, [Learner("policy")], lambda start: iter([[one]][start:]), plan, folder=tmp_path / "run")
    assert not model.tree_capable
    assert seen[-3:] == [(False, 88)] * 3, "rows of 264 tokens went through at once, where 100 were allowed"


def test_where_memory_runs_out_smaller_trees_are_looked_at(tmp_path):
    model = looking_back(tmp_path)
    sizes = []

    def full(_module, _given, named):
        sizes.append(named["input_ids"].shape[1])
        if sizes[-1] > 175:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.backbone.register_forward_pre_hook(full, with_kwargs=True)
    settle_trees(model, "policy", PARTS, max_tokens=350)
    assert sizes[0] > 175
    assert not model.tree_capable


@pytest.mark.parametrize(("budget", "said"), [(128, True), (1024, False)])
def test_micro_batches_that_a_common_beginning_fills_are_told_of(tmp_path, caplog, budget, said):
    model = make_model(tmp_path, CONFIGS["llama"])
    beginning = tuple(5 + i % 50 for i in range(200))
    runs = [Part((Turn((*beginning, 5 + number), (6, 7, 8)),)) for number in range(6)]
    one = Pass("policy", lambda tokens: [micro(some) for some in pack(runs, max_tokens=tokens, runs_of=lambda run: [run])], sft)
    advise(model, [one], budget)
    # Each of six runs whole, and all behind one beginning.
    assert ("computes 1,224 tokens, and 224 with 256" in caplog.text) == said
