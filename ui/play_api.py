"""Routes of the playground: load a model, talk with it, answer its calls, and keep what came of it.

A chat is its person's alone; to everyone else, whatever their role, it does not exist. Surprise: the page polls. What is written comes as
the text so far, which any number of lost answers cannot tear.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from agentalign.environments.taskset import list_tasksets
from agentalign.errors import DataError
from agentalign.records.criterion import Score
from agentalign.store.registry import Registry
from agentalign.ui import hidden
from agentalign.ui.api import Asking, House, Note, Rater, RunId, ScoreIn, ascii_json, score_of, stored_run
from agentalign.ui.auth import RANK, require_lead
from agentalign.ui.compare import Choice
from agentalign.ui.play_chat import Chat, Decision
from agentalign.ui.play_keep import keep
from agentalign.ui.play_model import StageView
from agentalign.ui.play_room import Room, Wish
from agentalign.ui.play_views import ChatRow, ChatView, chat_row, chat_view

Lead = Annotated[str, Depends(require_lead)]
Words = Annotated[str, Field(max_length=20_000)]
MOST_TASKS = 2000


class LoadIn(BaseModel):
    """Whose base to load."""

    model_config = ConfigDict(extra="forbid")

    adapter: Annotated[str, Field(min_length=1, max_length=300)]


class ChatIn(BaseModel):
    """A new chat. Whose it is, is read from the cookie."""

    model_config = ConfigDict(extra="forbid")

    sides: Annotated[list[Annotated[str, Field(max_length=300)]], Field(min_length=1, max_length=2)]
    taskset: Annotated[str, Field(max_length=200)] = ""
    tools: Literal["live", "replay", "hand"]
    task: Annotated[str, Field(max_length=200)] = ""
    run: RunId | None = None
    words: Words = ""
    ask: bool = True
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0


class WordsIn(BaseModel):
    """What the person says."""

    model_config = ConfigDict(extra="forbid")

    words: Words


class CallIn(BaseModel):
    """What is to become of a call."""

    model_config = ConfigDict(extra="forbid")

    side: Annotated[int, Field(ge=0, le=1)]
    call: Annotated[str, Field(max_length=200)]
    decision: Decision
    arguments: Annotated[str, Field(max_length=20_000)] = ""
    """JSON text; of an edit."""
    words: Words = ""
    """The result of an answer, or why a call is denied."""
    error: bool = False
    """The answer is an error message."""


class BranchIn(BaseModel):
    """Where a chat leaves another one."""

    model_config = ConfigDict(extra="forbid")

    side: Annotated[int, Field(ge=0, le=1)]
    step: Annotated[int, Field(ge=0)]


class MarkIn(BaseModel):
    """A mark on the whole of it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    criterion: Annotated[str, Field(max_length=100)]
    value: float


class KeepIn(BaseModel):
    """How a chat is kept."""

    model_config = ConfigDict(extra="forbid")

    choice: Choice | None = None
    """Of two sides."""
    marks: Annotated[list[MarkIn], Field(max_length=50)] = []
    """Of one side."""
    queue: bool = False
    """People are to rate it; a lead's word."""
    corrections: bool = True
    """What was changed in calls is a correction, to be learned from."""
    note: Note = ""


class PlayView(BaseModel):
    """The playground's front."""

    model: StageView
    may_load: bool
    adapters: list[str]
    """What a lead may load."""
    tasksets: list[str]
    chats: list[ChatRow]


class TaskRow(BaseModel):
    """A task to set the world up by."""

    id: str
    family: str
    split: str


class TasksView(BaseModel):
    """A taskset's tasks."""

    tasks: list[TaskRow]
    runs_tools: bool
    """Its tools can run here."""


def add(app: FastAPI, house: House) -> Room:
    """Add the routes; the room is the caller's to close."""
    room = Room(house)
    _front(app, house, room)
    _talking(app, house, room)
    _keeping(app, house, room)
    return room


def _front(app: FastAPI, house: House, room: Room) -> None:
    @app.get("/api/play", response_model=PlayView)
    def front(person: Asking) -> Response:
        """What is loaded, and my chats."""
        leads = RANK[person.role] >= RANK["lead"]
        cards = Registry(house.project.adapters).list() if leads else []
        return ascii_json(
            PlayView(
                model=room.stage.view(),
                may_load=leads,
                adapters=[card.ref for card in cards if card.kind == "policy"],
                tasksets=[found.name for found in list_tasksets(house.project.tasks)],
                chats=[chat_row(chat) for chat in room.mine(person.name)],
            )
        )

    @app.post("/api/play/model")
    def load(_lead: Lead, wanted: LoadIn) -> Response:
        """Begin to load an adapter's base."""
        room.stage.load(wanted.adapter)
        return ascii_json({"begun": True})

    @app.post("/api/play/model/unload")
    def unload(_lead: Lead) -> Response:
        """Give its memory back."""
        room.stage.unload()
        return ascii_json({"unloaded": True})

    @app.get("/api/play/tasks", response_model=TasksView)
    def tasks(_rater: Rater, taskset: Annotated[str, Query(max_length=200)]) -> Response:
        """Tasks of a taskset."""
        found = room.taskset(taskset)
        rows = [TaskRow(id=task.id, family=task.family, split=task.split) for task in found.tasks()[:MOST_TASKS]]
        return ascii_json(TasksView(tasks=rows, runs_tools=found.has_environment))


