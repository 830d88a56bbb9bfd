"""The playground's one model: a base that a lead had loaded, and the adapters that fit on it.

Loading takes from seconds to minutes, so it has a thread of its own, and what it is doing is told in words. Surprise: another adapter of
the same base needs no loading from here; the first chat with it brings it into memory beside the others.
"""

import gc
import logging
import threading
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError, DataError, RegistryError
from agentalign.store.registry import Registry

if TYPE_CHECKING:
    from agentalign.deployment.serving.engine import Engine

log = logging.getLogger(__name__)

RUNNING, KEPT, WAITING, LOADED = 2, 4, 16, 8
"""Turns that are written at once (the two sides of a comparison), rows kept for what goes on, turns that may wait, adapters in memory."""


class StageView(BaseModel):
    """What is loaded."""

    state: Literal["empty", "loading", "ready", "failed"]
    step: str
    """What loading is doing."""
    reason: str
    """Why it failed."""
    base: str
    taskset: str
    """What the adapter that named the base was trained on."""
    sides: list[str]
    """Who can be talked with: "name@version" of every policy adapter of this base, and the bare base."""


class Stage:
    """Owns the engine. One is loaded at a time; loading another ends the first."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._state: Literal["empty", "loading", "ready", "failed"] = "empty"
        self._step = self._reason = ""
        self._closed = False

    def load(self, ref: str) -> None:
        """Begin to load the base of this adapter."""
        card, _ = Registry(self._project.adapters).resolve(ref)
        if card.kind != "policy":
            raise RegistryError(f"{card.ref} is a {card.kind} model: it gives numbers and no messages. Name a policy adapter.")
        with self._lock:
            if self._state == "loading":
                raise DataError("a model is being loaded already. Wait until it is there, then load another one.")
            if self._engine is not None and card.ref in self._sides(self._engine):
                return
            old, self._engine = self._engine, None
            self._state, self._step, self._reason = "loading", "looking at the adapter and its base", ""
        threading.Thread(target=self._work, args=(card.ref, old), name="agentalign-play-load", daemon=True).start()

    def unload(self) -> None:
        """Give the memory back."""
        with self._lock:
            if self._state == "loading":
                raise DataError("a model is being loaded. Wait until it is there, then unload it.")
            old, self._engine, self._state = self._engine, None, "empty"
        if old is not None:
            _end(old)

    def close(self) -> None:
        """The server is stopping."""
        with self._lock:
            old, self._engine, self._state, self._closed = self._engine, None, "empty", True
        if old is not None:
            old.worker.stop()

    def engine(self) -> "Engine":
        """What answers; DataError where nothing is loaded."""
        with self._lock:
            if self._engine is None:
                raise DataError("no model is loaded here. A lead loads one on the playground's page.")
            return self._engine

    def view(self) -> StageView:
        """What the page is told."""
        with self._lock:
            engine, state, step, reason = self._engine, self._state, self._step, self._reason
        if engine is None:
            return StageView(state=state, step=step, reason=reason, base="", taskset="", sides=[])
        base, taskset = engine.bundle.base.name, engine.bundle.card.taskset
        return StageView(state=state, step=step, reason=reason, base=base, taskset=taskset, sides=self._sides(engine))

    def _sides(self, engine: "Engine") -> list[str]:
        return [*sorted({card.ref for card in engine.adapters.models().values()}), "base"]

    def _work(self, ref: str, old: "Engine | None") -> None:
        from agentalign.deployment.serving.engine import begin, open_engine  # torch takes seconds to import
        from agentalign.rollouts.bundle import open_bundle, require_runnable

        try:
            if old is not None:
                _end(old)
            del old
            bundle = open_bundle(self._project, ref)
            require_runnable(self._project, bundle)
            engine = open_engine(self._project, bundle, running=RUNNING, kept=KEPT, waiting=WAITING, loaded=LOADED, told=self._tell)
            self._tell(f"reading {ref}")
            begin(engine, [ref])
        except AgentAlignError as error:
            self._settle(None, str(error))
        except Exception as error:  # a lack of memory, a damaged file: the page says so and the server goes on
            log.exception("loading %s failed", ref)
            self._settle(None, f"{ref} could not be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        else:
            self._settle(engine, "")

    def _tell(self, step: str) -> None:
        with self._lock:
            self._step = step

    def _settle(self, engine: "Engine | None", reason: str) -> None:
        with self._lock:
            if not self._closed:
                self._engine, self._state, self._reason = engine, "failed" if engine is None else "ready", reason
                return
        if engine is not None:
            engine.worker.stop()


def _end(engine: "Engine") -> None:
    import torch

    engine.worker.stop()
    del engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
