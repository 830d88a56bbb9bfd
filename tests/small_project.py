"""A project with the toy desk, made whole: expert runs, an SFT adapter of the tiny model, its samples and their pairs."""

from pathlib import Path

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.recipes import sft
from agentalign.rollouts.bundle import adapter_policy
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.scoring.stored import make_pairs, score_stored
from agentalign.store.store import Store

FIXTURES = Path(__file__).parent / "fixtures"
TINY = str(FIXTURES / "tiny")
COMMON = {"taskset": "toy_desk", "base": TINY, "quantization": "none"}
REWARD = {**COMMON, "warmup_steps": 0}
PPO = {**COMMON, "eval_tasks": 12}
DPO = {**REWARD, **PPO}
SFT = {**DPO, "lora_r": 4, "lora_alpha": 8.0}


def make_scored(root: Path) -> Project:
    """A project whose expert runs are scored and nothing else is done."""
    found = Project.create(root)
    (found.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    taskset = load_taskset("toy_desk", found.tasks)
    with Store(found.store_url) as store, WorkerPool(taskset) as pool:
        collect(store, taskset, ExpertPolicy(pool), choose_jobs(taskset, "train", limit=30), pool=pool)
        score_stored(store, taskset, pool=pool)
    return found


def make_project(root: Path) -> Project:
    """A project whose newest policy is toy_desk@1."""
    found = Project.create(root)
    (found.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    taskset = load_taskset("toy_desk", found.tasks)
    with Store(found.store_url) as store, WorkerPool(taskset) as pool:
        collect(store, taskset, ExpertPolicy(pool), choose_jobs(taskset, "train", limit=60), pool=pool)
        score_stored(store, taskset, pool=pool)
        sft.run(SFTConfig(**SFT, max_steps=10, eval_every_steps=5), found)
        policy = adapter_policy(found, "toy_desk", temperature=1.0, seed=1)
        collect(store, taskset, policy, choose_jobs(taskset, "train", limit=30, samples=4), pool=pool, seed=1)
        score_stored(store, taskset, pool=pool, only_new=True)
        make_pairs(store, taskset, margin=0.1, per_task=4)
    return found
