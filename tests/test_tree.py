"""Token trees: what is shared, where it lies, and what belongs to which run."""

from dataclasses import dataclass

import pytest
import torch

from agentalign.errors import TrainingError
from agentalign.training.tree import build_tree, pack


@dataclass(frozen=True)
class Turn:
    context: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    turns: tuple[Turn, ...]


def one_turn(context, completion):
    return Run((Turn(tuple(context), tuple(completion)),))


PROMPT = (1, 2, 3, 4)


def test_shared_prefix_is_packed_once():
    tree = build_tree([one_turn(PROMPT, (5, 6)), one_turn(PROMPT, (7, 8, 9))])
    assert tree.n_tokens == 4 + 2 + 3
    assert tree.unshared_tokens == 6 + 7
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3, 4, 3, 6, 7]


def test_first_tokens_of_siblings_are_read_from_the_same_row():
    tree = build_tree([one_turn(PROMPT, (5, 6)), one_turn(PROMPT, (7, 8))])
    firsts = tree.labels[[0, 2]]
    assert tree.parents[firsts].tolist() == [3, 3]


def test_segments_cover_every_token_once_and_know_their_ancestors():
    tree = build_tree([one_turn(PROMPT, (5, 6, 7)), one_turn(PROMPT, (5, 6, 8)), one_turn(PROMPT, (9,)), one_turn((2, 2), (3,))])
    covered = [i for segment in tree.segments for i in range(segment.start, segment.end)]
    assert covered == list(range(tree.n_tokens))
    for segment in tree.segments:
        assert segment.depth == sum(end - start for start, end in segment.ancestors)
        path = [i for span in segment.ancestors for i in range(*span)] + list(range(segment.start, segment.end))
        assert tree.positions[path].tolist() == list(range(len(path)))


def test_two_turns_of_one_run_are_one_path():
    run = Run((Turn((1, 2), (3, 4)), Turn((1, 2, 3, 4, 9), (5, 6))))
    tree = build_tree([run])
    assert tree.tokens.tolist() == [1, 2, 3, 4, 9, 5, 6]
    assert tree.labels.tolist() == [2, 3, 5, 6]
    assert tree.turn_state.tolist() == [1, 4]
    assert tree.turn_end.tolist() == [3, 6]
    assert tree.run_end.tolist() == [6]


def test_template_that_rewrites_history_makes_branches_and_trains_no_token_twice():
    # The second turn's context writes the first turn anew (8 in place of 3), then repeats token 4 of it on a shared node.
    run = Run((Turn((1, 2), (3, 4)), Turn((1, 2, 8, 4), (5,))))
    tree = build_tree([run])
    assert tree.n_tokens == 4 + 3
    assert len(tree.labels) == len(tree.occurrences) == 3
    assert tree.turn_run.tolist() == [0, 0]


def test_trainable_turn_shared_by_two_runs_is_one_label_with_two_occurrences():
    first = Run((Turn((1,), (2, 3)), Turn((1, 2, 3, 7), (4,))))
    second = Run((Turn((1,), (2, 3)), Turn((1, 2, 3, 8), (5,))))
    tree = build_tree([first, second])
    assert len(tree.labels) == 4
    assert len(tree.occurrences) == 6
    values = torch.arange(1.0, 5.0)[tree.occurrences]
    by_run = tree.sum_by_run(values)
    assert by_run.sum() == values.sum()
    assert tree.sum_by_turn(values).shape == (4,)


def test_sums_by_run_go_to_the_right_run():
    tree = build_tree([one_turn(PROMPT, (5, 6)), one_turn(PROMPT, (7,))])
    assert tree.sum_by_run(torch.ones(3)).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("run", [Run(()), one_turn((), (1,)), one_turn((1,), ())])
def test_run_without_anything_to_learn_is_refused(run):
    with pytest.raises(TrainingError):
        build_tree([run])


def test_pack_never_tears_a_group_and_keeps_the_budget():
    groups = [[one_turn((i, i, i), (1, 2)), one_turn((i, i, i), (3, 4))] for i in range(6)]
    batches = pack(groups, max_tokens=15, runs_of=list)
    assert [group for batch in batches for group in batch] == groups
    assert [len(batch) for batch in batches] == [2, 2, 2]  # 7 tokens a pair
    for batch in batches:
        assert build_tree([run for group in batch for run in group]).n_tokens <= 15


def test_pack_counts_shared_tokens_once():
    groups = [[one_turn(PROMPT, (10 + i,))] for i in range(8)]
    assert len(pack(groups, max_tokens=12, runs_of=list)) == 1


def test_group_larger_than_the_budget_stands_alone():
    groups = [[one_turn(range(50), (1,))], [one_turn((1,), (2,))]]
    assert [len(batch) for batch in pack(groups, max_tokens=10, runs_of=list)] == [1, 1]