def _talking(app: FastAPI, house: House, room: Room) -> None:
    @app.post("/api/play/chats")
    def begin(person: Asking, wanted: ChatIn) -> Response:
        """Begin a chat."""
        source = None
        if wanted.run is not None:
            hidden.refuse_hidden(house.store, person, wanted.run)
            source = stored_run(house.store, wanted.run)
        wish = Wish(
            wanted.sides, wanted.taskset, wanted.tools, task=wanted.task, words=wanted.words, source=source, ask=wanted.ask,
            temperature=wanted.temperature,
        )  # fmt: skip
        return ascii_json({"id": room.begin(person.name, wish).id})

    @app.get("/api/play/chats/{chat}", response_model=ChatView)
    def shown(rater: Rater, chat: RunId, seen: int = -1) -> Response:
        """What was said, and what is being written."""
        return _shown(house, own(room, chat, rater), seen)

    @app.post("/api/play/chats/{chat}/say")
    def say(rater: Rater, chat: RunId, wanted: WordsIn) -> Response:
        """Say something."""
        found = own(room, chat, rater)
        found.say(wanted.words)
        return _shown(house, found)

    @app.post("/api/play/chats/{chat}/call")
    def call(rater: Rater, chat: RunId, wanted: CallIn) -> Response:
        """Decide about a call."""
        found = own(room, chat, rater)
        found.decide(wanted.side, wanted.call, wanted.decision, wanted.arguments, wanted.words, error=wanted.error)
        return _shown(house, found)

    @app.post("/api/play/chats/{chat}/branch")
    def branch(rater: Rater, chat: RunId, wanted: BranchIn) -> Response:
        """Begin a chat that shares with this one all that was said before a step."""
        return ascii_json({"id": room.branch(own(room, chat, rater), wanted.side, wanted.step).id})

    # Acts that need no words.
    for name, does in (("customer", Chat.let_customer_say), ("stop", Chat.halt), ("resume", Chat.resume), ("rewrite", Chat.rewrite)):
        _plain(app, house, room, name, does)


def _plain(app: FastAPI, house: House, room: Room, name: str, does: Callable[[Chat], None]) -> None:
    @app.post(f"/api/play/chats/{{chat}}/{name}", name=name, description=does.__doc__)
    def act(rater: Rater, chat: RunId) -> Response:
        found = own(room, chat, rater)
        does(found)
        return _shown(house, found)


def _keeping(app: FastAPI, house: House, room: Room) -> None:
    @app.post("/api/play/chats/{chat}/keep")
    def kept(person: Asking, chat: RunId, wanted: KeepIn) -> Response:
        """Store it as a run, or as a pair with a vote; the answer comes after COMMIT."""
        found = own(room, chat, person.name)
        if wanted.queue and RANK[person.role] < RANK["lead"]:
            raise HTTPException(403, "Only a lead puts runs into the queue. Keep the chat without it.")
        with found.lock:
            scores = _scores(house, found, wanted, person.name) if wanted.marks else []
            words = wanted.model_dump(exclude={"marks"})
            keep(house.store, found, scores=scores, **words)
        found.close()
        return _shown(house, found)

    @app.post("/api/play/chats/{chat}/discard")
    def discard(rater: Rater, chat: RunId) -> Response:
        """Forget it."""
        room.discard(own(room, chat, rater))
        return ascii_json({"discarded": True})


def _scores(house: House, chat: Chat, wanted: KeepIn, rater: str) -> list[Score]:
    criteria, missing = house.criteria(chat.about.taskset)
    if len(chat.lanes) > 1:
        raise DataError("marks are about one side. Vote between two.")
    (run,) = chat.as_runs()
    # Keyed by chat and place: kept twice, it is marked once.
    return [
        score_of(
            ScoreIn(key=f"{chat.id}-{number}", trajectory=run.id, criterion=one.criterion, value=one.value, note=wanted.note),
            criteria, missing, rater,
        )
        for number, one in enumerate(wanted.marks)
    ]  # fmt: skip


def _shown(house: House, chat: Chat, seen: int = -1) -> Response:
    return ascii_json(chat_view(chat, house.criteria(chat.about.taskset)[0], seen))


def own(room: Room, id: str, rater: str) -> Chat:
    """The person's chat; 404 for anybody else's: that it exists is not told either."""
    found = room.get(id, rater)
    if found is None:
        raise HTTPException(404, room.gone(id))
    return found
