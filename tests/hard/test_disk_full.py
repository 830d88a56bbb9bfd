"""A disk that fills up during a training: one clear sentence, the last good checkpoint is whole, and the same command goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agentalign.errors import TrainingError
from agentalign.training.checkpoint import load_checkpoint
from agentalign.training.engine import train
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner
from tests.test_attention import CONFIGS, make_model, three_levels_deep
from tests.test_engine import micro, steps_of, weights

pytestmark = pytest.mark.hard


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip() or done.returncode})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_last_good_checkpoint(small_disk: Path, tmp_path: Path) -> None:
    def batches(step: int, fill: bool) -> list[object]:
        if fill and step == 3:
            with pytest.raises(OSError, match="No space"):
                _fill(small_disk / "ballast")
        return [micro([three_levels_deep()[step % 4]])]

    def run(name: str, folder: Path, *, fill: bool) -> torch.Tensor:
        model = make_model(tmp_path / name, CONFIGS["llama"])
        plan = Plan(total_steps=6, schedule="cosine", save_every_steps=1)
        train(model, [Learner("policy", learning_rate=1e-3)], steps_of(lambda step: batches(step, fill), 6), plan, folder=folder)
        return weights(model)

    with pytest.raises(TrainingError, match=r"(?s)No space.*Free some space and run the same command again"):
        run("full", small_disk / "run", fill=True)
    kept = load_checkpoint(small_disk / "run" / "checkpoints")
    assert kept is not None
    assert kept.step == 3
    (small_disk / "ballast").unlink()
    assert torch.equal(run("again", small_disk / "run", fill=False), run("whole", tmp_path / "run", fill=False))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
