"""Reward model: tell better runs, or steps, from worse ones.

One scalar read at the last token the agent wrote, Bradley-Terry over every ordered pair of a preference (a ranking of K is one item of
a batch and K runs in one tree), optionally squared error against absolute overall values. It starts from the policy's adapter, which
has read such runs before. Left out on purpose: ensembles and per-criterion heads.
"""

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.errors import DataError
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import Part, RunData, end_rewards, render_runs, token_stats, up_to_step
from agentalign.recipes.dry_run import DryRun, estimate
from agentalign.recipes.plan import quarter
from agentalign.recipes.preferences import choose_preferences, net_order, rank_of, settled
from agentalign.recipes.start import resolve_start
from agentalign.recipes.workspace import Workspace, open_workspace
from agentalign.records.adapter import Training
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.training.batches import step_items, steps_for
from agentalign.training.dialect import Dialect
from agentalign.training.engine import train
from agentalign.training.losses import reward_pair_loss, reward_regression_loss
from agentalign.training.model import Model
from agentalign.training.schedule import Plan
from agentalign.training.step import Evaluated, Learner, LossTerms, MicroBatch, Pass, Term
from agentalign.training.tree import build_tree, pack

ADAPTER = HEAD = "reward"
SCALED = 128
"""Runs, or beginnings of runs, that the rewards' mean and deviation are taken from: the deviation is known within about 6 %."""


@dataclass(frozen=True)
class Ranked:
    """A preference as parts, best first."""

    parts: tuple[Part, ...]
    targets: tuple[float, ...]
    """Overall value of each on [0, 1]; NaN where there is none."""
    strength: float
    trajectories: tuple[str, ...]
    task: str
    source: str


@dataclass(frozen=True)
class RankedRows:
    """Rows of a tree: every ordered pair, and absolute targets."""

    better: Tensor
    worse: Tensor
    strength: Tensor
    targets: Tensor


def run(config: RewardConfig, project: Project, *, dry_run: bool = False) -> Training | DryRun:
    """Train a reward model on preferences, or say what would be done."""
    # load
    with open_workspace(config, project) as work:
        config, parent = resolve_start(work, config, "reward")
        # data
        preferences, runs, about = _trained_on(work, config)
        data = render_runs(list(runs.values()), work.store, Dialect.load(work.base), config)
        learn, held = split_by_task(rank(settled(preferences, runs), runs, data, about.labels), config)
        total = config.max_steps or steps_for(len(learn), batch_size=config.batch_size, epochs=config.num_train_epochs)
        if dry_run:
            return _dry_run(work, config, data, learn, total, about)
        training, folder = work.begin("reward", config, about)
        if training.status == "done":
            return training
        with work.recording(training, config.report_to) as report:
            # model
            model = Model.load(work.base, quantization=config.quantization, gradient_checkpointing=config.gradient_checkpointing)
            model.load_adapter(ADAPTER, parent, trainable=True)
            model.add_head(HEAD, 1)

            # loss
            def steps(start: int) -> Iterator[Sequence[Pass]]:
                for step in range(start, total):
                    chosen = [learn[i] for i in step_items(len(learn), batch_size=config.batch_size, seed=config.seed, step=step)]
                    yield [Pass(ADAPTER, partial(ranked_batches, chosen), lambda model, micro: ranked_loss(model, micro, config))]

            # train
            plan = Plan(
                total_steps=total,
                schedule=config.lr_scheduler_type,
                warmup_steps=config.warmup_steps,
                max_grad_norm=config.max_grad_norm,
                eval_every_steps=quarter(config.eval_every_steps, total),
                save_every_steps=config.save_every_steps,
                micro_batch_tokens=config.micro_batch_tokens,
                nan_policy=config.nan_policy,
                # A head of zeros puts half of the pairs right, and is no result to go back to.
                eval_at_start=False,
            )
            learner = Learner(ADAPTER, (HEAD,), config.learning_rate, head_rate=10 * config.learning_rate)
            outcome = train(
                model, [learner], steps, plan, folder=folder, report=report, evaluate=lambda *_: held_out_accuracy(model, held, config)
            )
            # save
            metrics = {**held_out_accuracy(model, held, config).metrics, **reward_scale(model, [*learn, *held], config)}
            counts = Counter(f"preferences/{r.source}" for r in learn) + Counter({"held out": len(held)})
            return work.publish(
                training,
                folder,
                model,
                ADAPTER,
                kind="reward",
                parents=[config.start or ""],
                counts=dict(counts),
                outcome=outcome,
                heads=(HEAD,),
                metrics=metrics,
            )


