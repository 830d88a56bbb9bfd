"""What the page is told of a chat. A blind pair has no names, versions, run ids or figures in it until it is kept."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from agentalign.records.criterion import Criterion
from agentalign.records.trajectory import steps_of
from agentalign.ui import views
from agentalign.ui.play_chat import Chat
from agentalign.ui.play_lane import Lane


class ProposalView(BaseModel):
    """A call of the agent's last turn."""

    id: str
    name: str
    arguments: str
    """As it is made."""
    wrote: str
    """As the agent wrote it, where that differs."""
    state: Literal["asked", "free", "running", "wanting", "done"]
    result: str | None
    error: bool


class LaneView(BaseModel):
    """One side."""

    state: str
    text: str
    """What is being written."""
    count: int
    """Tokens of it."""
    ahead: int | None
    """Turns that are written first."""
    problem: str
    stop: str
    can_go_on: bool
    can_rewrite: bool
    customer: str | None
    """What the task's customer would say now."""
    changes: list[str]
    """What people did to calls, a line each."""
    changed: bool
    """A call was changed, which makes a correction when the chat is kept."""
    proposals: list[ProposalView]
    entries: list[views.Entry] | None
    """The timeline; None where the page has it."""


class ChatView(BaseModel):
    """A chat."""

    id: str
    seen: int
    """Give it back, and timelines that have not changed are not sent again."""
    taskset: str
    task: str
    tools_by: str
    ask: bool
    temperature: float
    problem: str
    kept: bool
    names: list[str]
    """Who is on which side, once that may be told."""
    draft: str
    """What its person said next where it branched."""
    branch: tuple[str, int] | None
    """Chat and step that it branched from."""
    runs: list[str]
    """What it was kept as."""
    proposals: list[str]
    """Runs that hold what was corrected in it, once it is kept."""
    lanes: list[LaneView]
    criteria: list[views.CriterionView]
    """What a person may say about the whole of it when it is kept."""


class ChatRow(BaseModel):
    """A chat in the list."""

    id: str
    taskset: str
    task: str
    sides: int
    names: list[str]
    kept: bool
    said: str
    """The last words of the person."""


def chat_view(chat: Chat, criteria: Sequence[Criterion], seen: int) -> ChatView:
    """The chat's page."""
    asked = [one for one in criteria if one.kind == "human" and one.level == "trajectory"]
    with chat.lock:
        return ChatView(
            id=chat.id,
            seen=chat.sides.seen,
            taskset=chat.about.taskset,
            task=_task(chat),
            tools_by=chat.about.tools_by,
            ask=chat.ask,
            temperature=chat.about.temperature,
            problem=chat.sides.problem,
            kept=chat.kept,
            names=chat.names,
            draft=chat.draft,
            branch=chat.about.branch,
            runs=[run.id for run in chat.runs] if chat.kept else [],
            proposals=list(chat.proposals),
            lanes=[_lane(lane, chat.sides.seen == seen) for lane in chat.lanes],
            criteria=[views.criterion_view(one) for one in asked],
        )


def chat_row(chat: Chat) -> ChatRow:
    """The chat's line."""
    with chat.lock:
        said = next((message.content for message in reversed(chat.lanes[0].messages) if message.role == "user"), "")
        return ChatRow(
            id=chat.id,
            taskset=chat.about.taskset,
            task=_task(chat),
            sides=len(chat.lanes),
            names=chat.names,
            kept=chat.kept,
            said=said[:200],
        )


def _task(chat: Chat) -> str:
    return chat.about.task.id if chat.about.task else ""


def _lane(lane: Lane, known: bool) -> LaneView:
    pen = lane.pen
    proposals = [
        ProposalView(
            id=p.call.id,
            name=p.made.name,
            arguments=p.made.arguments,
            wrote="" if p.call == p.made else p.call.arguments,
            state=p.state,
            result=None if p.result is None else p.result.content,
            error=p.result is not None and p.result.error,
        )
        for p in lane.proposals
    ]
    return LaneView(
        state=lane.state,
        text=pen.text if pen else "",
        count=pen.count if pen else 0,
        ahead=pen.ahead if pen else None,
        problem=lane.problem,
        stop="" if lane.stop is None else lane.stop.value,
        can_go_on=lane.can_go_on and not lane.busy,
        can_rewrite=lane.can_rewrite,
        customer=lane.customer.content if lane.customer and lane.state == "ready" else None,
        changes=[f"step {one['step']}: {one['name']} {one['did']}" for one in lane.changes],
        changed=bool(lane.wrote),
        proposals=proposals,
        entries=None if known else _entries(lane),
    )


def _entries(lane: Lane) -> list[views.Entry]:
    if not lane.messages:
        return []
    found = views.timeline(lane.messages, steps_of(lane.messages))
    if not lane.proposals:
        return found
    # The calls stand below, with what they wait for; a turn of nothing else has nothing to show here yet.
    last = found[-1].model_copy(update={"calls": []})
    return [*found[:-1], last] if last.text or last.reasoning else found[:-1]
