"""A tree that would be trained wrongly is noticed before the first gradient is used."""

from dataclasses import replace

import pytest
import torch

from agentalign.recipes.data import Part, Turn
from agentalign.training.step import Pass
from agentalign.training.tree import build_tree, pack
from agentalign.training.tree_check import check_first, check_tree
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
        assert "without shared prefixes" in caplog.text
        torch.testing.assert_close(model.token_logprobs(right), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("budget", "said"), [(128, True), (1024, False)])
def test_micro_batches_that_a_common_beginning_fills_are_told_of(tmp_path, caplog, budget, said):
    model = make_model(tmp_path, CONFIGS["llama"])
    beginning = tuple(5 + i % 50 for i in range(200))
    runs = [Part((Turn((*beginning, 5 + number), (6, 7, 8)),)) for number in range(6)]
    one = Pass("policy", lambda tokens: [micro(some) for some in pack(runs, max_tokens=tokens, runs_of=lambda run: [run])], sft)
    with model.using("policy"):
        check_first(model, one.micro_batches(budget)[0].tree, [one], budget)
    # Each of six runs whole, and all behind one beginning.
    assert ("computes 1,224 tokens, and 224 with 256" in caplog.text) == said
