"""The one training loop: every recipe hands it steps, it alone reduces, divides, clips, steps, evaluates, saves and resumes.

Each loss term is divided by its count over the *whole* optimizer step, so 1 x 8 and 8 x 1 give the same gradient; a step that runs out
of memory is done again in smaller micro-batches, with the same result. Surprise: training metrics of preference and reinforcement
learning look fine while the policy collapses, so the dev gate lives here: the best evaluated weights win, including those of step 0,
and a fall below the start ends the training.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from agentalign.errors import TrainingError, TrainingStoppedError
from agentalign.training import ranks
from agentalign.training.checkpoint import Snapshot, flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint
from agentalign.training.memory import give_back, is_out_of_memory, peak_memory
from agentalign.training.metrics import StepSums, counts_of, forget_rows_after, means, short, write_line, write_plan, write_row
from agentalign.training.model import Model
from agentalign.training.room import remember, remembered, smaller_budget
from agentalign.training.schedule import Plan, clip_gradients
from agentalign.training.sharding import pad_forwards
from agentalign.training.step import Evaluated, Evaluator, Learner, MicroBatch, Outcome, Pass, StepSource, in_pieces, rate_groups
from agentalign.training.stopping import StopRequest
from agentalign.training.trackers import Report
from agentalign.training.tree_check import advise, check_trees

logger = logging.getLogger("agentalign")
MAX_SKIPPED_STEPS = 3
NOT_FINITE = "not_finite.jsonl"
"""In a training's folder: steps that were not applied, and the runs in them."""


def train(
    model: Model,
    learners: Sequence[Learner],
    steps: StepSource,
    plan: Plan,
    *,
    folder: Path,
    evaluate: Evaluator | None = None,
    best_of: str | None = None,
    report: Report | None = None,
) -> Outcome:
    """Run a training to its end, or on from its last checkpoint in `folder`.

    Args:
        model: holds all adapters and heads named in `learners`.
        learners: one optimizer group each.
        steps: `steps(k)` yields the passes of step k, k + 1, ...; a step must depend on nothing but k, the data and the weights.
        plan: lengths and rates.
        folder: metrics.jsonl and checkpoints/ go here.
        evaluate: the dev gate; called before step 0 (unless told otherwise) and every `eval_every_steps`. None: the last
            weights are the result.
        best_of: adapter whose best evaluated weights are restored at the end; None for the first learner's.
        report: takes every row of metrics.jsonl, for a tracker.

    Raises:
        TrainingError: several steps in a row with a non-finite loss, one group too large for the memory, a disk that is full, or a step
            source that ends early.
        TrainingStoppedError: the process was asked to end (SIGTERM); what was done is saved where the plan saves at all.
    """
    if ranks.rank() == 0:
        write_plan(folder, plan.total_steps)
    with StopRequest() as stop:
        loop = _Loop(model, learners, plan, folder, evaluate, best_of or learners[0].adapter, stop, report)
        loop.resume()
        loop.gate_if_due()
        source = steps(loop.step)
        while loop.step < plan.total_steps and not loop.outcome.stopped:
            passes = loop.next_of(source)
            if passes is None:
                raise TrainingError(f"the data ended at step {loop.step} of {plan.total_steps}; this is an error in the recipe.")
            loop.advance(passes)
    loop.finish()
    return loop.outcome


