"""Trainings that are started from the page: the same command as on the command line, in a process of its own.

First a dry run says what would be learned from, and its answer is kept; starting writes that into the training's folder, and the
command refuses to train on anything else. The process belongs to no one: the server's end does not end it, SIGTERM does, and the same
command goes on with it. Surprise: there is no other channel to it than its folder and its pid.
"""

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from agentalign import strict_yaml
from agentalign.config.dpo import DPOConfig
from agentalign.config.kto import KTOConfig
from agentalign.config.load import resolve
from agentalign.config.ppo import PPOConfig
from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.config.sft import SFTConfig
from agentalign.config.training import TrainingConfig
from agentalign.environments.taskset import list_tasksets
from agentalign.errors import AgentAlignError, DataError
from agentalign.recipes import process
from agentalign.recipes.begun import BESIDE_FILE, LABELS_FILE, write_whole
from agentalign.recipes.process import LAUNCH_FILE, LOCK_FILE, ask_to_stop, read_process, write_process
from agentalign.records.adapter import RecipeName, Training
from agentalign.store.store import Store
from agentalign.ui.trainings import DATA_FILE, LOG_FILE, NOT_BEGUN, state_of

CONFIGS: Mapping[RecipeName, type[TrainingConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "ppo": PPOConfig,
}
SETTINGS_FILE = "settings.yaml"
DRY_RUN_SECONDS = 1800
"""A base that is converted for the first time takes its time."""


class Plan:
    """A dry run: under way, done, or refused with a sentence."""

    def __init__(self, recipe: RecipeName, config: TrainingConfig) -> None:
        self.recipe, self.config = recipe, config
        self.state: Literal["working", "ready", "refused"] = "working"
        self.reason = ""
        self.figures: dict[str, object] = {}
        """What `train --dry-run --json` printed."""


class Plans:
    """The dry runs of this server's time, one at a time."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._plans: dict[str, Plan] = {}
        self._busy = threading.Lock()

    def begin(self, recipe: RecipeName, settings: Mapping[str, str]) -> str:
        """Check the settings and begin a dry run; returns its token."""
        plan = Plan(recipe, resolve(CONFIGS[recipe], None, dict(settings), "the form"))
        if not self._busy.acquire(blocking=False):
            raise DataError("another dry run is under way. Wait for it: two at once would only slow each other.")
        token = secrets.token_hex(16)
        self._plans = {token: plan}  # an older answer is about an older store
        threading.Thread(target=self._work, args=(token, plan), daemon=True).start()
        return token

    def get(self, token: str) -> Plan:
        """The dry run of this token."""
        if token not in self._plans:
            raise DataError("this dry run is gone: a newer one took its place, or the server was started anew. Make it again.")
        return self._plans[token]

    def _work(self, token: str, plan: Plan) -> None:
        file = self._project.state / "ui" / f"plan-{token}.yaml"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(plan.config.model_dump_json(), encoding="utf-8")
            done = subprocess.run(
                [*_command(plan.recipe, file), "--dry-run", "--json"],
                cwd=self._project.root,
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=DRY_RUN_SECONDS,
                check=False,
            )
            if done.returncode:
                plan.reason = done.stderr.decode("utf-8", "replace").strip()[-2000:] or f"the dry run ended with {done.returncode}"
            else:
                plan.figures = json.loads(done.stdout)
        except json.JSONDecodeError:
            began = done.stdout.decode("utf-8", "replace").strip()[:200]
            plan.reason = f"the dry run's answer is not JSON; it begins with: {began!r}. Something that it runs writes to its stdout."
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            plan.reason = f"the dry run gave no answer ({error})."
        finally:
            file.unlink(missing_ok=True)
            plan.state = "refused" if plan.reason else "ready"
            self._busy.release()


def start(project: Project, store: Store, plan: Plan) -> Training:
    """Freeze what a dry run counted, and start the training of just that."""
    if plan.state != "ready":
        raise DataError("the dry run has no figures, so nothing is known to start. Wait for it, or make it again.")
    training = Training.model_validate(plan.figures["training"])
    known = {one.id: one for one in store.trainings(training.taskset)}.get(training.id)
    if known is not None and (known.status == "done" or state_of(project.trainings / known.id, known) in ("running", "starting")):
        raise DataError(f"training {training.id} exists: {known.status}. Open it, or change a setting, the seed say, for another one.")
    folder = project.trainings / training.id
    frozen = training.model_copy(update={"status": "stopped", "note": NOT_BEGUN})
    with _told_of_files(training):
        folder.mkdir(parents=True, exist_ok=True)
        if labels := plan.figures.get("labels"):
            write_whole(folder / LABELS_FILE, labels)
        write_whole(folder / DATA_FILE, plan.figures["data"])
        _write_settings(folder, {**plan.config.model_dump(mode="json"), **json.loads(training.config), "training": training.id})
        store.save_training(known or frozen)
        _launch(project, training, folder)
    return training


def resume(project: Project, training: Training) -> None:
    """Run the same command again."""
    folder = project.trainings / training.id
    state = state_of(folder, training)
    if state not in ("stopped", "failed", "interrupted"):
        raise DataError(f"training {training.id} is {state}, so there is nothing to go on with.")
    with _told_of_files(training):
        if not (folder / SETTINGS_FILE).exists():  # begun on the command line
            beside = folder / BESIDE_FILE
            known = json.loads(beside.read_text("utf-8")) if beside.exists() else {}
            _write_settings(folder, {**json.loads(training.config), **known, "training": training.id})
        _launch(project, training, folder)


def stop(project: Project, training: Training) -> None:
    """Ask its process to save and end; one that has not begun just ends."""
    folder = project.trainings / training.id
    state = state_of(folder, training)
    pid = read_process(folder / (LOCK_FILE if state == "running" else LAUNCH_FILE)) if state in ("running", "starting") else None
    if pid is None:
        raise DataError(f"training {training.id} is {state}: there is no process to stop.")
    try:
        ask_to_stop(pid)
    except ProcessLookupError:
        raise DataError(f"training {training.id} ended just now: there is no process to stop. Look again.") from None
    except PermissionError:
        raise DataError(
            f"process {pid} of training {training.id} belongs to another account of this machine, so it cannot be stopped from here. "
            f"Its owner can: kill {pid}"
        ) from None


def presets(project: Project) -> list[dict[str, object]]:
    """Settings known to work: `recipes/*.yaml` of every taskset, those that cannot be read left out."""
    found: list[dict[str, object]] = []
    for taskset in list_tasksets(project.tasks):
        for file in sorted((taskset.folder / "recipes").glob("*.yaml")):
            recipe = file.stem.split("-")[0]
            try:
                settings = strict_yaml.load(file)
            except AgentAlignError:
                continue
            if recipe in get_args(RecipeName) and isinstance(settings, dict):
                shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
                found.append({"name": f"{taskset.name}: {file.stem}", "recipe": recipe, "settings": shown})
    return found


def _launch(project: Project, training: Training, folder: Path) -> None:
    with (folder / LOG_FILE).open("ab") as log:
        child = subprocess.Popen(
            _command(training.recipe, folder / SETTINGS_FILE),
            cwd=project.root,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl+C in the server's terminal is not for it
        )
    write_process(folder / LAUNCH_FILE, child.pid)
    # Whoever starts a process asks for its end, or it stays as a zombie.
    threading.Thread(target=child.wait, daemon=True).start()


def _command(recipe: str, file: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "agentalign", "train", recipe, str(file)]


def environment() -> dict[str, str]:
    """For a process that runs our own command: this very package, wherever it lies."""
    root = str(Path(process.__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


@contextmanager
def _told_of_files(training: Training) -> Iterator[None]:
    """A refusal of the machine as a sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"training {training.id} was not started ({error}). Make room on the disk, or mend the rights of that file, and start it again."
        ) from None


def _write_settings(folder: Path, settings: Mapping[str, object]) -> None:
    partial = folder / f".{SETTINGS_FILE}.partial"
    # As it is, for YAML does not read a character beyond U+FFFF as the two escapes that JSON writes for it.
    partial.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(folder / SETTINGS_FILE)
