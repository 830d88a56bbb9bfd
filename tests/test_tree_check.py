"""A tree that would be trained wrongly is noticed before the first gradient is used."""

from dataclasses import replace

import pytest
import torch

from agentalign.training.tree import build_tree
from agentalign.training.tree_check import check_tree
from tests.test_attention import CONFIGS, make_model, three_levels_deep


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
