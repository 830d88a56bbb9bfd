"""Models that no tree fits take rows: few paddings, and exactly what each path gives by itself."""

import torch

from agentalign.training.attention import leaf_paths
from agentalign.training.rows import buckets, row_hidden
from agentalign.training.tree import build_tree
from tests.test_attention import CONFIGS, make_model, separate_pass, three_levels_deep, tree_pass


def test_paths_of_about_one_length_go_together_and_none_is_lost():
    paths = [torch.arange(size) for size in (100, 30, 79, 98, 81, 29, 5)]
    found = [[len(path) for path in bucket] for bucket in buckets(paths)]
    assert found == [[100, 98, 81], [79], [30, 29], [5]]


def test_a_model_without_trees_computes_every_path_once_with_little_padding(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    model.give_up_trees()
    tree = build_tree(three_levels_deep())
    shapes = []
    hook = model.backbone.register_forward_pre_hook(lambda _m, _a, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    hidden = row_hidden(model.backbone, tree, pad_id=model.dialect.pad_id)
    hook.remove()
    real = sum(len(path) for path in leaf_paths(tree))
    assert hidden.shape[0] == tree.n_tokens
    assert real <= sum(rows * length for rows, length in shapes) <= 1.25 * real


def test_rows_equal_separate_sequences_in_logprobs_and_gradients(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    model.give_up_trees()
    runs = three_levels_deep()
    logprobs, gradients = tree_pass(model, runs)
    expected, right = separate_pass(model, runs)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    for one, other in zip(gradients, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
