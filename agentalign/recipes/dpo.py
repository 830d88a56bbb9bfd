"""Direct preference optimization on runs and steps, held by an anchor.

For each pair the policy is moved, against a frozen copy of where it started, towards what the better side wrote; tool results take no
part. By default only the first differing token of the differing turn is compared, and the better runs and replayed expert runs stand
under a summed negative log-likelihood: without both, twenty steps destroyed a policy while its pair accuracy rose to 0.9. Left out on
purpose: a second copy of the model for the reference (its log-probabilities are computed once, before the first step).
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from agentalign.config.dpo import DPOConfig
from agentalign.config.project import Project
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.compared import sides_of
from agentalign.recipes.contrast import Compared, contrasts, rendered_beside
from agentalign.recipes.data import Part, RunData, by_kind, fixed_logprobs, render_runs, token_stats, whole
from agentalign.recipes.dev_gate import dev_gate, require_gate
from agentalign.recipes.dry_run import DryRun, acting_copy, estimate
from agentalign.recipes.even_pairs import even_anchors, even_pairs
from agentalign.recipes.plan import plan_for
from agentalign.recipes.preferences import choose_preferences, net_order, rank_of, runs_of, settled
from agentalign.recipes.start import resolve_start
from agentalign.recipes.token_notes import note_pairs
from agentalign.recipes.workspace import GOOD, Workspace, open_workspace
from agentalign.records.adapter import Training
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.pairs import parting_step
from agentalign.training import ranks
from agentalign.training.batches import even_items, step_items, steps_for
from agentalign.training.dialect import Dialect
from agentalign.training.engine import train
from agentalign.training.losses import dpo_loss, ipo_loss, nll_loss
from agentalign.training.model import Model
from agentalign.training.render import Rendered
from agentalign.training.step import Learner, LossTerms, MicroBatch, Pass, Term
from agentalign.training.tree import build_tree, pack

logger = logging.getLogger("agentalign")
ADAPTER = "policy"
RULE = 3
"""Raised where the same data come to be learned from in another way: a training that was cut is not gone on with by another rule.

