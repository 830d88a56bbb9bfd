"""Dev runs that need not be made again: DPO starts from the very weights that SFT's kept evaluation acted with, and PPO from DPO's.

A gate acts greedily, so in a world that can be replayed equal weights on equal tasks make equal runs. Which runs of the store they made
is noted in the project's cache; the runs are taken over under the new maker's name and scored again, so that people see them with their
training. What is noted is only where to look: runs that are not there any more, broke, or cannot be read are made again.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.errors import AgentAlignError
from agentalign.records.base import digest
from agentalign.records.criterion import OVERALL_RULE
from agentalign.records.trajectory import StopReason
from agentalign.rollouts.rollout import RolloutResult
from agentalign.store.files import sha256, write_whole
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.logprob_cache import owner_of
from agentalign.training.model import Model

logger = logging.getLogger("agentalign")
CHANCE = (StopReason.ERROR, StopReason.MAX_SECONDS)
"""Ends that say something of the machine, and not of the weights."""


def judge_of(taskset: Taskset) -> str:
    """Digest of what decides how a dev run goes and what it is worth: not of other tasks, of prose, nor of who shows how they are done."""
    aside = ("expert.py", taskset.settings.tasks)
    files = [f"{name} {sha256(path)}" for name, path in taskset.files().items() if name not in aside]
    settings = taskset.settings.model_dump(mode="json", exclude={"description", "tasks", "generator"})
    criteria: list[JsonValue] = [one.model_dump(mode="json", exclude={"description", "anchors", "chips"}) for one in taskset.criteria]
    tasks: list[JsonValue] = [task.model_dump(mode="json") for task in taskset.tasks("dev")]
    return digest([OVERALL_RULE, settings, criteria, tasks, *files])


def world_of(taskset: Taskset) -> str:
    """Digest of all that decides how a dev run goes beside the weights; "" where the world does not promise to be repeatable."""
    if not taskset.replayable or not taskset.has_environment or not taskset.tasks("dev"):
        return ""
    return taskset.digest("dev")


class ActedBefore(NamedTuple):
    """The runs of a store, and the notes of which weights made which."""

    store: Store
    folder: Path
    world: str
    """As it was before any of its code ran: the workers hold that, and not what somebody saved meanwhile."""

    def find(self, model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task], maker: str) -> list[RolloutResult]:
        """The runs that these weights made of these tasks, in their order, as runs of this maker; empty unless all are there."""
        try:
            told = json.loads(self._path(model, adapter, tasks).read_text("utf-8"))
            found = {run.id: run for run in self.store.trajectories(RunFilter(taskset=taskset.name, ids=tuple(map(str, told["runs"]))))}
            runs = [found[id] for id in told["runs"]]
            if [run.task_id for run in runs] != [task.id for task in tasks] or any(run.stop_reason in CHANCE for run in runs):
                return []
            kept = [self.store.tokens(run.id) for run in runs]
        except (OSError, ValueError, KeyError, TypeError, AgentAlignError):
            return []
        results = []
        for run, tokens in zip(runs, kept, strict=True):
            # The id is made of what is in it, with who made it.
            new = type(run).model_validate({**run.model_dump(), "origin": run.origin.model_copy(update={"reference": maker}), "id": ""})
            results.append(RolloutResult(new, tokens and tokens.model_copy(update={"trajectory": new.id})))
        logger.info("%d dev runs are those of %s: equal weights, tasks and world", len(results), runs[0].origin.reference)
        return results

    def note(self, model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task], runs: Sequence[str]) -> None:
        """These weights made these runs of the store; not noted where the world was edited meanwhile. A full disk costs the note alone."""
        path = self._path(model, adapter, tasks)
        with suppress(OSError):
            if world_of(taskset) == self.world:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps({"runs": list(runs)}))

    def _path(self, model: Model, adapter: str, tasks: Sequence[Task]) -> Path:
        software = [version(name) for name in ("agentalign", "torch", "transformers")]
        asked = [self.world, *(task.id for task in tasks)]
        return self.folder / f"{digest([owner_of(model, adapter), model.device.type, *software, *asked])}.json"
