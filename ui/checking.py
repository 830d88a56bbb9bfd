"""Deploy-checks that were started from a page: one at a time, each in a process of its own that holds the base, not in the server's.

The process is the command that people type. Its report is kept beside the version by itself, so a closed page or a server that ends
loses nothing. Surprise: how far it is stands in what it says; every line that ends with "..." is a step.
"""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError, DataError
from agentalign.store.registry import Registry
from agentalign.ui.launch import environment

CHECK_SECONDS = 3600
LOG_FILE = "deploy-check.log"
LAST_WORDS = 2000


@dataclass
class Check:
    """One deploy-check that was asked for here."""

    ref: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    """By `time.monotonic`; 0 while it works."""
    reason: str = ""
    """Why it left no report."""

    @property
    def seconds(self) -> float:
        """How long it takes, or took."""
        return (self.ended or time.monotonic()) - self.began


class Checks:
    """The deploy-check of one server, if one is under way, and the last one."""

    def __init__(self, project: Project) -> None:
        self._project, self._lock = project, threading.Lock()
        self.last: Check | None = None

    def begin(self, ref: str) -> None:
        """Start one; DataError where one is under way."""
        ref = Registry(self._project.adapters).resolve(ref)[0].ref
        with self._lock:
            if self.last is not None and not self.last.ended:
                raise DataError(f"{self.last.ref} is being checked. Wait for it: two at once would only slow each other.")
            self.last = check = Check(ref)
        threading.Thread(target=self._work, args=(check,), daemon=True).start()

    def of(self, ref: str) -> Check | None:
        """The last one, if it is about this version."""
        last = self.last
        return last if last is not None and last.ref == ref else None

    def step(self, check: Check) -> str:
        """What is being asked now."""
        if check.ended:
            return ""
        steps = [line for line in _lines(self._log) if line.endswith("...")]
        return steps[-1].removesuffix("...").strip() if steps else "starting"

    @property
    def _log(self) -> Path:
        return self._project.state / "ui" / LOG_FILE

    def _work(self, check: Check) -> None:
        registry = Registry(self._project.adapters)
        try:
            before = registry.checks(check.ref)
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                done = subprocess.run(
                    [sys.executable, "-P", "-m", "agentalign", "deploy-check", check.ref],
                    cwd=self._project.root, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                    timeout=CHECK_SECONDS, check=False,
                )  # fmt: skip
            # It ends with 1 where it is not green, and where it could not be made; only a report tells which.
            if registry.checks(check.ref)[-1:] == before[-1:]:
                said = "\n".join(line for line in _lines(self._log) if not line.endswith("..."))
                check.reason = said[-LAST_WORDS:] or f"the deploy-check ended with {done.returncode} and said nothing."
        except (AgentAlignError, OSError, subprocess.SubprocessError) as error:
            check.reason = f"the deploy-check gave no answer ({error})."
        finally:
            check.ended = time.monotonic()


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return []
