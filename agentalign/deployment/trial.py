"""What an exported adapter does before anybody relies on it: a few held-out tasks acted out, and its distance to the trained policy.

Both are asked of what was written, loaded again from its folder; a copy still in memory would prove nothing. Few tasks bound success
loosely, and the interval says so. The distance is the sharper question: it needs no tasks, and sees a rounding that changes no answer yet.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agentalign.config.project import Project
from agentalign.deployment.record_golden import read_golden
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, TasksetError
from agentalign.evaluation.evaluate import Evaluation, summarise
from agentalign.evaluation.statistics import Rate
from agentalign.records.base import Record
from agentalign.records.trajectory import StopReason, TokenRecord, Trajectory
from agentalign.rollouts.bundle import Bundle
from agentalign.rollouts.collect import choose_jobs
from agentalign.rollouts.policy import LocalPolicy, Policy
from agentalign.rollouts.rollout import rollout
from agentalign.scoring.score import score_trajectories
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.policy_distance import policy_distance
from agentalign.training.tree import TurnLike

COMPARED_TURNS = 24
"""Turns of those runs that the distance is measured along, beside the golden ones."""


OUT_OF_MEMORY = (RuntimeError, MemoryError)
"""What torch raises where models do not fit; it has no narrower name for all devices."""
FAILURES = (AgentAlignError, ValueError, *OUT_OF_MEMORY)


class Trial(Record):
    """What was measured of one export; what was not, `unmeasured` names with its reason."""

    where: str
    """What was loaded, and what it computed in."""
    split: str = ""
    tasks: int = 0
    success: Rate | None = None
    """Over these tasks, by the taskset's own checks."""
    calls: int = 0
    """Turns that tried to call a tool."""
    calls_read: int = 0
    """Those of them whose calls could all be read."""
    kl: float | None = None
    """Mean KL(trained policy || this), nats per token, over the whole vocabulary."""
    kl_worst: float | None = None
    """The largest at one token."""
    kl_floor: float | None = None
    """The trained policy against itself, in one batch and alone: below it no distance means anything."""
    kl_tokens: int = 0
    unmeasured: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """For people, one thing measured in each."""
        said = [f"Tried as {self.where}."]
        if self.success is not None:
            rate = self.success
            said.append(f"Success {rate.mean:.0%} [{rate.low:.0%}, {rate.high:.0%}] on {self.tasks} tasks of split {self.split}.")
            said.append(f"Tool calls that could be read: {self.calls_read} of {self.calls} turns with calls.")
        if self.kl is not None:
            said.append(
                f"KL to the trained policy {self.kl:.2g} nats per token (worst {self.kl_worst:.2g}; that policy against itself "
                f"{self.kl_floor:.2g}) over {self.kl_tokens} tokens."
            )
        return [*said, *(f"Not measured: {reason}" for reason in self.unmeasured)]


class Acted(NamedTuple):
    """Runs of held-out tasks, scored."""

    evaluation: Evaluation
    runs: tuple[Trajectory, ...]
    tokens: tuple[TokenRecord, ...]
    """Empty where the policy sees no tokens."""


def act_out(taskset: Taskset, policy: Policy, *, tasks: int, split: str = "", batch: int | None = None) -> Acted:
    """Act on so many tasks of a split, always the same ones, and score the runs; nothing is stored.

    Args:
        split: test where the taskset has one, else dev.

    Raises:
        TasksetError: nothing is held out, or runs cannot be made.
        DataError: no run's success can be known.
    """
    split = split or next((name for name in ("test", "dev") if taskset.tasks(name)), "test")
    with WorkerPool(taskset) as pool:
        made = list(rollout(taskset, policy, choose_jobs(taskset, split, limit=tasks), pool=pool, batch=batch))
        runs = tuple(result.trajectory for result in made)
        known = {task.id: task for task in taskset.tasks()}
        scores = score_trajectories(taskset, runs, known, pool=pool)
    evaluation = summarise(policy.name, split, taskset.criteria, runs, scores, known)
    return Acted(evaluation, runs, tuple(result.tokens for result in made if result.tokens))


def calls_read(dialect: Dialect, runs: Iterable[Trajectory]) -> tuple[int, int]:
    """(turns whose calls can all be read, turns that tried to call). A call that a server left in the text was tried and not read."""
    read = tried = 0
    for run in runs:
        for message in run.messages:
            if message.role != "assistant":
                continue
            left = dialect.parse(message.content)
            stray = bool(left.tool_calls or left.malformed or message.malformed)
            if stray or message.tool_calls:
                tried += 1
                read += not stray and all(_is_object(call.arguments) for call in message.tool_calls)
    return read, tried


def try_out(
    project: Project, bundle: Bundle, trained: Model, served: Model, served_adapter: str | None, *, where: str, tasks: int
) -> Trial:
    """Measure what was exported; what fails is said in `unmeasured` and ends nothing.

    Args:
        trained: the base as training rounded it, with the adapter "policy".
        served: loaded from the exported folder.
        served_adapter: the adapter's name in it; None where it is merged.
        tasks: held-out tasks to act on; 0 for none.
    """
    trial = Trial(where=where)
    acted, golden = None, read_golden(bundle)
    turns: list[TurnLike] = list(golden.turns) if golden else []
    if tasks:
        try:
            taskset = load_taskset(find_taskset(bundle.card.taskset, project.tasks), project.tasks)
            acted = act_out(taskset, _policy(served, served_adapter), tasks=tasks)
            _require_whole(acted.runs)
        except FAILURES as error:
            trial = trial.model_copy(update={"unmeasured": (unmeasured("success and tool calls", error),)})
    else:
        trial = trial.model_copy(update={"unmeasured": ("success and tool calls: no tasks were asked for.",)})
    if acted is not None:
        read, tried = calls_read(served.dialect, acted.runs)
        found = acted.evaluation
        counts = {"split": found.split, "tasks": found.everything.n, "calls": tried, "calls_read": read}
        trial = trial.model_copy(update={**counts, "success": found.everything.success} if not trial.unmeasured else counts)
        turns += [turn for record in acted.tokens for turn in record.turns if turn.completion][:COMPARED_TURNS]
    if not turns:
        lost = "the distance to the trained policy: the adapter has no golden prompts, and no task was acted out."
        return trial.model_copy(update={"unmeasured": (*trial.unmeasured, lost)})
    try:
        away = policy_distance(trained, "policy", served, served_adapter, turns)
    except FAILURES as error:
        lost = unmeasured("the distance to the trained policy", error)
        return trial.model_copy(update={"unmeasured": (*trial.unmeasured, lost)})
    return trial.model_copy(update={"kl": away.kl, "kl_worst": away.worst, "kl_floor": away.floor, "kl_tokens": away.tokens})


def unmeasured(what: str, error: BaseException) -> str:
    """Why something was not measured, in a sentence."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, OUT_OF_MEMORY):
        reason = f"it may not fit beside what else is in memory ({reason})"
    return f"{what}: {reason}"


def _policy(served: Model, adapter: str | None) -> LocalPolicy:
    if adapter is None:
        generator = Generator(served.network, served.dialect.stop_ids, served.dialect.pad_id)
    else:
        generator = adapter_generator(served, adapter)
    return LocalPolicy(generator, served.dialect, "exported")


def _require_whole(runs: Sequence[Trajectory]) -> None:
    broken = [run for run in runs if run.stop_reason == StopReason.ERROR]
    if broken:
        reason = (broken[0].error.strip().splitlines() or ["no reason was kept"])[-1]
        raise TasksetError(f"{len(broken)} of {len(runs)} runs broke off, the first with: {reason[:200]}")


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False
