"""The playground's one model: a base that a lead had loaded, and the adapters that fit on it.

Loading takes from seconds to minutes, so it has a thread of its own, and what it is doing is told in words. Surprise: another adapter of
the same base needs no loading from here; the first chat with it brings it into memory beside the others.
"""

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterable
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
PATIENCE_SECONDS = 5
"""How long it is waited for turns to let go of a model that is taken away."""
NOTHING = "no model is loaded here. A lead loads one on the playground's page."


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


class Loaded:
    """A model in memory, as chats hold it: they keep this and never the engine, so one that was kept or forgotten pins no base."""

    def __init__(self, engine: "Engine") -> None:
        self.base = engine.dialect.digest
        """Digest of the tokenizer and template that tokens belong to."""
        self._engine: Engine | None = engine

    def engine(self) -> "Engine":
        """What answers; DataError where it was taken away. Nobody keeps it beyond what they do with it now."""
        if (engine := self._engine) is None:
            raise DataError(NOTHING)
        return engine

    def release(self, versions: Iterable[str]) -> None:
        """These adapters are not used any more by somebody who acquired them."""
        if (engine := self._engine) is not None:
            for version in versions:
                engine.adapters.release(version)

    def end(self) -> None:
        """Take it away, and give its memory back to the machine."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.worker.stop()
        network = weakref.ref(engine.generator.model)
        del engine
        # A turn that was being written ends now, and lets go of the engine a moment later in its own thread.
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            _free()
            if network() is None:
                return
            if time.monotonic() > end:
                log.warning("the model that was unloaded is still in use; its memory comes back when the turn that uses it is over")
                return
            time.sleep(0.05)


class Stage:
    """Owns the engine. One is loaded at a time; loading another ends the first."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
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
            if self._loaded is not None and card.ref in _sides(self._loaded.engine()):
                return
            old, self._loaded = self._loaded, None
            self._state, self._step, self._reason = "loading", "looking at the adapter and its base", ""
        threading.Thread(target=self._work, args=(card.ref, old), name="agentalign-play-load", daemon=True).start()

    def unload(self) -> None:
        """Give the memory back."""
        with self._lock:
            if self._state == "loading":
                raise DataError("a model is being loaded. Wait until it is there, then unload it.")
            old, self._loaded, self._state = self._loaded, None, "empty"
        if old is not None:
            old.end()

    def close(self) -> None:
        """The server is stopping."""
        with self._lock:
            old, self._loaded, self._state, self._closed = self._loaded, None, "empty", True
        if old is not None:
            old.engine().worker.stop()

    def loaded(self) -> Loaded:
        """What answers; DataError where nothing is loaded."""
        with self._lock:
            if self._loaded is None:
                raise DataError(NOTHING)
            return self._loaded

    def view(self) -> StageView:
        """What the page is told."""
        with self._lock:
            engine = None if self._loaded is None else self._loaded.engine()
            state, step, reason = self._state, self._step, self._reason
        if engine is None:
            return StageView(state=state, step=step, reason=reason, base="", taskset="", sides=[])
        base, taskset = engine.bundle.base.name, engine.bundle.card.taskset
        return StageView(state=state, step=step, reason=reason, base=base, taskset=taskset, sides=_sides(engine))

    def _work(self, ref: str, old: Loaded | None) -> None:
        if old is not None:
            old.end()
        loaded, reason = self._open(ref)
        if loaded is None:
            _free()
        with self._lock:
            if not self._closed:
                self._loaded, self._state, self._reason = loaded, "failed" if loaded is None else "ready", reason
                return
        if loaded is not None:
            loaded.engine().worker.stop()

    def _open(self, ref: str) -> tuple[Loaded | None, str]:
        """The model, or None and why there is none."""
        from agentalign.deployment.serving.engine import begin, open_engine  # torch takes seconds to import
        from agentalign.rollouts.bundle import open_bundle, require_runnable

        try:
            bundle = open_bundle(self._project, ref)
            require_runnable(self._project, bundle)
            engine = open_engine(self._project, bundle, running=RUNNING, kept=KEPT, waiting=WAITING, loaded=LOADED, told=self._tell)
            self._tell(f"reading {ref}")
            begin(engine, [ref])
        except AgentAlignError as error:
            return None, str(error)
        except Exception as error:  # a lack of memory, a damaged file: the page says so and the server goes on
            log.exception("loading %s failed", ref)
            return None, f"{ref} could not be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Loaded(engine), ""

    def _tell(self, step: str) -> None:
        with self._lock:
            self._step = step


def _sides(engine: "Engine") -> list[str]:
    return [*sorted({card.ref for card in engine.adapters.models().values()}), "base"]


def _free() -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
