"""Tasksets: a folder of YAML and plain functions, found by name and loaded by path.

`taskset.yaml` says what the agent is told and which tasks there are; `criteria.yaml` says what good means. `tools.py`, `environment.py`,
`criteria.py`, `expert.py` and a generator are optional Python beside them. A taskset of YAML alone is fine: imported runs can be rated.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import JsonValue, ValidationError

from agentalign import strict_yaml
from agentalign.environments import team_code
from agentalign.environments.task import Task as Task
from agentalign.errors import TasksetError
from agentalign.records.base import Record, digest
from agentalign.records.criterion import OVERALL_RULE, Criterion

T = TypeVar("T", bound=Record)
ASIDE = ("taskset.yaml", "criteria.yaml", "guidelines.md", "recipes")
"""What changes no run and no score by itself: settings count as what they say, and people are told something."""


class Limits(Record):
    """When a run is ended."""

    max_turns: int = 8
    """Assistant turns."""
    max_turn_tokens: int = 160
    """Tokens the agent may write in one turn."""
    max_tokens: int = 2048
    """Tokens of the whole run."""
    max_seconds: float = 3600
    """Wall-clock time of the run. Generation of a whole batch counts for each run in it, so this only ends what hangs: a limit that runs
    come near would make results depend on the machine's speed."""
    max_call_seconds: float = 10
    """Time for one tool call, reply or check before the worker is killed."""
    max_memory_mb: int = 4096
    """Address space of the process that runs team code."""


class Settings(Record):
    """What taskset.yaml may say."""

    name: str
    description: str = ""
    system_prompt: str = ""
    limits: Limits = Limits()
    replayable: bool = False
    """`reset` and the recorded calls lead to the same state and results again; `agentalign tasks check` proves it."""
    tasks: str | list[dict[str, JsonValue]] = []
    """Tasks in place, or the name of a .jsonl file or of a .py file with a function `generate(**settings) -> list[Task]`."""
    generator: dict[str, JsonValue] = {}
    """Handed to `generate`."""


