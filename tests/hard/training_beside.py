"""A process that trains one small adapter after the other, with runs and trainings in the same store as what is tested beside it."""

import json

from test_store_kills import Writer

from agentalign.config.project import Project
from agentalign.records.adapter import Training
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from tests.small_project import FIXTURES, SFT

TRAINER = """
import json, os, sys
from itertools import count
from pathlib import Path
import torch
from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.recipes import sft
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.scoring.stored import score_stored
from agentalign.store.store import Store

torch.set_num_threads(1)
project, settings = Project(Path(sys.argv[1])), json.loads(sys.argv[2])
taskset = load_taskset("toy_desk", project.tasks)
with Store(project.store_url) as store, WorkerPool(taskset) as pool:
    collect(store, taskset, ExpertPolicy(pool), choose_jobs(taskset, "train", limit=8), pool=pool)
    score_stored(store, taskset, pool=pool)
print("ready", flush=True)
os.dup2(os.open(project.root / "trainer.log", os.O_WRONLY | os.O_CREAT), 2)  # nobody reads what it says of its steps
for seed in count():
    print(sft.run(SFTConfig(**settings, seed=seed), project).model_dump_json(), flush=True)
"""
TRAINED = {**SFT, "eval_tasks": 2, "max_steps": 4, "eval_every_steps": 4, "save_every_steps": 1}


def train_beside(project: Project) -> Writer:
    """The process; its first line says that it begins, every further one is a training that is done."""
    (project.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    return Writer(TRAINER, str(project.root), json.dumps(TRAINED))


def verify_trainings(store: Store, project: Project, lines: list[str]) -> None:
    """Every training that said it was done is, with an adapter that is whole; one more at most was under way."""
    trained = [Training.model_validate_json(line) for line in lines]
    stored = {made.id: made for made in store.trainings("toy_desk")}
    assert trained and [made for made in trained if stored.get(made.id) != made] == []
    assert {made.status for made in trained} == {"done"} and len(stored) - len(trained) in (0, 1)
    for made in trained:
        Registry(project.adapters).verify(str(made.adapter))
