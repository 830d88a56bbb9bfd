"""Where a team's things lie: the folder with `tasks/`, `adapters/` and the hidden `.agentalign/`.

Made by `agentalign init`, found from any folder below it. The surprise: `AGENTALIGN_DATABASE_URL` moves the store to a server,
and nothing else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from agentalign.errors import ConfigError

STATE = ".agentalign"
DATABASE_VARIABLE = "AGENTALIGN_DATABASE_URL"


@dataclass(frozen=True)
class Project:
    """One team's folder. Paths only: nothing is opened here."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> "Project":
        """The nearest project at or above `start` (default: the current folder)."""
        here = (start or Path.cwd()).absolute()
        for folder in (here, *here.parents):
            if (folder / STATE).is_dir():
                return cls(folder)
        raise ConfigError(f"{here}: not inside an agentalign project. Go to one, or run `agentalign init` here to make one.")

    @classmethod
    def create(cls, root: Path) -> "Project":
        """Make the folders of a project, leaving alone what is there; the existing project if there is one."""
        project = cls(root.absolute())
        try:
            for folder in (project.state, project.tasks, project.adapters, project.trainings, project.cache):
                folder.mkdir(parents=True, exist_ok=True)
            _write_new(project.state / ".gitignore", "# Runs, ratings, trainings and caches of this project.\n*\n")
            _write_new(
                project.adapters / ".gitignore",
                "# Weights stay out of git; cards and stages go in.\n*.safetensors\n*.bin\n.*\n!.gitignore\n",
            )
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: cannot make the project's folders ({error.strerror}). Choose a folder you may write to."
            ) from None
        return project

    @property
    def state(self) -> Path:
        """The hidden folder of everything that is made, not written: store, trainings, cache."""
        return self.root / STATE

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store: the environment's, else SQLite inside the project."""
        return os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{self.state / 'store.db'}"

    @property
    def adapters(self) -> Path:
        """The registry's folder."""
        return self.root / "adapters"

    @property
    def tasks(self) -> Path:
        """The team's own tasksets."""
        return self.root / "tasks"

    @property
    def trainings(self) -> Path:
        """A folder per training: metrics, checkpoints, samples."""
        return self.state / "trainings"

    @property
    def cache(self) -> Path:
        """Converted bases and anything else that can be made again."""
        return self.state / "cache"


def _write_new(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text, encoding="utf-8")