@dataclass(frozen=True)
class Taskset:
    """A loaded taskset. Only tools are imported on loading; environments, checks and experts run in workers."""

    name: str
    folder: Path
    system_prompt: str
    limits: Limits
    replayable: bool
    criteria: tuple[Criterion, ...]
    tools: str
    """JSON text of the list of OpenAI function schemas; "[]" where there are none."""
    description: str = ""
    settings: Settings = field(default_factory=lambda: Settings(name=""), repr=False)
    _loaded: dict[str, list[Task]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_environment(self) -> bool:
        """False for a criteria-only taskset: nothing can be rolled out."""
        return (self.folder / "environment.py").exists() or (self.folder / "tools.py").exists()

    @property
    def has_expert(self) -> bool:
        """True where expert.py can show how a task is solved."""
        return (self.folder / "expert.py").exists()

    def tasks(self, split: str | None = None) -> list[Task]:
        """All tasks, or those of a split; generated or read once."""
        if "all" not in self._loaded:
            self._loaded["all"] = _load_tasks(self)
        return [task for task in self._loaded["all"] if split is None or task.split == split]

    def task(self, task_id: str) -> Task:
        """The task of this id; TasksetError where there is none."""
        for task in self.tasks():
            if task.id == task_id:
                return task
        raise TasksetError(f"taskset '{self.name}' has no task '{task_id}'. `agentalign tasks show {self.name}` lists them.")

    def files(self) -> dict[str, Path]:
        """The files that decide runs and scores, by their place: all that tools, environment and checks are or may read."""
        places = {path.relative_to(self.folder): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return {place.as_posix(): path for place, path in places.items() if not _is_aside(place)}

    def digest(self, split: str) -> str:
        """What decides how an agent does on a split: settings, criteria and their rule, the team's code and data files, and the tasks.

        Recipes, descriptions and other splits are not in it: they change between two versions of an adapter as a matter of course.
        """
        said = self.settings.model_dump(mode="json", exclude={"description", "tasks", "generator"})
        whole: JsonValue = {
            "settings": said,
            "rule": OVERALL_RULE,
            "criteria": [criterion.model_dump(mode="json") for criterion in self.criteria],
            "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files().items()},
            "tasks": [task.model_dump(mode="json") for task in self.tasks(split)],
        }
        return digest(whole)

    def criterion(self, name: str) -> Criterion:
        """The criterion of this name; TasksetError where there is none."""
        for criterion in self.criteria:
            if criterion.name == name:
                return criterion
        raise TasksetError(f"taskset '{self.name}' has no criterion '{name}'. It has: {', '.join(c.name for c in self.criteria)}.")


def _is_aside(path: Path) -> bool:
    return path.parts[0] in ASIDE or any(part == "__pycache__" or part.startswith(".") for part in path.parts)


class Found(NamedTuple):
    """A taskset's place, not yet loaded."""

    name: str
    folder: Path
    packaged: bool
    """It came with agentalign, not from the project."""


def list_tasksets(project_tasks: Path | None) -> list[Found]:
    """Every taskset in reach, by name; a project's own hides a packaged one of the same name."""
    found: dict[str, Found] = {}
    for root, packaged in [(path, True) for path in _packaged_roots()] + ([(project_tasks, False)] if project_tasks else []):
        if root.is_dir():
            found |= {f.name: Found(f.name, f, packaged) for f in sorted(root.iterdir()) if (f / "taskset.yaml").is_file()}
    return sorted(found.values())


def find_taskset(name: str, project_tasks: Path | None = None) -> Path:
    """The folder of the taskset that a run or an adapter names: looked up, never followed as a path.

    Such names may come from strangers, and loading a folder runs its code.
    """
    known = {found.name: found.folder for found in list_tasksets(project_tasks)}
    if require_name(name) not in known:
        place = project_tasks.name if project_tasks else "tasks"
        raise TasksetError(
            f"the taskset '{name}' is not in this project, so its criteria and tools are unknown. Add its folder to {place}/."
        )
    return known[name]


def require_name(name: str) -> str:
    """The name, where it is that of one folder; TasksetError where it is a path."""
    if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise TasksetError(
            f"{name!a:.100} is not the name of a taskset: it must be one folder's name, not a path. Remove what brought it here."
        )
    return name


def load_taskset(name_or_path: str | Path, project_tasks: Path | None = None) -> Taskset:
    """Load a taskset by its name (the project's ./tasks first, then those that came with agentalign) or from a folder."""
    folder = Path(name_or_path)
    if not (folder / "taskset.yaml").is_file():
        known = {found.name: found.folder for found in list_tasksets(project_tasks)}
        if str(name_or_path) not in known:
            names = ", ".join(known) or "none"
            raise TasksetError(f"there is no taskset '{name_or_path}': no such folder with a taskset.yaml; known are: {names}.")
        folder = known[str(name_or_path)]
    folder = folder.resolve()
    path = folder / "taskset.yaml"
    settings = _record(Settings, _mapping(strict_yaml.load(path), path), str(path))
    if settings.name != folder.name:
        raise TasksetError(f"{path}: name is '{settings.name}' but the folder is '{folder.name}'. Make them equal: runs carry the name.")
    return Taskset(
        name=settings.name,
        folder=folder,
        system_prompt=settings.system_prompt.strip(),
        limits=settings.limits,
        replayable=settings.replayable,
        criteria=load_criteria(folder / "criteria.yaml"),
        tools=json.dumps([tool.schema for tool in team_code.tools(folder).values()], ensure_ascii=False),
        description=settings.description.strip(),
        settings=settings,
    )


def load_criteria(path: Path) -> tuple[Criterion, ...]:
    """Read criteria.yaml: a mapping from name to fields; `check:` makes a criterion one that a function answers."""
    if not path.is_file():
        raise TasksetError(f"{path} does not exist, so nothing says what a good run is. Write e.g. `helpful: {{description: ...}}`.")
    criteria = []
    for name, fields in _mapping(strict_yaml.load(path), path).items():
        if not isinstance(fields, dict):
            raise TasksetError(f"{path}: criterion '{name}' must be a mapping with at least a description.")
        kind: JsonValue = "check" if "check" in fields else "human"
        criteria.append(_record(Criterion, {"kind": kind} | fields | {"name": name}, f"{path}: criterion '{name}'"))
    if not criteria:
        raise TasksetError(f"{path} has no criteria. Write at least one.")
    return tuple(criteria)


def _load_tasks(taskset: Taskset) -> list[Task]:
    source = taskset.settings.tasks
    path = taskset.folder / "taskset.yaml"
    if isinstance(source, str):
        path = taskset.folder / source
        if not path.is_file():
            raise TasksetError(
                f"{taskset.folder / 'taskset.yaml'}: tasks names '{source}', which is not there. Write it, or list the tasks."
            )
        generated = path.suffix == ".py"
        tasks = team_code.generate(taskset.folder, source, taskset.settings.generator) if generated else _read_jsonl(path)
    else:
        tasks = [_record(Task, row, f"{path}: task {index}") for index, row in enumerate(source)]
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise TasksetError(f"{path}: two tasks have the id '{task.id}'. Runs are matched to tasks by id, so make each its own.")
        seen.add(task.id)
    return tasks


def _read_jsonl(path: Path) -> list[Task]:
    tasks = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TasksetError(f"{path}: cannot be read ({error}). Save it as UTF-8 text, one task per line.") from None
    # Not splitlines(): a line separator inside a text is a character of that text.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TasksetError(f"{path}:{number}: not JSON ({error}). Write one task per line.") from None
        tasks.append(_record(Task, _mapping(row, f"{path}:{number}"), f"{path}:{number}"))
    return tasks


def _mapping(value: JsonValue, source: Path | str) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise TasksetError(f"{source} must be a mapping (`key: value`), but it is {'empty' if value is None else type(value).__name__}.")
    return value


def _record(cls: type[T], values: Mapping[str, JsonValue], source: str) -> T:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        # An unknown key is the likelier mistake than the one that is then missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Limits.model_fields if first["loc"][0] == "limits" else cls.model_fields
            raise TasksetError(f"{source}: unknown key '{place}'. Known: {', '.join(known)}.") from None
        raise TasksetError(f"{source}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from None


def _packaged_roots() -> list[Path]:
    spec = find_spec("agentalign.tasks")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
