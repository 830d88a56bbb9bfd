"""The whole way in one command: a base model that never calls a tool becomes an agent that keeps the team's rules.

Expert runs, SFT, sampled runs, pairs, DPO, a reward model, PPO; after each stage the same held-out tasks. Every finished part is
noted down, so a restart goes on where it stopped; trainings go on from their own checkpoints.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agentalign import strict_yaml
from agentalign.config.dpo import DPOConfig
from agentalign.config.load import resolve
from agentalign.config.ppo import PPOConfig
from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.config.sft import SFTConfig
from agentalign.config.training import TrainingConfig
from agentalign.deployment.check import promote
from agentalign.deployment.deploy_check import deploy_check
from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError
from agentalign.evaluation.report import StageResult, write_demo_report
from agentalign.evaluation.run_eval import EvalPlan, evaluate, still_holds, stored_evaluation
from agentalign.recipes import dpo, ppo, reward, sft
from agentalign.recipes.dry_run import DryRun
from agentalign.recipes.start import FIRST_BASE
from agentalign.records.adapter import Training
from agentalign.records.base import now
from agentalign.rollouts.bundle import adapter_policy
from agentalign.rollouts.collect import collect, spread
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.scoring.stored import make_pairs, overalls, score_stored
from agentalign.store.store import Store

logger = logging.getLogger("agentalign")
TASKSET = "order_desk"
FAILED = 0.6
"""A run below this overall value gets a correction by the expert, who here is the reviewer."""


@dataclass(frozen=True)
class Preset:
    """How much of everything."""

    eval_tasks: int | None
    """Held-out tasks per stage; None for all."""
    open_samples: int
    """Samples of every train task without a demonstration: there the policy has to judge by itself."""
    judged_samples: int
    """Samples of every task of a judgement that was demonstrated throughout: both of its sides must show where they go wrong."""
    other_samples: int
    """Samples of each of half as many of the other train tasks: they show what must not be lost."""
    overrides: dict[str, dict[str, Any]]
    """Recipe -> dials that differ from the taskset's recipes/."""
    controls: bool = False
    """Also train the SFT adapter on for as long as DPO and PPO took, to compare with."""


SMALL_PPO = {
    "iterations": 6,
    "tasks_per_iteration": 12,
    "samples_per_task": 4,
    "num_mini_batches": 1,
    "critic_warmup_steps": 2,
    "eval_every_steps": 3,
}
"""A third of the runs of the recipe and half of its iterations: what CPU cores act out in minutes. It shows how PPO goes, no more."""

ON_CPU: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 120, "eval_every_steps": 120},
    "dpo": {"max_steps": 20, "eval_every_steps": 20},
    "reward": {"max_steps": 12, "eval_every_steps": 12},
    "ppo": {**SMALL_PPO, "iterations": 3},
}
"""For two cores and forty minutes: fewer steps than the recipes take, and fewer looks at held-out tasks and pairs: a hundred tasks take as
long as ten steps of SFT. With 88 steps of SFT 70 % of held-out tasks were solved, with 112 74 to 83 %, with 116 and 126 79 %."""

PRESETS = {
    "quick": Preset(
        eval_tasks=40,
        open_samples=1,
        judged_samples=1,
        other_samples=1,
        overrides={
            "sft": {"max_steps": 30, "eval_every_steps": 0},
            "dpo": {"max_steps": 4, "eval_every_steps": 0, "min_reference_prob": 0.01},
            "reward": {"max_steps": 4},
            "ppo": {**SMALL_PPO, "iterations": 1, "tasks_per_iteration": 6, "critic_warmup_steps": 1, "eval_every_steps": 0},
        },
    ),
    "default": Preset(
        eval_tasks=200 if torch.cuda.is_available() else 120,
        open_samples=3 if torch.cuda.is_available() else 2,
        judged_samples=2,
        other_samples=1,
        overrides={} if torch.cuda.is_available() else ON_CPU,
    ),
    "full": Preset(
        eval_tasks=None,
        open_samples=8,
        judged_samples=8,
        other_samples=4,
        controls=True,
        overrides={
            "sft": {"max_steps": 180, "eval_every_steps": 60},
            "dpo": {"max_steps": 48},
            "reward": {"max_steps": 60},
        },
    ),
}


def run(project: Project, preset: str, seed: int, *, taskset: str = TASKSET, every_task: bool = False) -> Path:
    """Everything; returns the path of report.json.

    Args:
        preset: "quick", "default" or "full".
        seed: draws adapters, samples and orders; the tasks stay the same.
        taskset: any with an expert, tasks tagged "expert" among others, and recipes/ of its own.
        every_task: evaluate on every held-out task, whatever the preset says.
    """
    amounts = replace(PRESETS[preset], eval_tasks=None) if every_task else PRESETS[preset]
    with Store(project.store_url) as store:
        return _Demo(project, store, amounts, seed, taskset, project.state / "demo" / f"{preset}-{seed}").whole_way()


