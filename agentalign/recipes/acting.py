"""PPO's acting half: draw tasks, let the policy act, have checks and reward model score, store everything."""

import json
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from agentalign.config.ppo import PPOConfig
from agentalign.environments.task import Task
from agentalign.environments.team_code import Pool
from agentalign.errors import AgentAlignError, DataError
from agentalign.recipes.agenda import agenda, draw_weights
from agentalign.recipes.data import RunData, end_rewards, whole
from agentalign.recipes.experience import POLICY, REWARD, Experience, gather, lesson
from agentalign.recipes.standing import Past, by_checks, kind_of
from agentalign.recipes.token_notes import note_experience
from agentalign.recipes.workspace import Workspace
from agentalign.records.adapter import AdapterCard
from agentalign.records.criterion import SUCCESS, Criterion, Score, checks_decide, overall
from agentalign.records.trajectory import StopReason, Trajectory
from agentalign.rollouts.policy import LocalPolicy
from agentalign.rollouts.rollout import Job, RolloutResult, rollout
from agentalign.scoring.score import score_trajectories
from agentalign.store.filters import RunFilter
from agentalign.training import ranks
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.model import Model
from agentalign.training.render import Rendered, render

logger = logging.getLogger("agentalign")
OVERALL = "overall"
"""What a reward model learns where its settings name no criterion."""
SETTLED = 0.1
"""Runs of a task whose rewards differ by less teach little: their advantages, and with them the step, would be next to nothing."""


