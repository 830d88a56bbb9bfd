"""What every recipe opens and what every recipe leaves: taskset, store, registry, base; a training record, and an adapter with its card.

A training's id is a hash of its config and data. So running the same command again finds the same folder: a finished training is
returned as it is, an interrupted one goes on from its last checkpoint.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from agentalign.config.project import Project
from agentalign.config.training import TrainingConfig
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.errors import AgentAlignError, DataError
from agentalign.records.adapter import AdapterCard, AdapterKind, RecipeName, Training
from agentalign.records.base import digest, now
from agentalign.records.criterion import Score, overall
from agentalign.records.trajectory import Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import Base, prepare_base
from agentalign.training.engine import Outcome
from agentalign.training.model import Model

C = TypeVar("C", bound=TrainingConfig)
PACKAGES = ("agentalign", "torch", "transformers", "peft", "bitsandbytes", "tokenizers")
SUFFIX: dict[AdapterKind, str] = {"policy": "", "reward": "-reward", "value": "-value"}


@dataclass(frozen=True)
class Workspace:
    """Everything a recipe reads from and writes to."""

    project: Project
    taskset: Taskset
    base: Base
    store: Store
    registry: Registry

    # ------------------------------------------------------------------ reading

    def adapter_name(self, kind: AdapterKind) -> str:
        """Registry name of this taskset's adapters of a kind: "order_desk", "order_desk-reward"."""
        return self.taskset.name + SUFFIX[kind]

    def tasks(self) -> dict[str, Task]:
        """Tasks by id; empty for criteria-only tasksets."""
        return {task.id: task for task in self.taskset.tasks()}

    def train_runs(self, origins: Iterable[str]) -> list[Trajectory]:
        """Stored runs to learn from, in a stable order: of the train split, or imported without a split. Never of dev or test."""
        kinds = set(origins)
        found = [run for kind in sorted(kinds) for run in self.store.trajectories(RunFilter(taskset=self.taskset.name, origin_kind=kind))]
        return [run for run in found if run.split in ("train", "")]

    def overalls(self, runs: Sequence[Trajectory]) -> dict[str, float | None]:
        """Overall value by run id; None where it cannot be known, absent where nobody scored it."""
        scores: dict[str, list[Score]] = {}
        for score in self.store.scores([run.id for run in runs]):
            scores.setdefault(score.trajectory, []).append(score)
        return {run: overall(self.taskset.criteria, found) for run, found in scores.items()}

    # ------------------------------------------------------------------ writing

    def begin(self, recipe: RecipeName, config: TrainingConfig, data: Sequence[str]) -> tuple[Training, Path]:
        """The training of this config on this data, new or taken up again, and its folder."""
        data_digest = digest(list(data))
        settings = config.model_dump(mode="json")
        identity = digest([recipe, settings, data_digest, self.base.digest])
        training = Training(
            id=f"{self.taskset.name}-{recipe}-{identity[:12]}",
            recipe=recipe,
            taskset=self.taskset.name,
            config=json.dumps(settings),
            data_digest=data_digest,
            seed=config.seed,
        )
        known = {one.id: one for one in self.store.trainings(self.taskset.name)}
        if training.id in known and known[training.id].status == "done":
            return known[training.id], self.project.trainings / training.id
        folder = self.project.trainings / training.id
        folder.mkdir(parents=True, exist_ok=True)
        self.store.save_training(training)
        return training, folder

    @contextmanager
    def recording(self, training: Training) -> Iterator[None]:
        """Mark the training as failed, with the reason, when it ends in an error."""
        try:
            yield
        except (AgentAlignError, KeyboardInterrupt, Exception) as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            note = str(error) or type(error).__name__
            self.store.save_training(training.model_copy(update={"status": status, "note": note, "updated": now()}))
            raise

    def publish(
        self,
        training: Training,
        folder: Path,
        model: Model,
        adapter: str,
        *,
        kind: AdapterKind,
        parents: Sequence[str],
        counts: Mapping[str, int],
        outcome: Outcome,
        heads: Sequence[str] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> Training:
        """Save the adapter with its card into the registry, and the training as done."""
        files = folder / "adapter"
        shutil.rmtree(files, ignore_errors=True)
        model.save_adapter(adapter, files, heads=heads)
        (files / "chat_template.jinja").write_text(self.base.template, encoding="utf-8")
        name = self.adapter_name(kind)
        card = AdapterCard(
            name=name,
            version=self.registry.next_version(name),
            kind=kind,
            taskset=self.taskset.name,
            recipe=training.recipe,
            training=training.id,
            base=self.base.name,
            base_digest=self.base.digest,
            quantization=model.quantization,
            template_digest=digest(self.base.template),
            template_kwargs=json.dumps(self.base.template_kwargs),
            parents=tuple(parents),
            config=training.config,
            data_digest=training.data_digest,
            data_counts=dict(counts),
            criteria=tuple(c.key for c in self.taskset.criteria),
            heads=tuple(heads),
            packages=_versions(),
            metrics={
                **_finite(outcome.last_metrics),
                **(metrics or {}),
                "steps": float(outcome.steps),
                "best_step": float(outcome.best_step),
            },
        )
        saved = self.registry.save(card, files)
        note = outcome.stopped or (f"dev gate kept step {outcome.best_step} of {outcome.steps}" if outcome.evaluations else "")
        done = training.model_copy(update={"status": "done", "adapter": saved.ref, "note": note, "updated": now()})
        self.store.save_training(done)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return done


@contextmanager
def open_workspace(config: TrainingConfig, project: Project) -> Iterator[Workspace]:
    """Open what the config names; closes the store at the end."""
    taskset = load_taskset(config.taskset, project.tasks)
    base = prepare_base(config.base, project.cache)
    with Store(project.store_url) as store:
        yield Workspace(project, taskset, base, store, Registry(project.adapters))


def resolve_start(work: Workspace, config: C) -> tuple[C, Path]:
    """The config with its start adapter as "name@version", and that adapter's folder.

    Raises:
        DataError: the start was trained on another base or template.
    """
    card, folder = work.registry.resolve(config.start or work.adapter_name("policy"))
    if card.base_digest != work.base.digest or card.template_digest != digest(work.base.template):
        raise DataError(
            f"adapter {card.ref} was trained on {card.base} (digest {card.base_digest[:12]}) with another base or chat template than "
            f"{work.base.name} ({work.base.digest[:12]}) has now; name the same base."
        )
    return config.model_copy(update={"start": card.ref}), folder


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if value == value and abs(value) != float("inf")}
