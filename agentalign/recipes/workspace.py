"""What every recipe opens and what every recipe leaves: taskset, store, registry, base; a training record, and an adapter with its card.

A training's id is a hash of its config and data. So running the same command again finds the same folder: a finished training is
returned as it is, an interrupted one goes on from its last checkpoint.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from agentalign.config.project import Project
from agentalign.config.training import Gated, TrainingConfig
from agentalign.environments.check import adapter_name_problem
from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import AgentAlignError, TasksetError, TrainingError, TrainingStoppedError
from agentalign.recipes.acted import judge_of, world_of
from agentalign.recipes.adapter_card import about_base, about_training, write_golden, write_settings
from agentalign.recipes.begun import BESIDE, TrainedOn, keep_judge, read_begun, require_same_judge, write_begun
from agentalign.recipes.process import LOCK_FILE, write_process
from agentalign.recipes.start import base_name
from agentalign.records.adapter import AdapterCard, AdapterKind, RecipeName, Training
from agentalign.records.base import digest, now
from agentalign.records.criterion import Score, overall_by_run
from agentalign.records.golden import Golden
from agentalign.records.trajectory import Trajectory
from agentalign.rollouts.golden import make_golden
from agentalign.rollouts.rollout import RolloutResult
from agentalign.scoring.stored import answered_anew
from agentalign.store.filters import RunFilter
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training import ranks
from agentalign.training.base import Base, prepare_base
from agentalign.training.model import Model
from agentalign.training.step import Outcome
from agentalign.training.trackers import Report, TrackerName, tracker

logger = logging.getLogger("agentalign")
GOOD = 0.5
"""Overall value from which a run is one to learn from where nothing else is said."""
SUFFIX: dict[AdapterKind, str] = {"policy": "", "reward": "-reward", "value": "-value"}


@dataclass(frozen=True)
class Workspace:
    """Everything a recipe reads from and writes to."""

    project: Project
    taskset: Taskset
    base: Base
    store: Store
    registry: Registry
    world: str = ""
    """`world_of` the taskset before any of its code ran: dev runs are taken over within one."""

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
        wanted = [RunFilter(taskset=self.taskset.name, origin_kind=kind, split=split) for kind in sorted(kinds) for split in ("train", "")]
        return [run for one in wanted for run in self.store.trajectories(one)]

    def demonstrations(self) -> list[Trajectory]:
        """Expert runs of the train split that are not known to be bad: what is replayed under an anchor."""
        runs = [run for run in self.train_runs(["expert"]) if run.steps]
        values = self.overalls(runs)
        return [run for run in runs if (values.get(run.id, GOOD) or 0.0) >= GOOD]

    def overalls(self, runs: Sequence[Trajectory]) -> dict[str, float | None]:
        """Overall value by run id; None where it cannot be known, absent where nobody scored it."""
        return overall_by_run(self.taskset.criteria, self.store.scores([run.id for run in runs]))

    # ------------------------------------------------------------------ writing

    def frozen(self, recipe: RecipeName, config: TrainingConfig, new: TrainedOn) -> TrainedOn:
        """What a training of this config is about: what an interrupted one began with, else what is there now.

        A rating saved or a run added while a training is down must not make its checkpoints worthless.
        """
        own = self.planned(recipe, config, new).id
        alike = [one for one in self.store.trainings(self.taskset.name) if one.recipe == recipe and one.config == self._settings(config)]
        if own in {one.id for one in alike}:
            return new
        for one in alike:
            begun = read_begun(self.project.trainings / one.id, new.rules) if one.status != "done" else None
            # Data that is gone, or other rules, make another training.
            if begun and set(begun.ids) <= set(new.ids) and self.planned(recipe, config, begun).id == one.id:
                text = "training %s goes on with the data it began with; %d newer items wait for the next training"
                turned = sum(new.labels.get(run) != label for run, label in begun.labels.items())
                logger.warning(text, one.id, len(set(new.ids) - set(begun.ids)) + turned)
                return begun
        return new

    def planned(self, recipe: RecipeName, config: TrainingConfig, about: TrainedOn) -> Training:
        """The training that this config on this data is; nothing is written."""
        data_digest = digest(list(about.ids))
        labels: JsonValue = dict(about.labels)
        beside = [one for one in (labels, about.rules) if one]
        identity = digest([recipe, json.loads(self._settings(config)), data_digest, self.base.digest, digest(self.base.template), *beside])
        return Training(
            id=f"{self.taskset.name}-{recipe}-{identity[:12]}",
            recipe=recipe,
            taskset=self.taskset.name,
            config=self._settings(config),
            data_digest=data_digest,
            seed=config.seed,
        )

    def _settings(self, config: TrainingConfig) -> str:
        # Without what changes no result, and with the base that is trained on: naming it must not make another training.
        named = config.model_copy(update={"base": self.base.name})
        return json.dumps(named.model_dump(mode="json", exclude={*BESIDE, "training"}))

    def begin(self, recipe: RecipeName, config: TrainingConfig, about: TrainedOn) -> tuple[Training, Path]:
        """The training of this config on this data, new or taken up again, and its folder.

        Raises:
            TrainingError: the processes that train together do not see the same data, or what it begins with cannot be written down.
        """
        training = self.planned(recipe, config, about)
        if config.training and config.training != training.id:
            raise TrainingError(
                f"training {config.training} was asked for, but these settings and what the store holds now make {training.id}: runs, "
                "ratings or the template that it was to learn from have changed. See anew what it would learn from: --dry-run."
            )
        if len(set(ranks.gathered(training.id))) > 1:
            raise TrainingError("the store changed while the processes of this training started; give the command again.")
        folder = self.project.trainings / training.id
        return ranks.first(lambda: self._begun(training, folder, about, config)), folder

    def _begun(self, training: Training, folder: Path, about: TrainedOn, config: TrainingConfig) -> Training:
        known = {one.id: one for one in self.store.trainings(self.taskset.name)}
        if training.id in known and known[training.id].status == "done":
            return known[training.id]
        # Only its own name has to be whole: another adapter that is being copied in is no reason not to train.
        for card in self.registry.cards(self.adapter_name("reward" if training.recipe == "reward" else "policy")):
            if card.training == training.id:  # killed between saving the adapter and saying so
                return self._done(training, card.ref, "")
        if isinstance(config, Gated) and config.eval_every_steps != 0:
            require_same_judge(self.project.trainings / training.id, judge_of(self.taskset))
        self._mention_others(training, known.values())
        write_begun(folder, about, config.model_dump(mode="json", include=set(BESIDE)))
        self.store.save_training(training)
        return training

    def _mention_others(self, training: Training, known: Iterable[Training]) -> None:
        """Data that changed since an interrupted training makes a new one; that must not look like a lost checkpoint."""
        alike = [one for one in known if one.recipe == training.recipe and one.config == training.config and one.id != training.id]
        for one in alike:
            if one.status != "done":
                logger.warning(
                    "training %s has the same settings, but other data or another template, and was not finished; this is a new one: %s",
                    one.id,
                    training.id,
                )

    def _done(self, training: Training, ref: str, note: str) -> Training:
        done = training.model_copy(update={"status": "done", "adapter": ref, "note": note, "updated": now()})
        self.store.save_training(done)
        return done

    def keep(self, results: Sequence[RolloutResult], scores: Sequence[Score]) -> None:
        """Store runs that a training made, with their tokens and scores; what was forgotten meanwhile and is made again stays so."""
        self.store.add([result.trajectory for result in results], [result.tokens for result in results if result.tokens])
        self.store.add_scores(answered_anew(self.store, scores))

    @contextmanager
    def recording(self, training: Training, report_to: TrackerName) -> Iterator[Report]:
        """Hold the training's folder alone, and mark the training as failed, with the reason, when it ends in an error.

        Returns:
            What takes the rows of metrics.jsonl to the tracker.

        Raises:
            TrainingError: the same training is running elsewhere.
            ConfigError: the tracker is not installed.
        """
        reports: list[Report] = []
        with ExitStack() as held:
            # The first process holds the folder and says how it ended; what it cannot have is refused to all.
            ranks.first(lambda: reports.append(held.enter_context(self._held(training, report_to))))
            yield reports[0] if reports else lambda step, figures: None

    @contextmanager
    def _held(self, training: Training, report_to: TrackerName) -> Iterator[Report]:
        folder = self.project.trainings / training.id
        with (folder / LOCK_FILE).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TrainingError(f"training {training.id} is running in another process; wait for it, or stop it there.") from None
            write_process(folder / LOCK_FILE, os.getpid())
            about = tracker(report_to, training.id, project=f"agentalign-{training.taskset}", config=training.config, folder=folder)
            keep_judge(folder, judge_of(self.taskset))
            with self._failing(training), about as report:
                yield report

    @contextmanager
    def _failing(self, training: Training) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, Exception) as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt | TrainingStoppedError) else "failed"
            note = str(error) or type(error).__name__
            try:
                self.store.save_training(training.model_copy(update={"status": status, "note": note, "updated": now()}))
            except (OSError, AgentAlignError) as second:  # a full disk takes neither: what ended the training is what must be told
                logger.warning("that training %s ended is not written down (%s)", training.id, second)
            raise

    def _golden(self, folder: Path, model: Model, adapter: str, pool: Pool) -> Golden | None:
        """The golden prompts. From a base in shards a process may not survive a lack of memory in them: whoever comes back goes without."""
        if not ranks.sharded():
            return make_golden(model, adapter, self.taskset, pool, self.store)
        begun = folder / "golden_begun"
        if begun.exists():
            logger.warning("no golden prompts: the training ended while it made them. `agentalign adapters golden` makes them later")
            return None
        begun.touch()
        try:
            golden = make_golden(model, adapter, self.taskset, pool, self.store)
        except ranks.StopAskedError:
            begun.unlink()
            raise
        if golden:  # else a forward may have broken off, and this process ends after all
            begun.unlink()
        return golden

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
        pool: Pool | None = None,
    ) -> Training:
        """Save the adapter with its card into the registry, and the training as done.

        Args:
            pool: for a policy: where its golden prompts are acted out.
        """

        def save() -> Training:
            files = folder / "adapter"
            shutil.rmtree(files, ignore_errors=True)
            model.save_adapter(adapter, files, heads=heads)
            write_settings(self.base, files)
            if pool is not None:
                write_golden(self._golden(folder, model, adapter, pool), files)
            name = self.adapter_name(kind)
            card = AdapterCard(
                name=name,
                version=self.registry.next_version(name),
                kind=kind,
                parents=tuple(parents),
                parent_contents={parent: self.registry.content(parent) for parent in parents if parent},
                data_counts=dict(counts),
                criteria=tuple(c.key for c in self.taskset.criteria),
                heads=tuple(heads),
                **about_training(training, outcome, metrics or {}),
                **about_base(self.base, model),
            )
            saved = self.registry.save(card, files)
            note = outcome.stopped or (f"dev gate kept step {outcome.best_step} of {outcome.steps}" if outcome.evaluations else "")
            done = self._done(training, saved.ref, note)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            return done

        return ranks.first(save)


@contextmanager
def open_workspace(config: TrainingConfig, project: Project) -> Iterator[Workspace]:
    """Open what the config names; closes the store at the end."""
    taskset = load_taskset(config.taskset, project.tasks)
    if problem := adapter_name_problem(taskset.name):
        raise TasksetError(f"taskset '{taskset.name}' cannot be trained on: {problem}")
    registry = Registry(project.adapters)
    name = base_name(config, registry, taskset.name + SUFFIX["policy"])
    if ranks.world() > 1:  # converted by the first process alone: in a group transformers saves weights there only
        ranks.first(lambda: prepare_base(name, project.cache).name)
    base = prepare_base(name, project.cache)
    with Store(project.store_url) as store:
        yield Workspace(project, taskset, base, store, registry, world_of(taskset))
