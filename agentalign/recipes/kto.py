"""Kahneman-Tversky optimization: learn from runs that are good or bad by themselves.

Where a team rates runs that were recorded once each, there is nothing to pair; every good run is made likelier than the reference
makes it and every bad one less likely, measured from how far the policy has moved on the whole (an estimate from contexts with another
run's words, made before each step without gradients). Good and bad runs come as often, and an anchor of replayed runs holds the
policy. Left out on purpose: values between good and bad, which the reward model and PPO use.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from agentalign.config.kto import KTOConfig
from agentalign.config.project import Project
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import Part, RunData, Turn, by_kind, fixed_logprobs, render_runs, token_stats, whole
from agentalign.recipes.dev_gate import dev_gate, require_gate
from agentalign.recipes.dry_run import DryRun, acting_copy, estimate
from agentalign.recipes.plan import plan_for
from agentalign.recipes.start import resolve_start
from agentalign.recipes.workspace import Workspace, open_workspace
from agentalign.records.adapter import Training
from agentalign.records.trajectory import Trajectory
from agentalign.training.batches import even_items, step_items, steps_for
from agentalign.training.dialect import Dialect
from agentalign.training.engine import train
from agentalign.training.losses import kto_loss, nll_loss
from agentalign.training.model import Model
from agentalign.training.render import Rendered
from agentalign.training.step import Learner, LossTerms, MicroBatch, Pass, Term
from agentalign.training.tree import build_tree, pack

ADAPTER, REFERENCE = "policy", "reference"


@dataclass(frozen=True)
class Rated:
    """A run that is good or bad."""

    part: Part
    desirable: bool
    trajectory: str
    reference: float = 0.0
    """Summed log-probability under the start policy."""


@dataclass(frozen=True)
class RatedRows:
    """Rated runs first, replayed ones behind them."""

    desirable: torch.Tensor
    reference: torch.Tensor
    anchors: torch.Tensor
    """Rows under the anchor: good runs and replayed ones."""
    kl: float
    """How far the policy has moved, in nats a run; 0 or more."""


def run(config: KTOConfig, project: Project, *, dry_run: bool = False) -> Training | DryRun:
    """Train an adapter on good and bad runs, or say what would be done."""
    # load
    with open_workspace(config, project) as work:
        require_gate(config, work.taskset)
        config, parent = resolve_start(work, config, "kto")
        # data
        runs, values = choose_runs(work, config)
        replay_runs = work.demonstrations() if config.replay and config.nll_coefficient else []
        both = {run.id: run for run in (*runs, *replay_runs)}
        is_good = {run.id: values[run.id] >= config.good for run in runs}
        about = work.frozen("kto", config, TrainedOn([run.id for run in (*runs, *replay_runs)], is_good))
        # Rated runs first, each with its label; a run may be replayed beside that.
        rated, replayed = about.ids[: len(about.labels)], about.ids[len(about.labels) :]
        replay_runs, both = [both[id] for id in replayed], {id: both[id] for id in about.ids}
        data = render_runs(list(both.values()), work.store, Dialect.load(work.base), config)
        replay = by_kind(replay_runs, data.rendered, work.tasks())
        good, bad = sides({id: about.labels[id] for id in rated}, data, config)
        total = config.max_steps or steps_for(2 * max(len(good), len(bad)), batch_size=config.batch_size, epochs=config.num_train_epochs)
        if dry_run:
            return _dry_run(work, config, data, good, bad, total, about)
        training, folder = work.begin("kto", config, about)
        if training.status == "done":
            return training
        with work.recording(training, config.report_to) as report, WorkerPool(work.taskset) as pool:
            # model
            model = Model.load(work.base, quantization=config.quantization, gradient_checkpointing=config.gradient_checkpointing)
            model.load_adapter(ADAPTER, parent, trainable=True)
            model.load_adapter(REFERENCE, parent)
            good, bad = with_reference(model, good, config, project.cache), with_reference(model, bad, config, project.cache)

            # loss
            def steps(start: int) -> Iterator[Sequence[Pass]]:
                for step in range(start, total):
                    chosen = step_runs(good, bad, config, step)
                    again = even_items(replay, batch_size=config.replay, seed=config.seed + 1, step=step) if replay else []
                    kl = moved(model, chosen, config)
                    batches = partial(rated_batches, chosen, again, kl)
                    yield [Pass(ADAPTER, batches, lambda model, micro: rated_loss(model, micro, config), {"kl": kl})]

            # train
            gate = dev_gate(model, ADAPTER, work, pool, config, training.id)
            plan = plan_for(config, total, max_drop=config.max_drop)
            outcome = train(
                model, [Learner(ADAPTER, learning_rate=config.learning_rate)], steps, plan, folder=folder, report=report, evaluate=gate
            )
            # save
            counts = {"good": len(good), "bad": len(bad), "replay": sum(len(family) for family in replay)}
            return work.publish(
                training, folder, model, ADAPTER, kind="policy", pool=pool, parents=[config.start or ""], counts=counts, outcome=outcome
            )


def choose_runs(work: Workspace, config: KTOConfig) -> tuple[list[Trajectory], dict[str, float]]:
    """Rated runs of the chosen origins whose value is known, exact duplicates of one value once, and the values.

    Raises:
        DataError: there is none.
    """
    runs = [run for run in work.train_runs(config.origins) if run.steps]
    values = {name: value for name, value in work.overalls(runs).items() if value is not None}
    chosen = {(run.content_digest, values[run.id] >= config.good): run for run in reversed(runs) if run.id in values}
    if not chosen:
        raise DataError(
            f"none of the {len(runs)} runs of kind {', '.join(config.origins)} in taskset '{work.taskset.name}' has an overall value. Rate "
            f"runs in `agentalign ui`, or score them by the checks: `agentalign score {work.taskset.name}`."
        )
    return list(reversed(chosen.values())), values


def sides(is_good: Mapping[str, bool | float], data: RunData, config: KTOConfig) -> tuple[list[Rated], list[Rated]]:
    """(good, bad).

    Args:
        is_good: by run id.

    Raises:
        DataError: one side is empty.
    """
    rated = [Rated(whole(data.rendered[id].own), bool(good), id) for id, good in is_good.items() if id in data.rendered]
    good, bad = [one for one in rated if one.desirable], [one for one in rated if not one.desirable]
    if not good or not bad:
        raise DataError(
            f"{len(good)} good and {len(bad)} bad runs (overall value of {config.good:g} or more, and less): KTO needs both, or it could "
            "only push one way. Rate more runs, or set `good` between the values that there are."
        )
    return good, bad


def with_reference(model: Model, rated: Sequence[Rated], config: KTOConfig, cache: Path) -> list[Rated]:
    """The runs with the start policy's log-probabilities."""
    found = fixed_logprobs(model, REFERENCE, [one.part for one in rated], max_tokens=config.micro_batch_tokens, cache=cache / "logprobs")
    return [replace(one, reference=float(values.sum())) for one, values in zip(rated, found, strict=True)]


