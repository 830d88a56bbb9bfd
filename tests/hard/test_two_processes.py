"""Every recipe under a real launcher with two processes, each with a whole base or half of it: one adapter, that of a single process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.recipes import reward
from agentalign.rollouts.golden import GOLDEN_FILE
from agentalign.store.registry import Registry
from tests.small_project import DPO, PPO, REWARD, SFT, make_project

pytestmark = pytest.mark.hard
SETTINGS = {
    "sft": SFT | {"max_steps": 4, "seed": 5, "eval_every_steps": 2, "quantization": "nf4"},
    # Without a gate, which would put the start's weights back.
    "dpo": DPO | {"start": "toy_desk@1", "max_steps": 4, "min_reference_prob": 0.001, "replay": 2, "eval_every_steps": 0},
    "kto": DPO | {"start": "toy_desk@1", "max_steps": 4, "eval_every_steps": 0, "learning_rate": 1e-4},
    "reward": REWARD | {"start": "toy_desk@1", "max_steps": 4, "seed": 5, "eval_every_steps": 0},
    "ppo": PPO | {"start": "toy_desk@1", "reward": "toy_desk-reward@1", "iterations": 2, "tasks_per_iteration": 3, "samples_per_task": 3,
                  "critic_warmup_steps": 2, "replay": 2, "learning_rate": 1e-2},
}  # fmt: skip
PLAIN = str(Path(__file__).parent / "without_bf16.py")
"""Two processes cut a step into other micro-batches than one does: what bfloat16 rounds by then is far more than 1e-5."""
LAUNCHED = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", PLAIN]
SHARDED = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
num_processes: 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    found = make_project(tmp_path_factory.mktemp("project"))
    reward.run(RewardConfig(**REWARD, start="toy_desk@1", max_steps=6, learning_rate=3e-3), found)
    return found


@pytest.mark.parametrize("recipe", list(SETTINGS))
def test_two_processes_leave_the_adapter_of_one(project, tmp_path, recipe):
    config = tmp_path / "accelerate.yaml"
    config.write_text(SHARDED)
    sharded = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), PLAIN]
    # What was sampled in other batches may part at a rounding, so PPO's weights are only near.
    tolerance = 2e-3 if recipe == "ppo" else 1e-5
    one, alone, _ = _trained(project, tmp_path / "one", recipe, [sys.executable, PLAIN])
    start = load_file(Registry(project.adapters).resolve("toy_desk@1")[1] / "adapter_model.safetensors")
    if recipe == "sft":
        start = {name: torch.zeros_like(value) for name, value in one.items() if "lora_B" in name}
    assert max(float((one[name] - value).abs().max()) for name, value in start.items()) > 5 * tolerance, "nothing was learned"
    for name, command in (("two", LAUNCHED), ("shards", sharded)):
        two, beside, log = _trained(project, tmp_path / name, recipe, command)
        assert ("the base is cut into shards: each of 2 processes" in log) == (name == "shards")
        assert one.keys() == two.keys()
        assert bool(beside) == bool(alone) == (recipe != "reward"), "golden prompts are missing"
        assert beside == alone or recipe == "ppo", "it acts in other words"
        assert max(float((one[key] - two[key]).abs().max()) for key in one) <= tolerance, name


BREAKS = """
import os, sys
from pathlib import Path
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

plain = LlamaDecoderLayer.forward

def forward(self, *arguments, **named):
    if os.environ["RANK"] == "0" and list(Path(".agentalign/trainings").glob("*/golden_begun")) and not Path("broken").exists():
        Path("broken").touch()
        if sys.argv.pop() == "killed":
            os.kill(os.getpid(), 9)
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return plain(self, *arguments, **named)

LlamaDecoderLayer.forward = forward
from agentalign.cli import main

sys.exit(main(sys.argv[1:-1]))
"""


@pytest.mark.parametrize("how", ["out of memory", "killed"])
def test_golden_prompts_that_end_a_process_cost_themselves_and_not_the_training(project, tmp_path, how):
    config, script = tmp_path / "accelerate.yaml", tmp_path / "breaks.py"
    config.write_text(SHARDED)
    script.write_text(BREAKS)
    root = shutil.copytree(project.root, tmp_path / "root", symlinks=True)
    (root / "settings.yaml").write_text(json.dumps(SETTINGS["kto"]))
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    command = [*launched, "train", "kto", "settings.yaml", how]
    ended, again = (subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300) for _ in range(2))
    assert ended.returncode != 0
    assert "broke off in this process" in ended.stderr or how == "killed"
    assert ("the training ended while it made them" in again.stderr) == (how == "killed")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "is done" in again.stderr
    assert not (Registry(Project(root).adapters).resolve(again.stdout.strip())[1] / GOLDEN_FILE).exists()


def test_a_refusal_is_said_and_ends_all_processes(project, tmp_path):
    root = shutil.copytree(project.root, tmp_path / "root", symlinks=True)
    settings = root / "settings.yaml"
    # JSON is YAML too.
    settings.write_text(json.dumps(SETTINGS["dpo"] | {"start": "toy_desk@99"}))
    done = subprocess.run([*LAUNCHED, "train", "dpo", str(settings)], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "toy_desk@99" in done.stderr


def _trained(project: Project, root: Path, recipe: str, command: list[str]) -> tuple[dict[str, torch.Tensor], list[object], str]:
    """The adapter's weights, prompts and answers of its golden turns, and what was said."""
    copy = Project(shutil.copytree(project.root, root, symlinks=True))
    before = {card.ref for card in Registry(copy.adapters).list()}
    settings = root / "settings.yaml"
    # JSON is YAML too.
    settings.write_text(json.dumps(SETTINGS[recipe]))
    done = subprocess.run([*command, "train", recipe, str(settings)], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (ref,) = {card.ref for card in Registry(copy.adapters).list()} - before
    assert done.stdout.strip() == ref, "more than the first process spoke"
    folder = Registry(copy.adapters).resolve(ref)[1]
    golden = json.loads((folder / GOLDEN_FILE).read_text())["turns"] if (folder / GOLDEN_FILE).exists() else []
    turns = [(turn["context"], turn["completion"]) for turn in golden]
    return load_file(folder / "adapter_model.safetensors"), turns, done.stderr
