"""Supervised fine-tuning: learn to write what good runs wrote.

Cross-entropy on every token the agent wrote in the chosen runs, nothing on prompts and tool results; the mean goes over all tokens
of an optimizer step, so a long run weighs more than a short one. Left out on purpose: packing across examples by position tricks
(the tree shares prefixes exactly), noise on embeddings, and any loss on user turns.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import RunData, render_runs, sft_batches, token_stats
from agentalign.recipes.dev_gate import dev_gate, require_gate
from agentalign.recipes.dry_run import DryRun, acting_copy, estimate
from agentalign.recipes.plan import plan_for
from agentalign.recipes.start import resolve_start
from agentalign.recipes.workspace import Workspace, open_workspace
from agentalign.records.adapter import Training
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import standing
from agentalign.training.batches import step_items, steps_for
from agentalign.training.dialect import Dialect
from agentalign.training.engine import train
from agentalign.training.losses import sft_loss
from agentalign.training.model import Model
from agentalign.training.step import Learner, LossTerms, MicroBatch, Pass, Term

ADAPTER = "policy"


def run(config: SFTConfig, project: Project, *, dry_run: bool = False) -> Training | DryRun:
    """Train an adapter on good runs, or say what would be done."""
    # load
    with open_workspace(config, project) as work:
        require_gate(config, work.taskset)
        parent = None
        if config.start:
            config, parent = resolve_start(work, config, "sft")
        # data
        runs = choose_runs(work, config)
        data = render_runs(runs, work.store, Dialect.load(work.base), config)
        begun = set(work.frozen("sft", config, TrainedOn(list(data.rendered))).ids)
        rendered = [run for name, run in data.rendered.items() if name in begun]
        total = config.max_steps or steps_for(len(rendered), batch_size=config.batch_size, epochs=config.num_train_epochs)
        about = TrainedOn([run.trajectory for run in rendered])
        if dry_run:
            return _dry_run(work, config, data, total, about)
        training, folder = work.begin("sft", config, about)
        if training.status == "done":
            return training
        with work.recording(training, config.report_to) as report, WorkerPool(work.taskset) as pool:
            # model
            model = Model.load(work.base, quantization=config.quantization, gradient_checkpointing=config.gradient_checkpointing)
            if parent:
                model.load_adapter(ADAPTER, parent, trainable=True)
            else:
                model.add_adapter(ADAPTER, r=config.lora_r, alpha=config.lora_alpha, seed=config.seed)

            # loss
            def steps(start: int) -> Iterator[Sequence[Pass]]:
                for step in range(start, total):
                    chosen = step_items(len(rendered), batch_size=config.batch_size, seed=config.seed, step=step)
                    yield [Pass(ADAPTER, partial(sft_batches, [rendered[i] for i in chosen]), token_loss)]

            # train
            gate = dev_gate(model, ADAPTER, work, pool, config, training.id)
            plan = plan_for(config, total, max_drop=config.max_drop, eval_at_start=parent is not None)
            outcome = train(
                model, [Learner(ADAPTER, learning_rate=config.learning_rate)], steps, plan, folder=folder, report=report, evaluate=gate
            )
            # save
            counts: dict[str, int] = {kind: sum(run.origin.kind == kind for run in runs if run.id in begun) for kind in config.origins}
            parents = [config.start] if config.start else []
            return work.publish(training, folder, model, ADAPTER, kind="policy", pool=pool, parents=parents, counts=counts, outcome=outcome)


def choose_runs(work: Workspace, config: SFTConfig) -> list[Trajectory]:
    """Runs of the chosen origins that are good enough, and corrected steps that stand; exact duplicates once.

    Raises:
        DataError: there is none.
    """
    runs = work.train_runs(config.origins)
    values = work.overalls(runs)
    corrected = standing(runs, work.store.preferences(work.taskset.name, source="correction"))
    chosen: dict[str, Trajectory] = {}
    for run in runs:
        value = None if run.is_corrected_step else values.get(run.id)
        trusted = run.id in corrected if run.is_corrected_step else run.id not in values and run.origin.kind in ("expert", "correction")
        if run.steps and (trusted or (value is not None and value >= config.min_overall)):
            chosen.setdefault(run.content_digest, run)
    if not chosen:
        raise DataError(
            f"there is nothing to learn from in taskset '{work.taskset.name}': {len(runs)} stored runs of kind {', '.join(config.origins)} "
            f"in the train split, none with an overall value of {config.min_overall:g} or more. "
            f"Make some with `agentalign rollout {work.taskset.name} --policy expert`, "
            "or import runs and rate them."
        )
    return list(chosen.values())


def token_loss(model: Model, micro: MicroBatch) -> LossTerms:
    """Cross-entropy per trainable token."""
    values = sft_loss(model.token_logprobs(micro.tree))
    return LossTerms({"sft": Term(values)}, {})


def _dry_run(work: Workspace, config: SFTConfig, data: RunData, total: int, about: TrainedOn) -> DryRun:
    stats = token_stats(list(data.rendered.values()), batch_size=config.batch_size)
    seconds, memory = estimate(
        work.base,
        stats,
        steps=total,
        batch_size=config.batch_size,
        quantization=config.quantization,
        micro_batch_tokens=config.micro_batch_tokens,
    )
    return DryRun(
        "sft",
        {"runs": stats.runs},
        stats,
        data.refused,
        total,
        seconds,
        memory,
        work.planned("sft", config, about),
        about,
        copy_gb=acting_copy(work.base),
    )