def step_runs(good: Sequence[Rated], bad: Sequence[Rated], config: KTOConfig, step: int) -> list[Rated]:
    """The runs of a step, half of them good."""
    half = config.batch_size // 2
    sizes = ((good, config.batch_size - half), (bad, half))
    return [side[i] for side, size in sizes for i in step_items(len(side), batch_size=size, seed=config.seed, step=step)]


def rated_batches(rated: Sequence[Rated], replay: Sequence[Rendered], kl: float, max_tokens: int) -> list[MicroBatch]:
    """Rated and replayed runs, packed."""
    found = []
    items: list[Rated | Part] = [*rated, *(whole(run) for run in replay)]
    for members in pack(items, max_tokens=max_tokens, runs_of=lambda item: [_part(item)]):
        inside = sorted(members, key=lambda item: not isinstance(item, Rated))
        some = [item for item in inside if isinstance(item, Rated)]
        rows = RatedRows(
            desirable=torch.tensor([one.desirable for one in some], dtype=torch.bool),
            reference=torch.tensor([one.reference for one in some]),
            anchors=torch.tensor([i for i, item in enumerate(inside) if not isinstance(item, Rated) or item.desirable], dtype=torch.long),
            kl=kl,
        )
        counts = {name: float(count) for name, count in (("kto", len(some)), ("nll", len(rows.anchors))) if count}
        found.append(MicroBatch(build_tree([_part(item) for item in inside]), counts, rows, tuple(one.trajectory for one in some)))
    return found


def _part(item: Rated | Part) -> Part:
    return item.part if isinstance(item, Rated) else item


def rated_loss(model: Model, micro: MicroBatch, config: KTOConfig) -> LossTerms:
    """KTO per rated run, and the summed negative log-likelihood of the anchors."""
    rows: RatedRows = micro.data
    sums = micro.tree.sum_by_run(model.token_logprobs(micro.tree))
    terms, metrics = {}, {}
    if "kto" in micro.counts:
        ratio, desirable = sums[: len(rows.desirable)] - rows.reference.to(sums), rows.desirable.to(sums.device)
        losses, _ = kto_loss(ratio, desirable, sums.new_tensor(rows.kl), beta=config.beta, undesirable_weight=config.undesirable_weight)
        terms["kto"] = Term(losses)
        rewards = config.beta * ratio.detach()
        metrics = {"rewards/chosen": rewards[desirable], "rewards/rejected": rewards[~desirable]}
    if "nll" in micro.counts:
        terms["nll"] = Term(nll_loss(sums[rows.anchors]), config.nll_coefficient)
    return LossTerms(terms, {name: values for name, values in metrics.items() if len(values)})


def moved(model: Model, chosen: Sequence[Rated], config: KTOConfig) -> float:
    """How much likelier, on average and never below 0, the policy makes what another run said than the start policy did.

    The estimate of KL(policy || reference) of arXiv:2402.01306, section 4.1: each context with the next run's words.
    """
    first = [one.part.turns[0] for one in chosen]
    mixed = [Part((Turn(a.context, b.completion),)) for a, b in zip(first, (*first[1:], first[0]), strict=True)]
    now, before = (fixed_logprobs(model, adapter, mixed, max_tokens=config.micro_batch_tokens) for adapter in (ADAPTER, REFERENCE))
    return max(0.0, sum(float((a - b).sum()) for a, b in zip(now, before, strict=True)) / len(mixed))


def _dry_run(
    work: Workspace, config: KTOConfig, data: RunData, good: Sequence[Rated], bad: Sequence[Rated], total: int, about: TrainedOn
) -> DryRun:
    stats = token_stats(list(data.rendered.values()), batch_size=config.batch_size)
    # Beside the step's own rows, each run's first turn is read twice without gradients: about one pass over them more.
    rows = config.batch_size + config.replay + config.batch_size // 2
    seconds, memory = estimate(
        work.base, stats, steps=total, batch_size=rows, quantization=config.quantization, micro_batch_tokens=config.micro_batch_tokens
    )
    items = {"good runs": len(good), "bad runs": len(bad)}
    return DryRun(
        "kto", items, stats, data.refused, total, seconds, memory, work.planned("kto", config, about), about, copy_gb=acting_copy(work.base)
    )