2: contrasts by places in lists, anchors of all sides of a judgement. 3: as many pairs of each side.
"""


@dataclass(frozen=True)
class Pair:
    """What one preference compares, and the reference's log-probability of each side."""

    chosen: Part
    rejected: Part
    strength: float
    trajectories: tuple[str, str]
    anchor: str | None
    """Run to hold on to: the better one, where it is good."""
    source: str
    reference: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class PairRows:
    """Which runs of a tree are what: pairs first (chosen, rejected), then anchors."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    strength: Tensor
    anchors: Tensor


def run(config: DPOConfig, project: Project, *, dry_run: bool = False) -> Training | DryRun:
    """Train an adapter on preferences, or say what would be done."""
    # load
    with open_workspace(config, project) as work:
        require_gate(config, work.taskset)
        config, parent = resolve_start(work, config, "dpo")
        # data
        preferences, runs = choose_preferences(work, config.criterion)
        replay_runs = work.demonstrations() if config.replay and config.nll_coefficient else []
        anchors = dict.fromkeys(sorted(good_runs(work, runs)), True) if config.nll_coefficient else {}
        about = work.frozen("dpo", config, TrainedOn([*(p.id for p in preferences), *(run.id for run in replay_runs)], anchors, RULE))
        begun = set(about.ids)
        preferences, replay_runs = [p for p in preferences if p.id in begun], [run for run in replay_runs if run.id in begun]
        data = render_runs([*runs.values(), *(r for r in replay_runs if r.id not in runs)], work.store, Dialect.load(work.base), config)
        replay = by_kind(replay_runs, data.rendered, work.tasks())
        pairs = make_pairs(settled(preferences, runs), runs, data, config, set(about.labels))
        if dry_run:
            pairs = even_pairs(pairs, runs, work.tasks(), config.seed)
            return _dry_run(work, config, data, [*pairs, *contrast_pairs(work, pairs, runs, replay_runs, data, config)], about)
        training, folder = work.begin("dpo", config, about)
        if training.status == "done":
            return training
        with work.recording(training, config.report_to) as report, WorkerPool(work.taskset) as pool:
            # model
            model = Model.load(work.base, quantization=config.quantization, gradient_checkpointing=config.gradient_checkpointing)
            model.load_adapter(ADAPTER, parent, trainable=True)
            cache = project.cache / "logprobs"
            pairs = even_pairs(with_reference(model, pairs, config, cache), runs, work.tasks(), config.seed)
            if more := contrast_pairs(work, pairs, runs, replay_runs, data, config):
                pairs += with_reference(model, more, config.model_copy(update={"min_reference_prob": 0.0}), cache)
            pairs = even_anchors(pairs, {run.id: run for run in (*runs.values(), *replay_runs)}, work.tasks(), config.seed)
            ranks.first(lambda: note_pairs(folder, pairs, data.rendered))
            counts = Counter(f"pairs/{pair.source}" for pair in pairs) + Counter({"replay": sum(len(family) for family in replay)})
            total = _total_steps(pairs, config)

            # loss
            def steps(start: int) -> Iterator[Sequence[Pass]]:
                for step in range(start, total):
                    chosen = [pairs[i] for i in step_items(len(pairs), batch_size=config.batch_size, seed=config.seed, step=step)]
                    again = even_items(replay, batch_size=config.replay, seed=config.seed + 1, step=step) if replay else []
                    batches = partial(pair_batches, chosen, again, data.rendered)
                    yield [Pass(ADAPTER, batches, lambda model, micro: pair_loss(model, micro, config))]

            # train
            gate = dev_gate(model, ADAPTER, work, pool, config, training.id)
            plan = plan_for(config, total, max_drop=config.max_drop)
            outcome = train(
                model, [Learner(ADAPTER, learning_rate=config.learning_rate)], steps, plan, folder=folder, report=report, evaluate=gate
            )
            # save
            parents = [config.start or ""]
            return work.publish(
                training, folder, model, ADAPTER, kind="policy", pool=pool, parents=parents, counts=dict(counts), outcome=outcome
            )


def good_runs(work: Workspace, runs: Mapping[str, Trajectory]) -> set[str]:
    """Ids of the runs that may be learned from as they are: valued so, or unscored and of a maker who is trusted."""
    values = work.overalls(list(runs.values()))
    trusted = {name for name, run in runs.items() if name not in values and run.origin.kind in ("expert", "correction")}
    return {name for name in runs if name in trusted or (values.get(name) or 0.0) >= GOOD}


def make_pairs(
    preferences: Sequence[Preference], runs: dict[str, Trajectory], data: RunData, config: DPOConfig, good: set[str]
) -> list[Pair]:
    """Best against worst of every preference as token parts; equal comparisons once.

    Raises:
        DataError: nothing can be compared.
    """
    made: list[tuple[frozenset[str], int, Pair]] = []
    left: Counter[str] = Counter()
    for preference in preferences:
        best, worst = preference.items[0], preference.items[-1]
        if best.trajectory not in data.rendered or worst.trajectory not in data.rendered:
            left["a run was refused"] += 1
            continue
        parting = parting_step(runs[best.trajectory], runs[worst.trajectory])
        if best.step is not None and not best.step == worst.step == parting:
            left["the steps do not answer the same messages"] += 1
            continue
        # A preference about steps is never stretched over whole runs.
        credit = "turn" if config.credit == "run" and best.step is not None else config.credit
        sides = sides_of(data.rendered[best.trajectory], data.rendered[worst.trajectory], parting, credit)
        if sides is None:
            left["nothing differs that the agent wrote"] += 1
            continue
        anchor = best.trajectory if best.trajectory in good else None
        strength = preference.strength if preference.decided else 0.0
        pair = Pair(*sides, strength, (best.trajectory, worst.trajectory), anchor, preference.source)
        made.append((runs_of(preference), rank_of(preference, runs), pair))
    heard: dict[frozenset[str], int] = {}
    for about, rank, _ in made:
        heard[about] = max(heard.get(about, rank), rank)
    found: dict[frozenset[Part], list[tuple[int, Pair]]] = {}
    for about, rank, pair in made:
        if rank < heard[about]:
            left["who counts more spoke of the same two runs"] += 1
        else:
            found.setdefault(frozenset((pair.chosen, pair.rejected)), []).append((rank, pair))
    pairs = [one for same in found.values() if (one := _net(same, left)) is not None]
    reasons = "".join(f"; {count} left out: {reason}" for reason, count in left.items())
    logger.info("%d preferences make %d pairs%s", len(preferences), len(pairs), reasons)
    if not pairs:
        raise DataError(
            f"none of the {len(preferences)} preferences can be compared with credit '{config.credit}': their runs were refused, "
            "never part at a step of the agent, are ties, or contradict each other evenly. Compare further runs, or try credit: run."
        )
    return pairs


def _net(same: Sequence[tuple[int, Pair]], left: Counter[str]) -> Pair | None:
    """What comparisons of the same two parts come to: a whole run's and a step's may narrow down to one, and contradict each other."""
    counted = [pair for rank, pair in same if rank == max(rank for rank, _ in same)]
    order = net_order([((pair.chosen, pair.rejected), pair.strength) for pair in counted])
    agree = [pair for _, pair in same if order and pair.chosen == order[0][0] and pair.strength]
    against = len(same) - len(agree)
    if against:
        left["others say otherwise, more clearly or of a higher rank" if order else "a tie, or as many say the opposite"] += against
    if order is None:
        return None
    if len(agree) > 1:
        left["the same comparison again"] += len(agree) - 1
    return replace(next(pair for pair in agree if pair in counted), strength=order[1])


def with_reference(model: Model, pairs: Sequence[Pair], config: DPOConfig, cache: Path) -> list[Pair]:
    """The pairs with the start policy's log-probabilities; noise pairs (see `min_reference_prob`) are dropped and counted.

    Raises:
        DataError: every pair was noise.
    """
    parts = [part for pair in pairs for part in (pair.chosen, pair.rejected)]
    found = fixed_logprobs(model, ADAPTER, parts, max_tokens=config.micro_batch_tokens, cache=cache)
    sums = [float(values.sum()) for values in found]
    kept = []
    for index, pair in enumerate(pairs):
        chosen, rejected = sums[2 * index], sums[2 * index + 1]
        # Not ">=": what is no number is no noise, but for the first step to see and to write down.
        if config.credit != "token" or not rejected < _log(config.min_reference_prob):
            kept.append(Pair(pair.chosen, pair.rejected, pair.strength, pair.trajectories, pair.anchor, pair.source, (chosen, rejected)))
    logger.info("pairs: %d kept, %d dropped because the policy hardly writes what they reject", len(kept), len(pairs) - len(kept))
    if not kept:
        raise DataError(
            f"all {len(pairs)} pairs reject a token that the policy writes with less than "
            f"{config.min_reference_prob:g}; lower min_reference_prob."
        )
    return kept


def contrast_pairs(
    work: Workspace, pairs: Sequence[Pair], runs: Mapping[str, Trajectory], shown: Sequence[Trajectory], data: RunData, config: DPOConfig
) -> list[Pair]:
    """Pairs for what the preferences mostly reject, from demonstrations that take them; none unless asked for, with credit: token only."""
    if not config.contrasts or config.credit != "token":
        return []
    compared = [Compared(pair.chosen, pair.rejected, *(runs[id] for id in pair.trajectories)) for pair in pairs]
    found = contrasts(compared, shown, data.rendered, partial(rendered_beside, work.store, Dialect.load(work.base)))
    return [Pair(one.chosen, one.rejected, 1.0, (one.demonstration,) * 2, one.demonstration, "contrast") for one in found]


def _log(probability: float) -> float:
    return float(torch.tensor(probability).log()) if probability > 0 else float("-inf")


def pair_batches(pairs: Sequence[Pair], replay: Sequence[Rendered], rendered: dict[str, Rendered], max_tokens: int) -> list[MicroBatch]:
    """Pairs with their anchors, and replayed runs, packed whole."""
    groups: list[Pair | Rendered] = [*pairs, *replay]

    def parts_of(group: Pair | Rendered) -> list[Part]:
        if isinstance(group, Rendered):
            return [whole(group.own)]
        return [group.chosen, group.rejected, *([whole(rendered[group.anchor].own)] if group.anchor else [])]

    return [_micro(members, [parts_of(member) for member in members]) for members in pack(groups, max_tokens=max_tokens, runs_of=parts_of)]


def _micro(members: Sequence[Pair | Rendered], parts: Sequence[list[Part]]) -> MicroBatch:
    starts = [sum(len(p) for p in parts[:i]) for i in range(len(parts))]
    inside = [(member, start) for member, start in zip(members, starts, strict=True) if isinstance(member, Pair)]
    anchors = [start + 2 for member, start in inside if member.anchor]
    anchors += [start for member, start in zip(members, starts, strict=True) if not isinstance(member, Pair)]
    rows = PairRows(
        chosen=torch.tensor([start for _, start in inside], dtype=torch.long),
        rejected=torch.tensor([start + 1 for _, start in inside], dtype=torch.long),
        reference_chosen=torch.tensor([pair.reference[0] for pair, _ in inside]),
        reference_rejected=torch.tensor([pair.reference[1] for pair, _ in inside]),
        strength=torch.tensor([pair.strength for pair, _ in inside]),
        anchors=torch.tensor(anchors, dtype=torch.long),
    )
    counts = {name: float(count) for name, count in (("dpo", len(inside)), ("nll", len(anchors))) if count}
    ids = tuple(i for member in members for i in (member.trajectories if isinstance(member, Pair) else (member.trajectory,)))
    return MicroBatch(build_tree([part for group in parts for part in group]), counts, rows, ids)


def pair_loss(model: Model, micro: MicroBatch, config: DPOConfig) -> LossTerms:
    """DPO per pair, and the summed negative log-likelihood of the anchors."""
    rows: PairRows = micro.data
    sums = micro.tree.sum_by_run(model.token_logprobs(micro.tree))
    terms: dict[str, Term] = {}
    metrics: dict[str, Tensor] = {}
    if "dpo" in micro.counts:
        chosen, rejected = sums[rows.chosen], sums[rows.rejected]
        chosen_ratio, rejected_ratio = chosen - rows.reference_chosen.to(sums), rejected - rows.reference_rejected.to(sums)
        loss = dpo_loss
        if config.loss_type == "ipo":  # per token, or long runs would need another beta than short ones
            lengths = micro.tree.sum_by_run(torch.ones_like(micro.tree.occurrence_run, dtype=sums.dtype))
            chosen_ratio, rejected_ratio, loss = chosen_ratio / lengths[rows.chosen], rejected_ratio / lengths[rows.rejected], ipo_loss
        losses, metrics = loss(
            chosen_ratio,
            rejected_ratio,
            beta=config.beta,
            strength=rows.strength.to(sums),
            label_smoothing=config.label_smoothing,
        )
        terms["dpo"] = Term(losses)
        metrics |= {"logps/chosen": chosen.detach(), "logps/rejected": rejected.detach()}
    if "nll" in micro.counts:
        terms["nll"] = Term(nll_loss(sums[rows.anchors]), config.nll_coefficient)
    return LossTerms(terms, metrics)


def _total_steps(pairs: Sequence[Pair], config: DPOConfig) -> int:
    return config.max_steps or steps_for(len(pairs), batch_size=config.batch_size, epochs=config.num_train_epochs)


def _dry_run(work: Workspace, config: DPOConfig, data: RunData, pairs: Sequence[Pair], about: TrainedOn) -> DryRun:
    stats = token_stats(list(data.rendered.values()), batch_size=config.batch_size)
    rows = config.batch_size * 2 + config.replay
    total = _total_steps(pairs, config)
    seconds, memory = estimate(
        work.base, stats, steps=total, batch_size=rows, quantization=config.quantization, micro_batch_tokens=config.micro_batch_tokens
    )
    counts = {"pairs": len(pairs), **Counter(f"pairs from {pair.source}" for pair in pairs)}
    return DryRun(
        "dpo",
        counts,
        stats,
        data.refused,
        total,
        seconds,
        memory,
        work.planned("dpo", config, about),
        about,
        copy_gb=acting_copy(work.base),
    )
