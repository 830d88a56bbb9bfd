"""Which adapter answers: names become versions, versions come into memory, and a conversation keeps the one it began with.

The registry's stages are read at every request: `agentalign promote` is the hot swap, `promote --rollback` the way back, and nothing has
to be told to the server. Surprise: a conversation is known by its id, or else by its whole history word for word. Without an id, two
conversations whose histories are equal to the letter are one to the server.
"""

import json
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from agentalign.config.project import Project
from agentalign.deployment.serving.worker import Worker
from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard
from agentalign.records.base import digest
from agentalign.records.trajectory import Message
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle, require_runnable
from agentalign.store.registry import Registry
from agentalign.training.base import Base
from agentalign.training.mixed_lora import MixedLora
from agentalign.training.quantize import Quantization
from agentalign.training.threads import apart

log = logging.getLogger(__name__)

BASE = "base"
"""The bare base's name as a model, where no adapter is called so."""
MAX_CONVERSATIONS = 100_000


class Adapters:
    """The adapters of one base."""

    def __init__(
        self, project: Project, base: Base, lora: MixedLora, worker: Worker, *, quantization: Quantization, max_loaded: int
    ) -> None:
        self._project, self._registry, self._quantization = project, Registry(project.adapters), quantization
        self._base, self._lora, self._worker, self._max_loaded = base, lora, worker, max_loaded
        self._loading = threading.Lock()
        """Held while a version comes into memory: the worker is waited for."""
        self._lock = threading.Lock()
        """Held for a moment; the worker takes it too."""
        self._used: OrderedDict[str, int] = OrderedDict()
        """Loaded version -> requests that use it; least recently used first."""
        self._bound: OrderedDict[str, str] = OrderedDict()
        """Conversation -> version."""
        self._told: set[str] = set()
        """What is wrong with versions that are not listed; each is logged once."""

    def choose(self, ref: str, conversation: str | None) -> str:
        """The version, "name@version" or "base", that answers.

        Raises:
            RegistryError: there is no such adapter.
        """
        if ref == BASE and not (self._project.adapters / BASE).is_dir():
            return BASE
        name, _, wanted = ref.partition("@")
        if wanted[:1].isdigit():
            return self._registry.resolve(ref)[0].ref  # asked for by number, it is what was asked for
        with self._lock:
            held = self._bound.get(conversation or "")
        if held is not None:
            return held
        if wanted == "production":  # or the candidate, for its share of the conversations
            return self._registry.for_session(name, conversation or secrets.token_hex(16)).ref
        return self._registry.resolve(ref)[0].ref

    def bind(self, conversation: str, version: str) -> str:
        """A conversation goes on with this version; the first to say so counts, and is returned."""
        with self._lock:
            held = self._bound.setdefault(conversation, version)
            self._use(conversation)
        return held

    def go_on(self, history: str, version: str) -> None:
        """A history goes on with the version that wrote its end last: an equal one of long ago may not rule conversations of today."""
        with self._lock:
            self._bound[history] = version
            self._use(history)

    def _use(self, conversation: str) -> None:
        self._bound.move_to_end(conversation)
        while len(self._bound) > MAX_CONVERSATIONS:
            self._bound.popitem(last=False)

    def acquire(self, version: str) -> str | None:
        """Bring a version into memory and keep it there until `release`; its name there, None for the base."""
        if version == BASE:
            return None
        # What is there answers at once, while another version is being loaded too.
        if not self._take(version):
            with self._loading:
                if not self._take(version):
                    self._load(version)
                    self._take(version)
        return version

    def _take(self, version: str) -> bool:
        with self._lock:
            if version not in self._used:
                return False
            self._used[version] += 1
            self._used.move_to_end(version)
        return True

    def release(self, version: str) -> None:
        """A request is over."""
        with self._lock:
            if version in self._used:
                self._used[version] -= 1

    def _load(self, version: str) -> None:
        card, folder = self._registry.resolve(version)
        problem = self._unfit(card, folder)
        if problem:
            raise RegistryError(problem)
        require_runnable(self._project, Bundle(card, folder, self._base))
        weights = apart(lambda: self._lora.read(folder))
        with self._lock:  # from here on nobody takes them: who asks for one waits until it can be loaded anew
            spare = [name for name, users in self._used.items() if not users][: max(0, len(self._used) + 1 - self._max_loaded)]
            for name in spare:
                del self._used[name]

        def put_in() -> None:
            for name in spare:
                self._lora.remove(name)
            self._lora.add(version, weights)

        try:
            self._worker.change(put_in)
        except BaseException:
            with self._lock:  # nothing was changed: they are in memory still
                self._used.update(dict.fromkeys(spare, 0))
            raise
        with self._lock:
            self._used[version] = 0

    def _unfit(self, card: AdapterCard, folder: Path) -> str:
        """Why a version cannot be served here; empty where it can."""
        if card.kind != "policy":
            return f"{card.ref} is a {card.kind} model: it gives numbers and no messages. Name a policy adapter."
        if card.base_digest == self._base.digest and card.quantization != self._quantization:
            return (
                f"{card.ref} was trained on the base in {card.quantization}, and this server has it in {self._quantization}: another "
                "base to it. Serve it by its own server."
            )
        same = card.base_digest == self._base.digest and card.template_digest == digest(self._base.template)
        same = same and json.loads(card.template_kwargs) == self._base.template_kwargs
        if not same or not (folder / TEMPLATE_FILE).is_file():
            return (
                f"{card.ref} was trained on another base or under another chat template than this server has. Serve it by its own server."
            )
        return ""

    @property
    def loaded(self) -> list[str]:
        """Versions in memory."""
        return list(self._used)

    def models(self) -> dict[str, AdapterCard]:
        """Every name that this server answers to, and whose card it is: versions, stages, and the newest by the bare name.

        A version that cannot be read, such as one that is being copied here, is missing, and so are stages that cannot; the others are
        served meanwhile.
        """
        cards, problems = self._registry.readable()
        for problem in problems:
            if problem not in self._told:
                log.warning("not listed: %s", problem)
        self._told = set(problems)
        found: dict[str, AdapterCard] = {}
        for card in cards:
            if self._unfit(card, self._project.adapters / card.name / str(card.version)):
                continue
            found[card.ref] = card
            with suppress(RegistryError):  # among the problems
                for stage, number in self._registry.stages(card.name).items():
                    if number == card.version:
                        found[f"{card.name}@{stage}"] = card
        for name in {card.name for card in found.values()}:
            # The bare name is the newest there is, which `choose` asks for too: not the newest of those that fit.
            with suppress(RegistryError):
                newest = self._registry.resolve(name)[0]
                if newest.ref in found:
                    found[name] = newest
        return found


def conversation_key(ref: str, owner: str, messages: Sequence[Message], tools: str, named: str = "") -> str | None:
    """What a conversation is known by; None for one that has just begun and has no id.

    Args:
        ref: the model as the client wrote it: a canary and production are two conversations.
        owner: whose API key it is: ids of two clients never meet.
        named: the client's own id.
    """
    if named:
        return digest(["named", owner, ref, named])
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        return None
    said: JsonValue = [[m.role, m.content, [[c.id, c.name, c.arguments] for c in m.tool_calls]] for m in messages[: last + 1]]
    return digest(["history", owner, ref, said, tools])
