"""A disk that fills up during a training: one clear sentence, the last good checkpoint is whole, and the same command goes on."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from agentalign.errors import TrainingError, disk_is_full
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
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({done.stderr.strip() or done.returncode})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_command_on_a_full_disk_says_so_in_one_sentence_and_what_was_stored_is_there(tmp_path: Path) -> None:
    def agentalign(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "agentalign", *words], cwd=project, capture_output=True, text=True, check=False)

    with mounted(tmp_path / "disk", "6m") as disk:
        project = disk / "project"
        project.mkdir()
        assert agentalign("init").returncode == 0
        assert agentalign("rollout", "hello", "--policy", "expert", "--split", "dev").returncode == 0
        before = agentalign("runs", "list", "--json").stdout
        with pytest.raises(OSError, match="No space"):
            _fill(disk / "ballast")
        full = agentalign("rollout", "hello", "--policy", "expert", "--split", "train", "--n", "40")
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert "no room left on its disk" in full.stderr.splitlines()[-1], full.stderr
        (disk / "ballast").unlink()
        assert agentalign("runs", "list", "--json").stdout == before
        again = agentalign("rollout", "hello", "--policy", "expert", "--split", "train", "--n", "40")
        assert again.returncode == 0, again.stderr


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


def test_what_an_adapter_raises_for_which_there_is_no_room_is_known_for_that(small_disk: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path, CONFIGS["llama"])
    with pytest.raises(OSError, match="No space"):
        _fill(small_disk / "ballast")
    with pytest.raises((OSError, SafetensorError)) as of_files:
        model.save_adapter("policy", small_disk / "adapter")
    assert disk_is_full(of_files.value)
    (small_disk / "ballast").write_bytes(b"0" * 800_000)  # room for the settings, and none for the weights
    with pytest.raises((OSError, SafetensorError)) as of_weights:
        save_file({"weights": torch.zeros(200_000)}, small_disk / "weights.safetensors")
    assert disk_is_full(of_weights.value)
    assert not disk_is_full(RuntimeError("a log line that says: No space left on device"))
    assert not disk_is_full(PermissionError(13, "Permission denied"))


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
