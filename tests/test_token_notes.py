"""What a training writes down of single tokens: where they stand, how many are kept, and what is read back."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from agentalign.recipes import token_notes
from agentalign.recipes.data import Part, Turn, whole
from agentalign.recipes.dpo import Pair
from agentalign.recipes.experience import Experience
from agentalign.recipes.token_notes import note_experience, note_pairs, notes_of
from agentalign.training.render import Rendered, RenderedTurn


def rendered(name: str, last: tuple[int, ...] = (7, 8)) -> Rendered:
    first = RenderedTurn(1, context=(1, 2), completion=(3, 4, 5))
    return Rendered(name, (first, RenderedTurn(3, context=(1, 2, 3, 4, 5, 6), completion=last)))


def experience(name: str) -> Experience:
    run = rendered(name)
    old = torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5])
    return Experience(run, whole(run), 0.8, old, old - 1, np.array([0.1, 0.2]), np.array([0.5, -0.25]), np.array([1.0, 1.0]))


def test_what_ppo_saw_is_read_back_turn_by_turn(tmp_path: Path) -> None:
    note_experience(tmp_path / "desk-ppo-1", 3, [experience("a" * 32), experience("b" * 32)])
    found = notes_of(tmp_path, "b" * 32, "desk-ppo-1/3")
    ((training, (note,)),) = found.items()
    assert (training, note.said) == ("desk-ppo-1", "iteration 3, reward 0.80")
    assert [(turn.message, turn.weight, turn.advantage, turn.value) for turn in note.turns] == [
        (1, (1, 1, 1), 0.5, 0.1),
        (3, (1, 1), -0.25, 0.2),
    ]
    assert note.turns[1].old == (-0.4, -0.5)
    assert note.turns[1].reference == (-1.4, -1.5)
    assert notes_of(tmp_path, "b" * 32, "desk-ppo-1/2") == notes_of(tmp_path, "b" * 32, "other/3") == {}


def test_tokens_that_turns_share_have_no_log_prob_of_their_own(tmp_path: Path) -> None:
    one = experience("a" * 32)
    note_experience(tmp_path / "t", 0, [Experience(**{**vars(one), "old_logprobs": one.old_logprobs[:4]})])
    (note,) = notes_of(tmp_path, "a" * 32, "t/0")["t"]
    assert [turn.old for turn in note.turns] == [(), ()]


def test_only_the_newest_iterations_and_a_bounded_number_of_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_notes, "MOST_ITERATIONS", 2)
    monkeypatch.setattr(token_notes, "MOST_RUNS", 1)
    for iteration in range(4):
        note_experience(tmp_path / "t", iteration, [experience("a" * 32), experience("b" * 32)])
    assert sorted(path.name for path in (tmp_path / "t" / "tokens").iterdir()) == ["000002.jsonl", "000003.jsonl"]
    assert notes_of(tmp_path, "a" * 32, "t/3")
    assert notes_of(tmp_path, "b" * 32, "t/3") == {}


def test_dpo_notes_the_tokens_that_a_pair_compares(tmp_path: Path) -> None:
    better, worse = rendered("a" * 32, (7, 8)), rendered("b" * 32, (7, 9, 9))
    context = (1, 2, 3, 4, 5, 6, 7)
    chosen, rejected = Part((Turn(context, (8,)),)), Part((Turn(context, (9, 9)),))
    pair = Pair(chosen, rejected, 2.0, ("a" * 32, "b" * 32), "a" * 32, "human", (-0.5, -3.0))
    note_pairs(tmp_path / "t", [pair], {"a" * 32: better, "b" * 32: worse})
    (one,), (other,) = (notes_of(tmp_path, id * 32, "base")["t"] for id in "ab")
    assert one.said == "chosen against bbbbbbbb, and held on to as a whole"
    assert [(turn.message, turn.start, turn.weight, turn.reference) for turn in one.turns] == [(3, 1, (2.0,), (-0.5,))]
    assert [(turn.message, turn.start, turn.weight, turn.reference) for turn in other.turns] == [(3, 1, (-2.0, -2.0), ())]


def test_a_side_that_is_no_part_of_its_run_is_not_noted(tmp_path: Path) -> None:
    pair = Pair(Part((Turn((9,), (9,)),)), Part((Turn((1,), (5,)),)), 1.0, ("a" * 32, "a" * 32), None, "contrast")
    note_pairs(tmp_path / "t", [pair], {"a" * 32: rendered("a" * 32)})
    assert notes_of(tmp_path, "a" * 32, "base") == {}


@pytest.mark.parametrize("maker", ["../../etc/1", "..", "t/999999999999", "t\x00/1", "x/" * 500, "t/٣"])
def test_a_makers_name_leads_nowhere_else(tmp_path: Path, maker: str) -> None:
    note_experience(tmp_path / "trainings" / "t", 0, [experience("a" * 32)])
    assert notes_of(tmp_path / "trainings", "a" * 32, maker) == {}
    assert notes_of(tmp_path / "none", "a" * 32, maker) == {}


def test_damaged_notes_and_a_full_disk_are_said_and_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note_experience(tmp_path / "t", 0, [experience("a" * 32)])
    path = tmp_path / "t" / "tokens" / "000000.jsonl"
    path.write_text(path.read_text()[:-30])
    with caplog.at_level(logging.WARNING):
        assert notes_of(tmp_path, "a" * 32, "t/0") == {}
        (tmp_path / "file").write_text("")
        note_experience(tmp_path / "file", 0, [experience("a" * 32)])
    assert "cannot be read" in caplog.text
    assert "was not written" in caplog.text
