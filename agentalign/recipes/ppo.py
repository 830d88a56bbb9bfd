"""Proximal policy optimization on tool-calling runs: act, be scored, move towards what went better than expected.

Four adapters of one quantized base: the policy; the reference, a frozen copy of where it started, whose divergence is priced in the
reward; the reward model, which answers the criteria that only people can, beside the checks that answer theirs, through `overall`; and
the critic, which starts as the reward model, learns returns before the policy moves, and is corrected at every state by what the other
runs that came through it were worth. A turn is the action: advantages are per turn, loss is on the agent's own tokens. Left out on
purpose: token-level GAE, whitening of rewards or advantages, and an entropy bonus.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from agentalign.config.ppo import PPOConfig
from agentalign.config.project import Project
from agentalign.environments.task import Task
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError
from agentalign.recipes.acting import OVERALL, Acting, act, learned_criterion, require_worth, seed_of
from agentalign.recipes.begun import TrainedOn, kept, write_whole
from agentalign.recipes.data import RunData, by_kind, render_runs, token_stats
from agentalign.recipes.dev_gate import dev_gate, require_gate
from agentalign.recipes.dry_run import DryRun, acting_copy, estimate
from agentalign.recipes.experience import (
    CRITIC,
    POLICY,
    REFERENCE,
    REWARD,
    Experience,
    critic_batches,
    policy_batches,
    policy_loss,
    value_loss,
)
from agentalign.recipes.plan import quarter
from agentalign.recipes.standing import Act, standing, to_look_at
from agentalign.recipes.start import resolve_adapter, resolve_start
from agentalign.recipes.workspace import Workspace, open_workspace
from agentalign.records.adapter import Training
from agentalign.records.base import digest
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Trajectory
from agentalign.rollouts.rollout import Job
from agentalign.store.filters import RunFilter
from agentalign.training import ranks
from agentalign.training.batches import epoch_order, even_items, step_items
from agentalign.training.checkpoint import load_checkpoint
from agentalign.training.dialect import Dialect
from agentalign.training.engine import train
from agentalign.training.model import Model
from agentalign.training.render import Rendered
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner, Pass

logger = logging.getLogger("agentalign")
WARMUP_FILE = "warmup.json"
"""In a training's folder: steps that the critic was taught for before the first iteration."""