def _trained_on(work: Workspace, config: RewardConfig) -> tuple[list[Preference], dict[str, Trajectory], TrainedOn]:
    """The preferences that this training is about, the runs of all there are, and what it is about as a whole."""
    preferences, runs = choose_preferences(work, config.criterion)
    values = work.overalls(list(runs.values())) if config.regression_coefficient else {}
    targets = {run: value for run, value in values.items() if value is not None}
    about = work.frozen("reward", config, TrainedOn([p.id for p in preferences], targets))
    begun = set(about.ids)
    return [p for p in preferences if p.id in begun], runs, about


def rank(preferences: Sequence[Preference], runs: dict[str, Trajectory], data: RunData, values: Mapping[str, float | None]) -> list[Ranked]:
    """Preferences whose items were all rendered, as parts; words on the same parts once, as they come to together."""
    found: dict[frozenset[Part], list[tuple[int, Ranked]]] = {}
    for preference in preferences:
        if any(item.trajectory not in data.rendered for item in preference.items):
            continue
        parts = tuple(up_to_step(data.rendered[item.trajectory], item.step) for item in preference.items)
        ids = tuple(item.trajectory for item in preference.items)
        absolute = [values.get(item.trajectory) if item.step is None else None for item in preference.items]
        targets = tuple(float("nan") if value is None else value for value in absolute)
        strength = preference.strength if preference.decided else 0.0
        ranked = Ranked(parts, targets, strength, ids, runs[ids[0]].same_task_key(), preference.source)
        found.setdefault(frozenset(parts), []).append((rank_of(preference, runs), ranked))
    heard = [[ranked for rank, ranked in same if rank == max(rank for rank, _ in same)] for same in found.values()]
    return [one for same in heard if (one := _net(same)) is not None]


def _net(same: Sequence[Ranked]) -> Ranked | None:
    """What rankings of the same parts come to; None where they leave two even."""
    if len(same) == 1:
        return same[0] if same[0].strength else None
    order = net_order([(ranked.parts, ranked.strength) for ranked in same])
    if order is None:
        return None
    of_part = {part: (target, id) for r in reversed(same) for part, target, id in zip(r.parts, r.targets, r.trajectories, strict=True)}
    targets, ids = zip(*(of_part[part] for part in order[0]), strict=True)
    return replace(same[0], parts=order[0], targets=targets, strength=order[1], trajectories=ids)


def split_by_task(ranked: Sequence[Ranked], config: RewardConfig) -> tuple[list[Ranked], list[Ranked]]:
    """(to learn from, held out): whole tasks, or the accuracy would be one of memory.

    Raises:
        DataError: too few tasks.
    """
    tasks = sorted({r.task for r in ranked})
    random.Random(config.seed).shuffle(tasks)
    held = set(tasks[: max(1, round(config.heldout * len(tasks)))])
    learn = [r for r in ranked if r.task not in held]
    if not learn:
        raise DataError(
            f"{len(ranked)} preferences over {len(tasks)} task(s) are too few to train a reward model and to "
            "measure it; compare runs of more tasks."
        )
    return learn, [r for r in ranked if r.task in held]


