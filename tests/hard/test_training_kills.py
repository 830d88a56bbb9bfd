"""Trainings are killed at random moments and while they save: the same command again ends in the byte-identical adapter."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.recipes import reward
from agentalign.store.registry import Registry
from tests.small_project import DPO, PPO, REWARD, SFT, make_project

pytestmark = pytest.mark.hard

TRAIN = """
import json, logging, sys
from importlib import import_module
from pathlib import Path
import torch
from agentalign.config.project import Project

torch.set_num_threads(1)
logging.basicConfig(filename=Path(sys.argv[4]) / "log.txt", level=logging.INFO)
recipe, name, settings, root = sys.argv[1:]
config = getattr(import_module(f"agentalign.config.{recipe}"), name)
print("ready", flush=True)
done = import_module(f"agentalign.recipes.{recipe}").run(config(**json.loads(settings)), Project(Path(root)))
print(done.adapter, flush=True)
"""
SETTINGS = {
    "sft": ("SFTConfig", {**SFT, "max_steps": 12, "seed": 5, "eval_every_steps": 4, "save_every_steps": 1}),
    "dpo": ("DPOConfig", {**DPO, "start": "toy_desk@1", "max_steps": 8, "learning_rate": 1e-3, "min_reference_prob": 0.001,
                          "replay": 2, "eval_every_steps": 4, "save_every_steps": 1}),
    "reward": ("RewardConfig", {**REWARD, "start": "toy_desk@1", "max_steps": 12, "seed": 5, "learning_rate": 3e-3, "save_every_steps": 1}),
    "ppo": ("PPOConfig", {**PPO, "start": "toy_desk@1", "reward": "toy_desk-reward@1", "iterations": 4, "tasks_per_iteration": 4,
                          "samples_per_task": 3, "critic_warmup_steps": 2, "learning_rate": 1e-3, "replay": 2, "eval_every_steps": 2,
                          "save_every_steps": 1}),
}  # fmt: skip
KILLS = 3


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = make_project(tmp_path_factory.mktemp("project"))
    reward.run(RewardConfig(**REWARD, start="toy_desk@1", max_steps=6, learning_rate=3e-3), found)
    return found


@pytest.mark.parametrize("recipe", list(SETTINGS))
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bytes(project, tmp_path, recipe):
    whole, torn = (shutil.copytree(project.root, tmp_path / name, symlinks=True) for name in ("whole", "torn"))
    expected = _files(whole, _finish(recipe, whole))
    assert expected
    draw = random.Random(recipe)
    killed_in_a_save, left = 0, False
    for number in range(KILLS):
        with _start(recipe, torn) as process:  # closes its pipe, and waits for it
            # Inside a save first, after a number of checkpoints drawn by chance; the last at any moment, when it may be done already.
            steps, deadline = draw.randint(number, 3), time.monotonic() + draw.uniform(0.0, 6.0)
            while process.poll() is None and (time.monotonic() < deadline or number < KILLS - 1):
                if number < KILLS - 1 and _saving(torn, steps):
                    killed_in_a_save += 1
                    break
            process.kill()
        left |= process.returncode != 0 and any(torn.glob(".agentalign/trainings/*/checkpoints/step-*"))
    assert killed_in_a_save, "no kill fell into a save; the test did not test what it says"
    assert _files(torn, _finish(recipe, torn)) == expected
    if left:  # else it was done before a kill found a checkpoint
        assert "resumed at step" in (torn / "log.txt").read_text(), "it began anew each time, whatever it had saved"
    assert "resumed at step" not in (whole / "log.txt").read_text()


def test_a_command_that_is_asked_to_end_does_so_and_leaves_nothing_running(project, tmp_path):
    root = shutil.copytree(project.root, tmp_path / "asked", symlinks=True)
    dials = {**SFT, "max_steps": 300, "seed": 6, "eval_every_steps": 100, "save_every_steps": 50}
    words = [word for name, value in dials.items() for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))]
    command = [sys.executable, "-m", "agentalign", "train", "sft", *words]
    shutil.rmtree(root / ".agentalign" / "trainings")  # those of before
    with subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not _steps(root) > 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    done = _steps(root)
    assert process.returncode == 1 and 2 < done < 300, said
    assert "Run the same command again to go on" in said.splitlines()[-1]
    assert not _running(process.pid), "a process of its own outlived it"
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"resumed at step {done}" in again.stderr
    assert _steps(root) == 300


def _steps(root: Path) -> int:
    """Steps that metrics.jsonl holds."""
    lines = [line for file in (root / ".agentalign" / "trainings").glob("*/metrics.jsonl") for line in file.read_text().splitlines()]
    return max((json.loads(line)["step"] for line in lines if line.endswith("}") and '"asked"' not in line), default=0)


def _running(group: int) -> list[str]:
    """What of this process group is there and has not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def _start(recipe: str, root: Path) -> subprocess.Popen[str]:
    name, settings = SETTINGS[recipe]
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, recipe, name, json.dumps(settings), str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _finish(recipe: str, root: Path) -> str:
    output, _ = _start(recipe, root).communicate(timeout=300)
    assert output.strip(), f"{recipe} in {root} ended without an adapter"
    return output.strip()


def _saving(root: Path, steps: int) -> bool:
    """A checkpoint is being written, and this many are done."""
    trainings = root / ".agentalign" / "trainings"
    return any(trainings.glob("*/checkpoints/.writing-*")) and len(list(trainings.glob("*/checkpoints/step-*"))) >= min(steps, 2)


def _files(root: Path, ref: str) -> dict[str, str]:
    """Digest of every weight file of an adapter."""
    registry = Registry(Project(root).adapters)
    registry.verify(ref)
    _, folder = registry.resolve(ref)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}
