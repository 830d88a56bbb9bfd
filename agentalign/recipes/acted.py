"""Dev runs that need not be made again: DPO starts from the very weights that SFT's last evaluation acted with, and PPO from DPO's.

A gate acts greedily, so equal weights on equal tasks make equal runs. Which maker's runs stand in the store for which weights is noted in
the project's cache; the runs are taken over under the new maker's name and scored again, so that people see them with their training.
What is noted is only where to look: runs that are not there any more, or broke, are made again.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from agentalign import __version__
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.records.base import digest
from agentalign.records.trajectory import StopReason
from agentalign.rollouts.rollout import RolloutResult
from agentalign.store.files import write_whole
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.logprob_cache import owner_of
from agentalign.training.model import Model

logger = logging.getLogger("agentalign")
CHANCE = (StopReason.ERROR, StopReason.MAX_SECONDS)
"""Ends that say something of the machine, and not of the weights."""


class ActedBefore(NamedTuple):
    """The runs of a store, and the notes of who made which."""

    store: Store
    folder: Path

    def find(self, model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task], maker: str) -> list[RolloutResult]:
        """The runs that these weights made of these tasks, in their order, as runs of this maker; empty unless all are there."""
        try:
            told = json.loads(self._path(model, adapter, taskset, tasks).read_text("utf-8"))
            of = str(told["maker"])
        except (OSError, ValueError, KeyError, TypeError):
            return []
        found = {run.task_id: run for run in self.store.trajectories(RunFilter(taskset=taskset.name, policy=of, split=tasks[0].split))}
        runs = [found[task.id] for task in tasks if task.id in found]
        if len(runs) < len(tasks) or any(run.stop_reason in CHANCE for run in runs):
            return []
        results = []
        for run in runs:
            kept = self.store.tokens(run.id)
            # The id is made of what is in it, with who made it.
            new = type(run).model_validate({**run.model_dump(), "origin": run.origin.model_copy(update={"reference": maker}), "id": ""})
            results.append(RolloutResult(new, kept and kept.model_copy(update={"trajectory": new.id})))
        logger.info("%d dev runs are those of %s: equal weights and tasks", len(results), of)
        return results

    def note(self, model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task], maker: str) -> None:
        """These weights' runs of these tasks are in the store under this maker's name. A disk that is full costs the note alone."""
        path = self._path(model, adapter, taskset, tasks)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({"maker": maker}))

    def _path(self, model: Model, adapter: str, taskset: Taskset, tasks: Sequence[Task]) -> Path:
        software = [__version__, torch.__version__, transformers.__version__]
        asked = [taskset.digest(tasks[0].split), *(task.id for task in tasks)]
        return self.folder / f"{digest([owner_of(model, adapter), model.device.type, *software, *asked])}.json"