def ranked_batches(ranked: Sequence[Ranked], max_tokens: int) -> list[MicroBatch]:
    """Preferences packed whole."""
    return [_micro(members) for members in pack(ranked, max_tokens=max_tokens, runs_of=lambda r: r.parts)]


def _micro(members: Sequence[Ranked]) -> MicroBatch:
    better, worse, strength, start = [], [], [], 0
    for member in members:
        for high, low in itertools.combinations(range(len(member.parts)), 2):
            better.append(start + high)
            worse.append(start + low)
            strength.append(member.strength)
        start += len(member.parts)
    targets = torch.tensor([value for member in members for value in member.targets])
    rows = RankedRows(torch.tensor(better), torch.tensor(worse), torch.tensor(strength), targets)
    counts = {"reward": float(len(better)), "regression": float(targets.isfinite().sum())}
    tree = build_tree([part for member in members for part in member.parts])
    return MicroBatch(tree, counts, rows, tuple(i for member in members for i in member.trajectories))


def ranked_loss(model: Model, micro: MicroBatch, config: RewardConfig) -> LossTerms:
    """Bradley-Terry per ordered pair, and regression on what has an absolute value."""
    rows: RankedRows = micro.data
    rewards = model.apply_head(HEAD, model.hidden(micro.tree)[micro.tree.run_end]).squeeze(1)
    losses, metrics = reward_pair_loss(
        rewards[rows.better], rewards[rows.worse], strength=rows.strength.to(rewards), centering=config.centering
    )
    terms = {"reward": Term(losses)}
    known = rows.targets.isfinite()
    if config.regression_coefficient and bool(known.any()):
        errors = reward_regression_loss(torch.sigmoid(rewards[known]), rows.targets[known].to(rewards))
        terms["regression"] = Term(errors, config.regression_coefficient)
    return LossTerms(terms, metrics)


def held_out_accuracy(model: Model, held: Sequence[Ranked], config: RewardConfig) -> Evaluated:
    """Share of held-out ordered pairs that the model puts right, and the mean margin; ties count half.

    The best checkpoint is chosen by it, so the published figure is somewhat optimistic.
    """
    gaps = [high - low for rewards in _rewards(model, held, config) for high, low in itertools.combinations(rewards, 2)]
    accuracy = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps)
    return Evaluated(accuracy, {"accuracy": accuracy, "margin": sum(gaps) / len(gaps), "pairs": float(len(gaps))})


def reward_scale(model: Model, ranked: Sequence[Ranked], config: RewardConfig) -> dict[str, float]:
    """Mean and deviation over what it was made from: PPO maps rewards to [0, 1] with them.

    Over so many as tell them within a few percent, drawn by the seed.
    """
    times = Counter(part for member in ranked for part in member.parts)
    parts = random.Random(config.seed).sample(list(times), min(SCALED, len(times)))
    values = end_rewards(model, ADAPTER, parts, max_tokens=config.micro_batch_tokens)
    rewards = [value for part, value in zip(parts, values, strict=True) for _ in range(times[part])]
    return {"reward_mean": statistics.fmean(rewards), "reward_sd": max(1e-3, statistics.pstdev(rewards))}


def _rewards(model: Model, ranked: Sequence[Ranked], config: RewardConfig) -> list[list[float]]:
    flat = iter(end_rewards(model, ADAPTER, [part for member in ranked for part in member.parts], max_tokens=config.micro_batch_tokens))
    return [list(itertools.islice(flat, len(member.parts))) for member in ranked]


def _dry_run(work: Workspace, config: RewardConfig, data: RunData, learn: Sequence[Ranked], total: int, about: TrainedOn) -> DryRun:
    stats = token_stats(list(data.rendered.values()), batch_size=config.batch_size)
    seconds, memory = estimate(
        work.base,
        stats,
        steps=total,
        batch_size=2 * config.batch_size,
        quantization=config.quantization,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    return DryRun(
        "reward", {"preferences": len(learn)}, stats, data.refused, total, seconds, memory, work.planned("reward", config, about), about
    )
