"""Checkpoints are whole or not there; a damaged one gives way to the one before."""

import pytest
import torch

from agentalign.errors import TrainingError
from agentalign.training.checkpoint import Snapshot, flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint


def snapshot(step):
    return Snapshot(
        step, {"policy/0": torch.full((3,), float(step))}, {"0/exp_avg": torch.ones(3)}, {"best_step": step}, {"policy/0": torch.zeros(3)}
    )


def test_newest_comes_back_whole_and_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, snapshot(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found = load_checkpoint(tmp_path)
    assert found.step == 3
    assert found.notes == {"best_step": 3}
    assert torch.equal(found.weights["policy/0"], torch.full((3,), 3.0))
    assert torch.equal(found.best["policy/0"], torch.zeros(3))


@pytest.mark.parametrize("damage", ["flip", "missing file", "missing manifest"])
def test_damaged_newest_gives_way_to_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, snapshot(1))
    newest = save_checkpoint(tmp_path, snapshot(2))
    weights = newest / "weights.safetensors"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        (weights if damage == "missing file" else newest / "manifest.json").unlink()
    assert load_checkpoint(tmp_path).step == 1


def test_half_written_folder_is_not_a_checkpoint(tmp_path):
    (tmp_path / ".writing-00000009-1").mkdir(parents=True)
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_unwritable_target_is_one_sentence_and_keeps_the_last(tmp_path):
    save_checkpoint(tmp_path / "c", snapshot(1))
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(TrainingError, match="the one before is untouched"):
        save_checkpoint(blocked, snapshot(2))
    assert load_checkpoint(tmp_path / "c").step == 1


def test_optimizer_state_survives_flattening():
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.arange(4.0)
    optimizer.step()
    flat = flatten_optimizer(optimizer)
    other = torch.optim.AdamW([torch.nn.Parameter(parameter.detach().clone())], lr=0.1)
    restore_optimizer(other, flat)
    for name, value in optimizer.state[parameter].items():
        assert torch.equal(other.state[other.param_groups[0]["params"][0]][name], value)