class _Demo:
    """One demo of one preset and seed, with what is done so far."""

    def __init__(self, project: Project, store: Store, amounts: Preset, seed: int, taskset: str, folder: Path) -> None:
        self.project, self.store, self.preset, self.seed, self.folder = project, store, amounts, seed, folder
        self.taskset: Taskset = load_taskset(taskset, project.tasks)
        self.name = self.taskset.name
        first = self.config("sft", {})
        self.base = first.base or FIRST_BASE
        self.plan = EvalPlan(split="test", limit=amounts.eval_tasks, base=self.base, quantization=first.quantization)
        self.done: dict[str, Any] = {}
        if (self.folder / "done.json").exists():
            self.done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        self.stages: list[StageResult] = []

    def whole_way(self) -> Path:
        self.result("base", "base", seconds=0.0)
        self.part("expert runs", self.expert_runs)
        start = self.train("sft", "sft", {})
        self.part("sampled runs", lambda: self.sample(start))
        self.part("corrections", self.correct)
        self.part("pairs", self.pairs)
        after_dpo = self.train("dpo", "dpo", {"start": start}, extra=("sampled runs", "corrections", "pairs"))
        reward_model = self.train("reward", "reward", {"start": start}, evaluated=False)
        final = self.train("ppo", "ppo", {"start": after_dpo, "reward": reward_model}, extra=("reward",))
        if self.preset.controls:
            self.control("more sft (as long as dpo)", start, "dpo")
            self.control("more sft (as long as ppo)", start, "ppo")
        return self.report(final)

    # ------------------------------------------------------------------ bookkeeping

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a part unless it is done, and note its value and time."""
        if name not in self.done:
            logger.info("== %s", name)
            began = time.monotonic()
            value = work()
            self.done[name] = {"value": value, "seconds": round(time.monotonic() - began, 1), "at": now()}
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self.folder / "done.json.partial"
            partial.write_text(json.dumps(self.done, indent=1), encoding="utf-8")
            partial.replace(self.folder / "done.json")
        return self.done[name]["value"]

    def seconds(self, *parts: str) -> float:
        return float(sum(self.done[part]["seconds"] for part in parts))

    def train(self, stage: str, recipe: str, more: dict[str, Any], *, evaluated: bool = True, extra: tuple[str, ...] = ()) -> str:
        """Train a stage with its recipe, evaluate it, and return its adapter."""
        adapter: str = self.part(stage, lambda: self._trained(recipe, more))
        training = self._training(adapter, recipe)
        self.result(stage, adapter, seconds=self.seconds(stage, *extra), training=training, evaluated=evaluated)
        return adapter

    def config(self, recipe: str, more: dict[str, Any]) -> TrainingConfig:
        """The taskset's settings of a recipe, with the preset's and the stage's."""
        classes: dict[str, type[TrainingConfig]] = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig, "ppo": PPOConfig}
        file = self.taskset.folder / "recipes" / f"{recipe}.yaml"
        dials = {"seed": self.seed, **self.preset.overrides.get(recipe, {}), **more}
        return resolve(classes[recipe], strict_yaml.load(file), dials, str(file))

    def _trained(self, recipe: str, more: dict[str, Any]) -> str:
        module = {"sft": sft, "dpo": dpo, "reward": reward, "ppo": ppo}[recipe]
        training: Training | DryRun = module.run(self.config(recipe, more), self.project)
        assert isinstance(training, Training)
        return training.adapter

    def _training(self, adapter: str, recipe: str) -> Training:
        return next(one for one in self.store.trainings(self.name) if one.adapter == adapter and one.recipe == recipe)

    def result(
        self, stage: str, adapter: str, *, seconds: float, training: Training | None = None, evaluated: bool = True, **rest: Any
    ) -> None:
        """Evaluate an adapter on the held-out tasks and add it to the report."""
        if evaluated:
            before = stored_evaluation(self.project, adapter, self.name, "test", plan=self.plan)
            if before is None or not still_holds(self.project, before, self.taskset):
                self.done.pop(f"evaluate {stage}", None)  # what was evaluated was other tasks, or by other checks
            self.part(f"evaluate {stage}", lambda: self._evaluated(adapter))
        rows = [json.loads(line) for line in self._metrics(training)] if training else []
        notes = [training.note] if training and training.note else []
        evaluation = stored_evaluation(self.project, adapter, self.name, "test", plan=self.plan) if evaluated else None
        self.stages.append(StageResult(stage, adapter, evaluation, seconds, metrics=rows, notes=notes, **rest))

    def _metrics(self, training: Training) -> list[str]:
        path = self.project.trainings / training.id / "metrics.jsonl"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def _evaluated(self, adapter: str) -> float:
        tick = _progress(f"{adapter} on test")
        found = evaluate(self.project, self.store, adapter, taskset=self.name, plan=self.plan, progress=tick).evaluation
        for sentence in found.trouble:
            logger.warning("%s: %s", adapter, sentence)
        rate = found.headline.success
        logger.info(
            "%s: success %.1f %% [%.1f, %.1f] on %d held-out tasks", adapter, 100 * rate.mean, 100 * rate.low, 100 * rate.high, rate.n
        )
        return rate.mean

    # ------------------------------------------------------------------ parts

    def expert_runs(self) -> int:
        """What the team has to show: many mechanical requests, few that need judgement."""
        jobs = [Job(task) for task in self.taskset.tasks("train") if "expert" in task.tags]
        with WorkerPool(self.taskset) as pool:
            made = collect(self.store, self.taskset, ExpertPolicy(pool), jobs, pool=pool)
            score_stored(self.store, self.taskset, pool=pool, only_new=True)
        return len(made.runs)

    def sample(self, adapter: str) -> int:
        """Let the policy act on train tasks, mostly those nobody demonstrated."""
        tasks = self.taskset.tasks("train")
        unshown = [task for task in tasks if "expert" not in task.tags]
        shown = [task for task in tasks if "expert" in task.tags]
        open_families = {task.family for task in unshown}
        judged = [task for task in shown if task.branch and task.family not in open_families]
        others = spread([task for task in shown if task not in judged], len(unshown) // 2)
        amounts = self.preset
        plans = ((unshown, amounts.open_samples), (judged, amounts.judged_samples), (others, amounts.other_samples))
        jobs = [Job(task, i) for some, samples in plans for i in range(samples) for task in some]
        policy = adapter_policy(self.project, adapter, temperature=0.8, seed=self.seed)
        with WorkerPool(self.taskset) as pool:
            made = collect(self.store, self.taskset, policy, jobs, pool=pool, seed=self.seed, progress=_progress("sampled runs"))
            score_stored(self.store, self.taskset, pool=pool, only_new=True)
        return len(made.runs)

    def correct(self) -> int:
        """The reviewer shows how the failed tasks are done; these runs become the better side of step pairs."""
        shown = {task.id for task in self.taskset.tasks("train") if "expert" in task.tags}
        runs = [
            run for run in self.store.trajectories() if run.taskset == self.name and run.origin.kind == "rollout" and run.split == "train"
        ]
        values = overalls(self.store, [run.id for run in runs], self.project.tasks)
        failed = {run.task_id for run in runs if (values.get(run.id) or 0.0) < FAILED} - shown
        jobs = [Job(task) for task in self.taskset.tasks("train") if task.id in failed]
        with WorkerPool(self.taskset) as pool:
            made = list(rollout(self.taskset, ExpertPolicy(pool), jobs, origin_kind="correction", pool=pool))
            self.store.add([result.trajectory for result in made])
            score_stored(self.store, self.taskset, pool=pool, only_new=True)
        return len(made)

    def pairs(self) -> dict[str, dict[str, int]]:
        """Preferences from the scores, balanced over families and branches."""
        made = make_pairs(self.store, self.taskset, margin=0.25, per_task=4, cap=40, seed=self.seed)
        logger.info("pairs: %s", made.counts)
        return made.counts

    def control(self, name: str, start: str, stage: str) -> None:
        """More SFT for as long as another stage trained."""
        rows = [json.loads(line) for line in self._metrics(self._training(start, "sft"))]
        per_step = sum(row.get("seconds", 0.0) for row in rows) / max(1, sum("seconds" in row for row in rows))
        steps = max(1, int(self.seconds(stage) / per_step))
        # The same new demonstrations that DPO had as corrections: else the control would only measure that it saw fewer.
        dials = {
            "start": start,
            "origins": ["expert", "correction"],
            "max_steps": steps,
            "learning_rate": 2e-4,
            "eval_every_steps": max(1, steps // 3),
        }
        adapter: str = self.part(name, lambda: self._trained("sft", dials))
        self.result(name, adapter, seconds=self.seconds(name), training=self._training(adapter, "sft"), compared_to="sft", control=True)

    def report(self, final: str) -> Path:
        """Check and promote what the gate lets through, and write the report."""
        try:
            self.part(f"deploy-check {final}", lambda: deploy_check(self.project, final).passed)
            promote(self.project, final, "production")
            name = f"{self.name}@production"
        except AgentAlignError as error:
            logger.warning("not promoted: %s", error)
            name = final
        notes = [
            "agentalign ui opens these runs in a browser, to look at and to rate.",
            f'agentalign.load_agent("{name}") loads the adapter; agentalign export {name} DIR --with-base writes it for vLLM.',
        ]
        seconds = sum(entry["seconds"] for entry in self.done.values())
        paths = write_demo_report(self.folder, self.stages, base=self.base, seconds=seconds, notes=notes)
        for note in (f"the report: {paths.html}", *notes):
            logger.info(note)
        return paths.json


def _progress(what: str) -> Callable[[int, int], None]:
    """A line with the time left, at most every ten seconds."""
    began = time.monotonic()
    last = [began]

    def tick(done: int, total: int) -> None:
        passed = time.monotonic() - began
        if done == total or time.monotonic() - last[0] > 10:
            last[0] = time.monotonic()
            # Runs are made side by side: when the first ends, most of the others are nearly done too, and no estimate is worth its name.
            left = f" ({passed / done * (total - done):.0f} s left)" if 10 * done > total else ""
            logger.info("%s: %d of %d%s", what, done, total, left)

    return tick