def run(config: PPOConfig, project: Project, *, dry_run: bool = False) -> Training | DryRun:
    """Train the policy against the reward, or say what would be done."""
    # load
    with open_workspace(config, project) as work:
        require_gate(config, work.taskset)
        config, parent = resolve_start(work, config, "ppo")
        card, reward_folder = resolve_adapter(work, config.reward or newest_reward(work), "reward")
        config = config.model_copy(update={"reward": card.ref})
        require_worth(work.taskset.criteria, card)
        # data
        past, replay_runs = past_runs(work), work.demonstrations()
        new = TrainedOn([run.id for run in (*past, *replay_runs)], rules=reward_rules(work.taskset.criteria, work.taskset.tasks("train")))
        begun = set(work.frozen("ppo", config, new).ids)
        past, replay_runs = ([run for run in some if run.id in begun] for some in (past, replay_runs))
        learned = [*past, *replay_runs]
        data = render_runs(learned, work.store, Dialect.load(work.base), config) if learned else RunData({}, [])
        about = new._replace(ids=[run.id for run in learned])
        if dry_run:
            return _dry_run(work, config, data, about)
        training, folder = work.begin("ppo", config, about)
        if training.status == "done":
            return training
        with work.recording(training, config.report_to) as report, WorkerPool(work.taskset) as pool:
            # model
            model = load_models(work, config, parent, reward_folder)
            look = first_look(model, work, pool, config, training.id)
            start = standing(work, config.start or "", look, folder / "past.json", most=most_looks(config), seed=config.seed)
            acting = Acting(model, work, pool, config, card, start, training.id)
            critic_steps = warm_critic(model, config, acting, data, past, folder)
            replay = by_kind(replay_runs, data.rendered, work.tasks()) if config.nll_coefficient else []

            # loss
            def steps(start: int) -> Iterator[Sequence[Pass]]:
                for iteration in range(start // config.num_mini_batches, config.iterations):
                    experience = acting.experience(iteration)
                    loss = partial(policy_loss, config=config, share=acting.share)
                    for part, runs in enumerate(_shares(experience, config, iteration)):
                        step = iteration * config.num_mini_batches + part
                        again = even_items(replay, batch_size=config.replay, seed=config.seed, step=step) if replay else []
                        policy = partial(policy_batches, runs, again)
                        learn = Pass(POLICY, policy, loss, acting.figures)
                        yield [learn, Pass(CRITIC, partial(critic_batches, runs), value_loss)]

            # train
            gate = dev_gate(model, POLICY, work, pool, config, training.id)
            outcome = train(model, learners(config), steps, plan_of(config), folder=folder, report=report, evaluate=gate, best_of=POLICY)
            # save
            return work.publish(
                training,
                folder,
                model,
                POLICY,
                kind="policy",
                pool=pool,
                parents=[config.start or "", card.ref],
                counts=_counts(acting, training.id, outcome.steps // config.num_mini_batches, critic_steps, replay),
                outcome=outcome,
            )


def _counts(acting: Acting, training: str, iterations: int, critic_steps: int, replay: Sequence[Sequence[Rendered]]) -> dict[str, int]:
    return {
        "rollouts": acting.made(iterations),
        "runs of the start": acting.work.store.count(RunFilter(policy=look_of(training))),
        "critic warm-up steps": critic_steps,
        "replay": sum(len(family) for family in replay),
    }


def newest_reward(work: Workspace) -> str:
    """The newest reward model that learned the overall value: one of a single criterion is for who names it."""
    name = work.adapter_name("reward")
    cards = work.registry.cards(name)
    whole = [card.ref for card in cards if learned_criterion(card) == OVERALL]
    if cards and not whole:
        raise DataError(
            f"every reward model of taskset '{work.taskset.name}' learned one criterion alone ({cards[-1].ref}: "
            f"{learned_criterion(cards[-1])}). Train one on the overall value (`agentalign train reward`), or name it in the settings: "
            f"reward: {cards[-1].ref}."
        )
    return whole[-1] if whole else name


def look_of(training: str) -> str:
    """What made the runs that a training acts out before its first iteration."""
    return f"{training}/start"


def most_looks(config: PPOConfig) -> int:
    """Runs that may be made before the first iteration: as many as two iterations make."""
    return 2 * config.tasks_per_iteration * config.samples_per_task


def first_look(model: Model, work: Workspace, pool: WorkerPool, config: PPOConfig, training: str) -> Act:
    """Lets the policy that PPO starts from act, and keeps its runs as made by "training/start"."""

    def look(jobs: Sequence[Job]) -> tuple[Sequence[Trajectory], Sequence[Score]]:
        logger.info("acting out %d tasks first, to see where the policy stands", len(jobs))
        # The seed after those of the iterations: the same task's run of an iteration would be the very same run.
        made, scores = act(model, work, pool, jobs, name=look_of(training), config=config, seed=seed_of(config, config.iterations))
        work.keep(made, scores)
        return [result.trajectory for result in made], scores

    return look


def past_runs(work: Workspace) -> list[Trajectory]:
    """Stored rollouts of train tasks that no PPO training made: the critic's first lesson."""
    trainings = {training.id for training in work.store.trainings(work.taskset.name) if training.recipe == "ppo"}
    return [r for r in work.train_runs(["rollout"]) if r.steps and r.origin.reference.split("/")[0] not in trainings]


def reward_rules(criteria: Sequence[Criterion], tasks: Sequence[Task]) -> JsonValue:
    """What of the criteria makes a number of a run, and the tasks to act out: under others it is another training."""
    read = {"name", "version", "level", "kind", "check", "scale", "higher_is_better", "weight", "gate", "gate_at"}
    acted = digest([task.model_dump(mode="json") for task in tasks])
    return [*(criterion.model_dump(mode="json", include=read) for criterion in criteria), acted]


def load_models(work: Workspace, config: PPOConfig, parent: Path, reward: Path) -> Model:
    """One base with policy, reference, reward and critic."""
    model = Model.load(work.base, quantization=config.quantization, gradient_checkpointing=config.gradient_checkpointing)
    model.load_adapter(POLICY, parent, trainable=True)
    model.copy_adapter(POLICY, REFERENCE, trainable=False)
    model.load_adapter(REWARD, reward)
    model.copy_adapter(REWARD, CRITIC, trainable=True)
    model.add_head(CRITIC, 1)
    return model


def learners(config: PPOConfig) -> list[Learner]:
    """Policy, and the critic with its head."""
    return [Learner(POLICY, learning_rate=config.learning_rate), critic(config)]


def critic(config: PPOConfig) -> Learner:
    """The critic alone."""
    return Learner(CRITIC, (CRITIC,), config.value_learning_rate, head_rate=10 * config.value_learning_rate)


def plan_of(config: PPOConfig) -> Plan:
    """Evaluations and checkpoints fall between iterations: inside one, the runs come from weights that are gone."""
    per = config.num_mini_batches
    return Plan(
        total_steps=config.iterations * per,
        schedule="constant",
        max_grad_norm=config.max_grad_norm,
        adam_eps=1e-5,
        eval_every_steps=quarter(config.eval_every_steps, config.iterations) * per,
        save_every_steps=min(config.save_every_steps, 1) * per,
        steps_together=per,
        micro_batch_tokens=config.micro_batch_tokens,
        nan_policy=config.nan_policy,
        max_drop=config.max_drop,
    )


def warm_critic(model: Model, config: PPOConfig, acting: Acting, data: RunData, past: Sequence[Trajectory], folder: Path) -> int:
    """Teach the critic before its advantages steer anything; says in how many steps, also where an interrupted training took them."""
    file = folder / WARMUP_FILE
    # An interrupted training's checkpoint holds a critic that has learned more since.
    if load_checkpoint(folder / "checkpoints") is None:
        steps = _teach_critic(model, config, acting, data, past, folder)
        ranks.first(lambda: write_whole(file, steps))
    return ranks.first(lambda: kept(file, lambda: config.critic_warmup_steps))


def _teach_critic(model: Model, config: PPOConfig, acting: Acting, data: RunData, past: Sequence[Trajectory], folder: Path) -> int:
    """The returns of stored runs, in a training of its own."""
    runs = [r for r in past if r.id in data.rendered]
    size = config.tasks_per_iteration * config.samples_per_task // 2
    wanted = epoch_order(len(runs), seed=config.seed, epoch=0)[: config.critic_warmup_steps * size]
    lessons = acting.lessons([runs[i] for i in wanted], data) if wanted else []
    # A head of zeros would spend the warm-up on the way to the mean.
    if known := [value for one in lessons for value in one.returns] or [one.mean for one in acting.past.values()]:
        model.heads[CRITIC].load_state_dict({"bias": torch.tensor([np.mean(known)])}, strict=False)
    if not config.critic_warmup_steps:
        return 0
    if not lessons:
        logger.warning("no stored scored runs to teach the critic: the first advantages will be rough")
        return 0

    def steps(start: int) -> Iterator[Sequence[Pass]]:
        for step in range(start, config.critic_warmup_steps):
            chosen = [lessons[i] for i in step_items(len(lessons), batch_size=min(size, len(lessons)), seed=config.seed, step=step)]
            yield [Pass(CRITIC, partial(critic_batches, chosen), value_loss)]

    plan = Plan(total_steps=config.critic_warmup_steps, schedule="constant", micro_batch_tokens=config.micro_batch_tokens)
    train(model, [critic(config)], steps, plan, folder=folder / "critic")
    return config.critic_warmup_steps


def _shares(experience: Sequence[Experience], config: PPOConfig, iteration: int) -> list[list[Experience]]:
    """The iteration's runs in equal shares for one optimizer step each: every task's runs in turn to each, by what they were worth.

    From the worst to the best of one task, from the best to the worst of the next: else the first step would have the worse half of every
    task, and only lower what it has, and the last only raise.
    """
    by_task: dict[tuple[int, ...], list[int]] = {}
    for index in epoch_order(len(experience), seed=config.seed, epoch=iteration):
        by_task.setdefault(tuple(experience[index].part.turns[0].context), []).append(index)
    order = [
        index
        for number, some in enumerate(by_task.values())
        for index in sorted(some, key=lambda index: experience[index].reward, reverse=number % 2 == 1)
    ]
    shares = [[experience[i] for i in order[part :: config.num_mini_batches]] for part in range(config.num_mini_batches)]
    if not all(shares):
        raise DataError(
            f"iteration {iteration} left {len(experience)} usable runs, too few for {config.num_mini_batches} mini-batches; look at its "
            "runs, or lower num_mini_batches."
        )
    return shares


def _dry_run(work: Workspace, config: PPOConfig, data: RunData, about: TrainedOn) -> DryRun:
    stats = token_stats(list(data.rendered.values()), batch_size=config.samples_per_task)
    runs = config.tasks_per_iteration * config.samples_per_task
    # Forward passes of reference, old policy, reward and critic, and two updates: about 3.3 updates' worth per run.
    seconds, memory = estimate(
        work.base,
        stats,
        steps=config.iterations,
        batch_size=round(3.3 * runs),
        quantization=config.quantization,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    _, looks = to_look_at(work, config.start or "", most=most_looks(config), seed=config.seed)
    items = {"train tasks": len(work.taskset.tasks("train")), "runs to see where it stands": len(looks)}
    items |= {"runs to make": runs * config.iterations, "past runs": len(data.rendered)}
    return DryRun(
        "ppo",
        items,
        stats,
        data.refused,
        config.iterations * config.num_mini_batches,
        seconds,
        memory,
        work.planned("ppo", config, about),
        about,
        copy_gb=acting_copy(work.base),
    )
