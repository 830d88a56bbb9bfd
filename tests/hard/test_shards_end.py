"""How a training ends whose base is cut into shards: asked to, out of memory in one process, or with a forward that broke off."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_sharding import MADE, SHARDED, found_by

pytestmark = pytest.mark.hard
ROOT = Path(__file__).parents[2]
STOPPED = (
    MADE
    + """
import signal
from agentalign.errors import TrainingStoppedError
model = load()

def gate():
    act(model)
    os.kill(os.getpid(), signal.SIGTERM)
    act(model)
    raise AssertionError("the gate went on after the request to end")

try:
    run(model, root / "run", evaluate=lambda step, first: ranks.first(gate), save_every_steps=9, eval_at_start=False)
except TrainingStoppedError as error:
    print(error, flush=True)
ranks.stop()
"""
)
SHORT = (
    MADE
    + """
model = load()
seen = []

def loss(model, batch):
    seen.append(batch.tree.n_runs)
    if batch.tree.n_runs > 1:  # in one of the processes, while the other goes on
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return sft(model, batch)

run(model, root / "run", loss=loss, save_every_steps=1)
print(sorted(seen), flush=True)
"""
)
BROKEN = (
    MADE
    + """
model = load()
layer = model.backbone.layers[1]
whole = layer.forward

def gate():
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    layer.forward = fails
    try:
        return act(model)
    except RuntimeError:  # as who makes golden prompts does, which end no training
        return Evaluated(0.0, {})

run(model, root / "run", evaluate=lambda step, first: ranks.first(gate))
"""
)


def launched(code, folder, *options):
    """Both processes under torch's launcher, which ends the one when the other fails."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options, str(script), str(folder)]
    about = os.environ | SHARDED | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=about, text=True, capture_output=True, timeout=240)


def test_a_request_to_end_in_the_gate_is_answered_before_its_next_forward(tmp_path):
    done = launched(STOPPED, tmp_path / "x")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 2; step 2 is saved") == 2, "one of them did not end, or ended otherwise"


def test_a_step_without_memory_ends_all_and_the_same_command_goes_on_with_less(tmp_path):
    ended = launched(SHORT, tmp_path / "x")
    assert ended.returncode != 0
    assert "ran out of memory (CUDA out of memory.)" in ended.stderr
    assert "it goes on with less memory a step" in ended.stderr
    done = launched(SHORT, tmp_path / "x", "--max-restarts", "3")  # one for each halving
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[1, 1, 1, 1, 1, 1]" in done.stdout


def test_three_processes_end_in_the_weights_of_one_too(tmp_path, monkeypatch):
    (alone,) = found_by(tmp_path / "whole", 1)
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    # Some layers have no third: a shard is padded.
    for found in found_by(tmp_path / "shards", 3):
        for whole, one in zip(alone, found, strict=True):
            for mine, theirs in zip(whole[0] + whole[1], one[0] + one[1], strict=True):
                torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), atol=1e-5, rtol=0)


def test_a_forward_of_the_gate_that_broke_off_ends_all(tmp_path):
    ended = launched(BROKEN, tmp_path / "x")
    assert ended.returncode not in (0, -signal.SIGKILL)
    assert "BrokenOffError: a forward or backward broke off in this process. Where others" in ended.stderr
