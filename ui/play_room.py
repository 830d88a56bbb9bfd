"""The playground's chats: who has which, and how they begin.

A chat lives in this process until its person keeps or discards it. Surprise: a kept chat stays here too, to be looked at, until the server
stops; of what it said only the store knows then.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.errors import DataError
from agentalign.records.trajectory import Trajectory
from agentalign.rollouts.ingest import LEARNED_FROM
from agentalign.ui.api import House
from agentalign.ui.play_chat import Chat
from agentalign.ui.play_lane import About
from agentalign.ui.play_model import Stage

MOST_OWN, MOST = 3, 32
"""Chats of one person, and of all, that are open at once: each may hold processes."""
IDLE_SECONDS = 2 * 3600
"""A chat that nobody touched for so long is discarded."""


class Wish(NamedTuple):
    """How a chat is to be."""

    sides: Sequence[str]
    taskset: str
    tools_by: Literal["live", "replay", "hand"]
    task: str = ""
    """Task id; empty draws one where tools are live."""
    words: str = ""
    """The person's first words; empty takes those of the task or of the recorded run."""
    source: Trajectory | None = None
    """The run whose results are replayed."""
    ask: bool = True
    """Every call waits for leave."""
    temperature: float = 0.0


class Room:
    """All chats of this server's time."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.stage = Stage(house.project)
        self._chats: dict[str, Chat] = {}
        self._began = secrets.token_hex(4)
        """How the ids of all chats of this server's time begin, by which older ones are known."""
        self._tasksets: dict[str, Taskset] = {}
        self._lock = threading.Lock()

    def taskset(self, name: str) -> Taskset:
        """The taskset, its tools imported and its tasks made once."""
        folder = find_taskset(name, self._house.project.tasks)
        with self._lock:
            if name not in self._tasksets:
                self._tasksets[name] = load_taskset(folder)
            return self._tasksets[name]

    def begin(self, owner: str, wish: Wish) -> Chat:
        """A new chat, which opens by itself.

        Raises:
            DataError: nothing is loaded, or the wish contradicts itself.
        """
        model = self.stage.loaded()
        known = self.stage.view().sides
        for side in wish.sides:
            if side not in known:
                raise DataError(f"'{side}' does not go with the model that is loaded. Choose from: {', '.join(known)}.")
        if len(set(wish.sides)) != len(wish.sides):
            raise DataError("both sides would be the same adapter. Choose two different ones, or one side only.")
        taskset = self.taskset(wish.taskset if wish.source is None else wish.source.taskset)
        task = self._task(taskset, wish)
        about = About(
            chat=self._new_id(), taskset=taskset.name, tools=taskset.tools if wish.source is None else wish.source.tools,
            tools_by=wish.tools_by, task=task, split=_split(task, wish.source), seed=secrets.randbits(31), temperature=wish.temperature,
        )  # fmt: skip
        chat = Chat(owner, about, taskset, wish.sides, source=wish.source, ask=wish.ask, model=model)
        self._admit(chat)
        chat.sides.start(wish.words)
        return chat

    def branch(self, chat: Chat, side: int, step: int) -> Chat:
        """A new chat that shares with another all that was said before a step.

        Raises:
            DataError: see `Chat.branch_at`; or the model that is loaded now is another one.
        """
        model, version = self.stage.loaded(), chat.lanes[side].version if side < len(chat.lanes) else ""
        branched = chat.branch_at(side, step)
        if version not in (known := self.stage.view().sides):
            raise DataError(f"'{version}' does not go with the model that is loaded. Choose from: {', '.join(known)}.")
        about = replace(chat.about, chat=self._new_id(), seed=secrets.randbits(31), branch=(chat.id, step))
        found = Chat(chat.owner, about, chat.taskset, [version], source=chat.source, ask=chat.ask, model=model, branched=branched)
        self._admit(found)
        found.sides.start("")
        return found

    def gone(self, id: str) -> str:
        """Why a chat is not here, in a sentence; of another person's no more than of none."""
        if not id.startswith(self._began):
            return "the server was started anew, and this chat ended with it; what was kept stands in the list of runs. Begin another."
        return "this chat is not here: it was discarded, or nobody touched it for two hours. Begin another one."

    def _new_id(self) -> str:
        return self._began + secrets.token_hex(12)

    def _admit(self, chat: Chat) -> None:
        with self._lock:
            self._forget_idle()
            open_ones = [one for one in self._chats.values() if not one.kept]
            if sum(one.owner == chat.owner for one in open_ones) >= MOST_OWN or len(open_ones) >= MOST:
                raise DataError("too many chats are open. Keep or discard one of yours first, or wait until others do.")
            self._chats[chat.id] = chat

    def get(self, id: str, owner: str) -> Chat | None:
        """The person's own chat; None for anybody else's."""
        with self._lock:
            chat = self._chats.get(id)
        return chat if chat is not None and chat.owner == owner else None

    def mine(self, owner: str) -> list[Chat]:
        """The person's chats, newest first."""
        with self._lock:
            return [chat for chat in self._chats.values() if chat.owner == owner][::-1]

    def discard(self, chat: Chat) -> None:
        """Forget a chat; nothing of it is kept."""
        with self._lock:
            self._chats.pop(chat.id, None)
        chat.close()

    def close(self) -> None:
        """The server is stopping."""
        with self._lock:
            chats, self._chats = list(self._chats.values()), {}
        for chat in chats:
            chat.close()
        self.stage.close()

    def _task(self, taskset: Taskset, wish: Wish) -> Task | None:
        if wish.tools_by == "live":
            if not taskset.has_environment:
                raise DataError(f"taskset '{taskset.name}' has no tools that could run. Answer calls by hand.")
            tasks = [task for task in taskset.tasks() if task.split != "test"]
            if not wish.task and not tasks:
                raise DataError(
                    f"taskset '{taskset.name}' has no tasks outside of its test split to draw one from. Name one, or answer calls by hand."
                )
            return taskset.task(wish.task) if wish.task else secrets.choice(tasks)
        if wish.tools_by == "replay":
            if wish.source is None:
                raise DataError("there is no run to replay results from. Name one.")
            if wish.words.strip():
                raise DataError("a replayed run has its own first words: its results answer those. Leave yours empty.")
            id = wish.source.task_id
            return None if id is None else next((task for task in taskset.tasks() if task.id == id), None)
        if not wish.words.strip():
            raise DataError("without a task nobody has said anything yet. Write the first words.")
        return None

    def _forget_idle(self) -> None:
        late = time.monotonic() - IDLE_SECONDS
        for chat in [chat for chat in self._chats.values() if chat.touched < late]:
            del self._chats[chat.id]
            threading.Thread(target=chat.close, daemon=True).start()


def _split(task: Task | None, source: Trajectory | None) -> str:
    """What a chat's runs are of: held out of training where the task or the run that it begins with is."""
    splits = [one.split for one in (task, source) if one is not None]
    held_out = [split for split in splits if split not in LEARNED_FROM]
    return "test" if "test" in held_out else next(iter(held_out or splits), "")