class Acting:
    """The policy at work, one iteration after the other. Owns nothing but the newest figures."""

    def __init__(
        self, model: Model, work: Workspace, pool: Pool, config: PPOConfig, reward: AdapterCard, past: Mapping[str, Past], training: str
    ) -> None:
        self.model, self.work, self.pool, self.config, self.reward, self.training = model, work, pool, config, reward, training
        self.tasks = work.taskset.tasks("train")
        self.past = past
        self.answered = answered(work.taskset.criteria, reward)
        self.by_checks = mostly_checks(work.taskset.criteria, self.answered)
        self.figures: dict[str, float] = {}
        self.share = 1.0
        """Weight of the policy's term: of the newest iteration's sampled tokens those of open tasks, where these alone are learned from."""
        if not self.tasks:
            raise DataError(f"taskset '{work.taskset.name}' has no train tasks to act out; PPO needs some. Use dpo on imported runs.")
        self.agenda = agenda(
            draw_weights(self.tasks, past),
            [(task.family, task.branch) for task in self.tasks],
            iterations=config.iterations,
            per_iteration=config.tasks_per_iteration,
            seed=config.seed,
        )

    def experience(self, iteration: int) -> list[Experience]:
        """Act, score, and make advantages of the tasks that went differently; runs whose worth cannot be known are left out and counted.

        A task that every sample won, or none, has advantages of next to nothing and would only cost time (DAPO's dynamic sampling,
        arXiv:2503.14476, without drawing others for it): it counts in the reward's figures and is not learned from, by the critic
        neither. Where the checks have most of the weight, what the reward model alone says of runs that they hold for equal is left aside
        with it; where people have, runs are equal by the whole value. What is left out must not lend its weight to the rest: `share` says
        how much is left. With too few open runs for the steps all are kept; where none is open, nothing but the anchor moves the policy.
        """
        model, config = self.model, self.config
        tasks = self._tasks(iteration)
        everyone = self._acted_out(tasks, iteration)
        place = {task.id: index for index, task in enumerate(tasks)}
        results = sorted((result for some, _ in everyone for result in some), key=lambda result: place[result.trajectory.task_id or ""])
        scores = [score for _, some in everyone for score in some]
        runs = [result.trajectory for result in results]
        ranks.first(lambda: self.work.keep(results, scores))
        tokens = {result.trajectory.id: result.tokens for result in results}
        usable: list[tuple[Trajectory, Rendered]] = []
        for run in runs:
            try:
                if run.stop_reason != StopReason.ERROR:
                    usable.append((run, render(run, model.dialect, tokens=tokens[run.id], max_tokens=config.max_tokens)))
            except AgentAlignError as error:
                logger.warning("left out of iteration %d: %s", iteration, error)
        values = self.rewards([run for run, _ in usable], [rendered for _, rendered in usable], scores)
        known = [(rendered, value) for (_, rendered), value in zip(usable, values, strict=True) if value is not None]
        kept = [run for (run, _), value in zip(usable, values, strict=True) if value is not None]
        groups = [run.task_id or run.id for run in kept]
        worth = [value for _, value in known]
        checked = by_checks(self.work.taskset.criteria, scores) if self.by_checks else {}
        judged = [checked.get(run.id, value) for run, value in zip(kept, worth, strict=True)]
        open_ones = unsettled(judged, groups, alone=config.samples_per_task == 1)
        chosen = open_ones if len(open_ones) >= config.num_mini_batches else list(range(len(known)))
        sizes = [rendered.n_trainable for rendered, _ in known]
        # Kept beside the open ones, settled runs add next to nothing to the sum over all.
        self.share = float(bool(open_ones)) if chosen is not open_ones else sum(sizes[i] for i in chosen) / max(1, sum(sizes))
        found = gather(model, [known[i][0] for i in chosen], [worth[i] for i in chosen], [groups[i] for i in chosen], config)
        written = [sum(len(turn.completion) for turn in record.turns) for record in tokens.values() if record]
        ranks.first(lambda: note_experience(self.work.project.trainings / self.training, iteration, found))
        self._say(iteration, runs, worth, found, scores, _mean(written))
        return found

    def _acted_out(self, tasks: Sequence[Task], iteration: int) -> list[tuple[list[RolloutResult], list[Score]]]:
        """Each process's share of the runs; of a base in shards every turn is everybody's, and the first one has all runs."""

        def acted(some: Sequence[Task]) -> tuple[list[RolloutResult], list[Score]]:
            config = self.config
            jobs = [Job(task, sample) for task in some for sample in range(config.samples_per_task)]
            name, seed = f"{self.training}/{iteration}", seed_of(config, iteration)
            return act(self.model, self.work, self.pool, jobs, name=name, config=config, seed=seed)

        if ranks.sharded():
            return [ranks.first(lambda: acted(tasks))]
        return ranks.gathered(acted(tasks[ranks.rank() :: ranks.world()]))

    def rewards(self, runs: Sequence[Trajectory], rendered: Sequence[Rendered], scores: Sequence[Score]) -> list[float | None]:
        """Overall value per run: the checks' scores, and the reward model's answer to every criterion that only people can answer."""
        by_run: dict[str, list[Score]] = {run.id: [] for run in runs}
        for score in scores:
            if score.trajectory in by_run:
                by_run[score.trajectory].append(score)
        units = self._reward_units(rendered) if self.answered else [0.0] * len(runs)
        for run, unit in zip(runs, units, strict=True):
            if not math.isfinite(unit):
                logger.warning("run %s: the reward model's answer is no number, so its worth is not known", run.id)
                continue
            for criterion in self.answered:
                low, high = criterion.scale
                value = low + (high - low) * (unit if criterion.higher_is_better else 1 - unit)
                by_run[run.id].append(
                    Score(trajectory=run.id, criterion=criterion.key, value=value, rater=self.reward.ref, rater_kind="reward_model")
                )
        known = zip(runs, units, strict=True)
        return [overall(self.work.taskset.criteria, by_run[run.id]) if math.isfinite(unit) else None for run, unit in known]

    def lessons(self, runs: Sequence[Trajectory], data: RunData) -> list[Experience]:
        """Stored scored runs as the critic's first lessons."""
        scores = self.work.store.scores([run.id for run in runs])
        rendered = [data.rendered[run.id] for run in runs]
        values = self.rewards(runs, rendered, scores)
        return [lesson(one, value, self.config) for one, value in zip(rendered, values, strict=True) if value is not None]

    def _reward_units(self, rendered: Sequence[Rendered]) -> list[float]:
        """The reward model's opinion on [0, 1]."""
        rewards = end_rewards(self.model, REWARD, [whole(run) for run in rendered], max_tokens=self.config.micro_batch_tokens)
        return reward_units(rewards, self.reward.metrics.get("reward_mean", 0.0), self.reward.metrics.get("reward_sd", 1.0))

    def made(self, iterations: int) -> int:
        """Runs made in the first so many iterations, by whichever process: one that goes on has seen its own ones only."""
        return sum(len(self._tasks(iteration)) for iteration in range(iterations)) * self.config.samples_per_task

    def _tasks(self, iteration: int) -> list[Task]:
        return [self.tasks[index] for index in self.agenda[iteration]]

    def _say(
        self,
        iteration: int,
        made: Sequence[Trajectory],
        worth: Sequence[float],
        found: Sequence[Experience],
        scores: Sequence[Score],
        written: float,
    ) -> None:
        success = [s.value for s in scores if s.criterion.startswith(f"{SUCCESS}@") and s.value is not None]
        gaps = [float((e.old_logprobs - _sampled(e)).abs().mean()) for e in found if len(_sampled(e)) == len(e.old_logprobs)]
        figures = {
            "reward/mean": _mean(worth),
            "reward/gain": self._gain(made, scores),
            "reward/rise": self._rise(iteration, made, scores),
            "success/train": _mean(success),
            "kl": _mean([float((e.old_logprobs - e.reference_logprobs).sum()) for e in found]),
            "usable": float(len(worth)),
            "learned": float(len(found)),
            "tokens_per_run": written,
            "sampler_gap": _mean(gaps),
            "explained_variance": _explained(found),
        }
        text = (
            "iteration %d: %d runs, %d usable, %d learned from, reward %.3f, %+.3f against the start's own runs of the same kinds of task, "
            "success %.3f, kl %.3f nats per run, sampler off by %.3f nats per token"
        )
        shown = ("reward/mean", "reward/gain", "success/train", "kl", "sampler_gap")
        logger.info(text, iteration, len(made), len(worth), len(found), *(figures[name] for name in shown))
        self.figures = {name: value for name, value in figures.items() if math.isfinite(value)}

    def _gain(self, made: Sequence[Trajectory], scores: Sequence[Score]) -> float:
        """How much more the checks gave these runs than the start's own runs of the same kinds of task: comparable between iterations.

        The plain mean is not: every iteration draws other tasks, and how hard they are moves it more than learning does.
        """
        kinds = {task.id: kind_of(task) for task in self.tasks}
        known = [(kinds.get(task, ""), value) for task, value in self._worth(made, scores)]
        return _mean([value - self.past[kind].mean for kind, value in known if kind in self.past])

    def _rise(self, iteration: int, made: Sequence[Trajectory], scores: Sequence[Score]) -> float:
        """How much more the checks gave these runs than this training's own first runs of the very same tasks; NaN on a first visit."""
        store, first = self.work.store, iteration - -(-self.config.iterations // 2)
        if first < 0:
            return math.nan
        before = list(store.trajectories(RunFilter(policy=f"{self.training}/{first}")))
        earlier: dict[str, list[float]] = {}
        for task, value in self._worth(before, store.scores([run.id for run in before])):
            earlier.setdefault(task, []).append(value)
        return _mean([value - _mean(earlier[task]) for task, value in self._worth(made, scores) if task in earlier])

    def _worth(self, runs: Sequence[Trajectory], scores: Sequence[Score]) -> list[tuple[str, float]]:
        """(task, overall value by the checks) of every run where both are known."""
        values = by_checks(self.work.taskset.criteria, scores)
        return [(run.task_id, values[run.id]) for run in runs if run.task_id and run.id in values]


def reward_units(rewards: Sequence[float], mean: float, deviation: float) -> list[float]:
    """Rewards on [0, 1]: 0.5 is the mean of the runs that the model was made from; NaN where one is no finite number."""
    # exp overflows far from the mean, and a sigmoid is flat there anyway; min and max would make a number of NaN.
    far = [(reward - mean) / deviation for reward in rewards]
    return [1 / (1 + math.exp(-max(-30.0, min(30.0, one)))) if math.isfinite(one) else math.nan for one in far]


def act(
    model: Model, work: Workspace, pool: Pool, jobs: Sequence[Job], *, name: str, config: PPOConfig, seed: int
) -> tuple[list[RolloutResult], list[Score]]:
    """Runs of the policy as it is now, at PPO's temperature, and what the checks say of them.

    Args:
        name: who the runs say made them.
        seed: of every token that is drawn.
    """
    policy = LocalPolicy(adapter_generator(model, POLICY), model.dialect, name=name, temperature=config.temperature, seed=seed)
    made = list(rollout(work.taskset, policy, jobs, seed=seed, pool=pool))
    return made, score_trajectories(work.taskset, [result.trajectory for result in made], pool=pool)


def learned_criterion(reward: AdapterCard) -> str:
    """Whose preferences a reward model learned: "overall", or a criterion's "name@version"."""
    return str(json.loads(reward.config).get("criterion", OVERALL))


def answered(criteria: Sequence[Criterion], reward: AdapterCard) -> list[Criterion]:
    """What the reward model answers: criteria of whole runs that only people or judges can; one alone where it learned that alone."""
    learned = learned_criterion(reward)
    open_ones = [one for one in criteria if one.kind != "check" and one.level == "trajectory" and not one.gate]
    return [one for one in open_ones if learned in (OVERALL, one.key)]


def require_worth(criteria: Sequence[Criterion], reward: AdapterCard) -> None:
    """DataError where the reward model's criterion is not in force, or neither it nor a check gives a run a value."""
    learned = learned_criterion(reward)
    by_model = answered(criteria, reward)
    if learned != OVERALL and not by_model:
        theirs = ", ".join(one.key for one in criteria if one.kind != "check") or "none"
        raise DataError(
            f"reward model {reward.ref} learned {learned}, which no criterion about whole runs answers to that is in force and left to "
            f"people (of people's there are: {theirs}). Train one on what is in force, or name another: reward:."
        )
    if not by_model and not checks_decide(criteria):
        raise DataError(
            "the checks alone do not say what a run is worth, and no criterion is left to the reward model: no run would have a value. "
            "See criteria.yaml."
        )


def mostly_checks(criteria: Sequence[Criterion], by_model: Sequence[Criterion]) -> bool:
    """Whether the checks have at least as much weight as what the reward model answers."""
    return sum(one.weight for one in criteria if one.kind == "check" and not one.gate) >= sum(one.weight for one in by_model)


def seed_of(config: PPOConfig, iteration: int) -> int:
    """Draws an iteration's tokens."""
    return config.seed * 1_000_003 + iteration


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _explained(found: Sequence[Experience]) -> float:
    """Share of the returns' variance that the critic knew before this iteration's update; 1 is perfect, 0 a constant, below 0 harm."""
    if not found:
        return float("nan")
    returns, values = (np.concatenate([getattr(e, name) for e in found]) for name in ("returns", "values"))
    return float(1 - np.var(returns - values) / max(1e-8, float(np.var(returns))))


def _sampled(experience: Experience) -> Tensor:
    """(M,) what the sampler recorded: bf16, one token at a time; the training path never uses it as a denominator."""
    return torch.tensor([logprob for turn in experience.run.turns for logprob in turn.logprobs])


def unsettled(rewards: Sequence[float], groups: Sequence[str], *, alone: bool = False) -> list[int]:
    """Indices of the runs whose task went differently from run to run.

    Args:
        rewards: (N,).
        groups: (N,) task of each run.
        alone: a task with one run is open too: only the critic knows what to expect of it.
    """
    by_task: dict[str, list[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        by_task.setdefault(group, []).append(reward)
    open_tasks = {group for group, found in by_task.items() if (alone and len(found) == 1) or max(found) - min(found) >= SETTLED}
    return [index for index, group in enumerate(groups) if group in open_tasks]