class _Loop:
    """State of one training: optimizer, step, best weights, skipped steps."""

    def __init__(
        self,
        model: Model,
        learners: Sequence[Learner],
        plan: Plan,
        folder: Path,
        evaluate: Evaluator | None,
        best_of: str,
        stop: StopRequest,
        report: Report | None,
    ) -> None:
        self.model, self.learners, self.plan, self.folder, self.evaluate, self.best_of = model, learners, plan, folder, evaluate, best_of
        self.stop, self.report, self.budget = stop, report, plan.micro_batch_tokens
        self.groups = [[*model.parameters_of(learner.adapter), *model.head_parameters(learner.heads)] for learner in learners]
        self.optimizer = torch.optim.AdamW(rate_groups(model, learners), eps=plan.adam_eps, weight_decay=plan.weight_decay)
        self.metrics = folder / "metrics.jsonl"
        self.step = self.first_step = 0
        self.skipped = 0
        self.advised = False
        self.tokens = 0
        self.best: dict[str, Tensor] = {}
        self.first_metrics: dict[str, float] = {}
        self.outcome = Outcome(steps=0, best_step=0)
        self.started = time.monotonic()

    # ---------------------------------------------------------------- one step

    def advance(self, passes: Sequence[Pass]) -> None:
        began = time.monotonic()
        if ranks.world() > 1:
            self.stop.asked = any(ranks.gathered(self.stop.asked))
            self._stop_if_asked()
        metrics, involved, tokens = self._gradients(passes)
        groups = zip(self.learners, self.groups, strict=True)
        norms = {f"grad_norm/{one.adapter}": clip_gradients(group, self.plan.max_grad_norm) for one, group in groups}
        metrics |= {name: value for p in passes for name, value in p.figures.items()} | norms
        share = self.plan.rate_share(self.step)
        self.tokens += tokens
        if math.isfinite(metrics["loss"]) and all(math.isfinite(norm) for norm in norms.values()):
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * share
            self.optimizer.step()
            self.skipped = 0
        else:
            self._skip(metrics, involved)
        self.step += 1
        seconds = time.monotonic() - began
        metrics |= {"learning_rate": share * self.learners[0].learning_rate, "num_tokens": self.tokens}
        metrics |= {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_memory_gib": peak_memory(self.model.device)}
        self._log(metrics)
        if self.evaluate and self.plan.evaluates_after(self.step):
            if self.plan.save_every_steps:
                self._save()  # the gate takes minutes and memory: a kill in it loses no step
            self.gate_if_due()
        elif self.plan.saves_after(self.step):
            self._save()

    def _gradients(self, passes: Sequence[Pass]) -> tuple[dict[str, float], list[str], int]:
        """The step's gradients, in micro-batches as small as the memory needs: step means, trajectories behind them, tokens computed."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            found, problem, trees = StepSums(), "", self.model.tree_capable
            batches = [(one, in_pieces(one, self.budget, ranks.world(), trees=trees)) for one in passes]
            try:
                self._accumulate(batches, found)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = (str(error) or type(error).__name__).splitlines()[0]
                if ranks.sharded():
                    self._come_back_smaller(passes, problem)
            # Outside of the handler: the error's traceback holds the tensors that did not fit. What one process lacks, all do without.
            everyone = ranks.gathered((found, problem, (trees, self.model.tree_capable)))
            problem = next((text for _, text, _ in everyone if text), "")
            if {form for *_, form in everyone} not in ({(True, True)}, {(False, False)}):
                self.model.give_up_trees()  # a check failed, perhaps in one process alone: all go without, and cut the step anew for rows
            elif not problem:
                ranks.sum_gradients([parameter for group in self.groups for parameter in group])
                sums = [one for one, *_ in everyone]
                tokens = sum(micro.tree.n_tokens for _, some in batches for micro in some)
                return means(sums), [name for one in sums for name in one.involved], tokens
            else:
                self._make_room(passes, problem)

    def _make_room(self, passes: Sequence[Pass], problem: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if any(ranks.gathered(self.model.forget_merged_copy())):  # one process may have it; what follows is every one's
            logger.warning("out of memory (%s): the merged copy that the policy acted from is given up until it acts again", problem)
        else:
            self.budget = smaller_budget(self.model, self.step, passes, self.budget, self.plan.micro_batch_tokens, problem)
        give_back(self.model.device)

    def _come_back_smaller(self, passes: Sequence[Pass], problem: str) -> NoReturn:
        """The other processes wait in the middle of a layer: the step cannot be done again by these ones, but by the next."""
        smaller = smaller_budget(self.model, self.step, passes, self.budget, self.plan.micro_batch_tokens, problem)
        remember(self.folder, smaller, recomputes=self.model.recomputes)
        raise TrainingError(
            f"step {self.step} ran out of memory ({problem}), and other processes, each with a part of the base, may wait inside it. "
            "Give the same command again: it goes on with less memory a step, to the same gradient."
        )

    def _accumulate(self, batches: Sequence[tuple[Pass, Sequence[MicroBatch]]], found: StepSums) -> None:
        """Forward and backward of this process's micro-batches. Every term is divided by its count over all of them."""
        for one, some in batches:
            totals = counts_of(micro.counts for micro in some)
            trees, everyone = self.model.tree_capable, ranks.shares(some, lambda micro: micro.tree.n_tokens)
            mine = everyone[ranks.rank()]
            with self.model.using(one.adapter):
                if looked_at := some if ranks.sharded() else mine:  # each forward is everybody's: all look at the same
                    check_trees(self.model, [micro.tree for micro in looked_at])
                    if ranks.sharded() and trees and not all(ranks.gathered(self.model.tree_capable)):
                        self.model.give_up_trees()
                        return  # all make the same forwards from here on: the step is cut anew for rows
                    self.advised = self.advised or advise(self.model, [one for one, _ in batches], self.budget)
                for micro in (replace(micro, tree=micro.tree.to(self.model.device)) for micro in mine):
                    if ranks.world() == 1:
                        self._stop_if_asked()
                    result = one.loss(self.model, micro)
                    loss = sum(term.coefficient * term.values.sum() / totals[name] for name, term in result.terms.items())
                    assert isinstance(loss, Tensor)
                    loss.backward()  # type: ignore[no-untyped-call]
                    found.add("loss", float(loss.detach()), 0.0)
                    for name, term in result.terms.items():
                        found.add(f"loss/{name}", float(term.values.detach().sum()) / totals[name], 0.0)
                    for name, values in result.metrics.items():
                        found.add(name, float(values.sum()), values.numel())
                    found.involved += micro.trajectories
                pad_forwards(self.model, max(map(len, everyone)) - len(mine))

    def _skip(self, metrics: dict[str, float], involved: list[str]) -> None:
        """Count a step that is not applied, and write down its runs; end the training after several in a row, or at once where asked."""
        self.skipped += 1
        bad = ", ".join(sorted(name for name, value in metrics.items() if not math.isfinite(value)))
        logger.warning("step %d: %s is not finite; the step is skipped. Runs in it: %s", self.step, bad, " ".join(involved[:8]))
        metrics["skipped"] = 1.0
        if ranks.rank() == 0:
            write_line(self.folder / NOT_FINITE, {"step": self.step + 1, "not_finite": bad, "trajectories": involved})
        if self.plan.nan_policy == "stop" or self.skipped >= MAX_SKIPPED_STEPS:
            self._log(metrics)
            raise TrainingError(
                f"{self.skipped} step{'s in a row' if self.skipped > 1 else ''} had non-finite numbers ({bad}); nothing of it was applied, "
                f"and the last good checkpoint is in {self.folder / 'checkpoints'}. Lower learning_rate, or look at the runs "
                f"{' '.join(involved[:3])}; {self.folder / NOT_FINITE} names them all."
            )

    def _log(self, metrics: dict[str, float]) -> None:
        self.outcome.steps, self.outcome.last_metrics = self.step, metrics
        if ranks.rank() == 0:
            write_row(self.metrics, self.step, metrics)
        if self.report:
            self.report(self.step, {name: value for name, value in metrics.items() if math.isfinite(value)})
        left = (time.monotonic() - self.started) / max(1, self.step - self.first_step) * (self.plan.total_steps - self.step)
        logger.info("step %d/%d %s (%.0f s left)", self.step, self.plan.total_steps, short(metrics), left)

    # ---------------------------------------------------------------- the dev gate

    def next_of(self, source: Iterator[Sequence[Pass]]) -> Sequence[Pass] | None:
        """The next step's passes; making them may mean to act for minutes."""
        try:
            with self.stop.at_once():
                return next(source, None)
        except ranks.StopAskedError:
            return self._stop()

    def gate_if_due(self) -> None:
        """The evaluation of this step, unless it was done before a checkpoint, and a checkpoint of what it found."""
        due = self.plan.eval_at_start if self.step == 0 else self.plan.evaluates_after(self.step)
        if not due or self.evaluate is None or any(step == self.step for step, _ in self.outcome.evaluations):
            return
        try:
            with self.stop.at_once():
                found = self.evaluate(self.step, self.first_metrics)
        except ranks.StopAskedError:
            self._stop()
        self._judge(found)
        if self.plan.save_every_steps and self.step > 0:
            self._save()

    def _judge(self, found: Evaluated) -> None:
        """Keep the weights if they are the best so far, and decide whether to go on."""
        self.first_metrics = self.first_metrics or found.metrics
        self.outcome.evaluations.append((self.step, found.score))
        self._log({"eval/score": found.score, **{f"eval/{k}": v for k, v in found.metrics.items()}})
        scores = [score for _, score in self.outcome.evaluations]
        if len(scores) == 1 or found.score > max(scores[:-1]):
            self.outcome.best_step = self.step
            self.best = {name: value.detach().clone() for name, value in self._weights().items() if name.startswith(f"{self.best_of}/")}
        self.outcome.stopped = self.plan.why_stop(self.outcome.evaluations, self.outcome.best_step)

    def finish(self) -> None:
        """Restore the best evaluated weights."""
        if self.best and self.outcome.best_step != self.step:
            logger.info("dev gate: back to step %d of %d", self.outcome.best_step, self.step)
            own = self._weights()
            with torch.no_grad():
                for name, value in self.best.items():
                    own[name].copy_(value)

    # ---------------------------------------------------------------- saving

    def _weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for learner, group in zip(self.learners, self.groups, strict=True):
            found |= {f"{learner.adapter}/{i}": parameter for i, parameter in enumerate(group)}
        return found

    def _stop_if_asked(self) -> None:
        """Between two micro-batches weights and optimizer are those of the last whole step."""
        if self.stop.asked:
            self._stop()

    def _stop(self) -> NoReturn:
        saved = "nothing was saved, since no step was done or this training saves nothing"
        if self.plan.save_every_steps and self.step % self.plan.steps_together == 0 and self.step > self.first_step:
            self._save()
        if (last := load_checkpoint(self.folder / "checkpoints")) is not None:
            saved = f"step {last.step} is saved"
        raise TrainingStoppedError(f"the training was asked to end at step {self.step}; {saved}. Run the same command again to go on.")

    def _save(self) -> None:
        snapshot = self._snapshot()
        ranks.first(lambda: save_checkpoint(self.folder / "checkpoints", snapshot))

    def _snapshot(self) -> Snapshot:
        notes: dict[str, object] = {
            "evaluations": self.outcome.evaluations,
            "stopped": self.outcome.stopped,
            "best_step": self.outcome.best_step,
            "tokens": self.tokens,
            "first_metrics": self.first_metrics,
            "last_metrics": self.outcome.last_metrics,
            "micro_batch_tokens": self.budget,
            "recomputes": self.model.recomputes,
            "learners": [list(x) for x in self.learners],
        }
        return Snapshot(self.step, self._weights(), flatten_optimizer(self.optimizer), notes, self.best)

    def _with_less(self, notes: Mapping[str, Any]) -> None:
        self.budget = min(self.budget, int(notes.get("micro_batch_tokens", self.budget)))
        if notes.get("recomputes") and self.model.may_recompute:
            self.model.recompute_activations()

    def resume(self) -> None:
        self._with_less(ranks.first(lambda: remembered(self.folder)))
        snapshot = load_checkpoint(self.folder / "checkpoints")
        notes: dict[str, Any] = dict(snapshot.notes) if snapshot else {}
        evaluations = [(int(step), float(score)) for step, score in notes.get("evaluations", ())]
        ranks.first(lambda: forget_rows_after(self.metrics, snapshot.step if snapshot else -1, dict(evaluations)))
        if snapshot is None:
            return
        own = self._weights()
        if own.keys() != snapshot.weights.keys():
            raise TrainingError(f"{self.folder} holds a checkpoint of a training with other adapters; start in a new folder.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(snapshot.weights[name])
        restore_optimizer(self.optimizer, snapshot.optimizer)
        self.step = self.first_step = snapshot.step
        self.best, self.tokens, self.first_metrics = snapshot.best, int(notes["tokens"]), dict(notes["first_metrics"])
        self._with_less(notes)
        last = dict(notes.get("last_metrics", {}))
        self.outcome = Outcome(self.step, int(notes["best_step"]), evaluations, str(notes.get("stopped", "")), last)
        logger.info("resumed at step %d from %s", self.step, self.folder / "checkpoints")
