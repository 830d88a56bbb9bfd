"""What the pages are told: records as flat, display-ready JSON.

A run becomes a timeline of entries: plain messages, and steps with each call beside its result. The surprise is what is *not* here:
the blind view has no ids, no maker, no times and no error traces, so that nothing in the answer tells two runs apart by origin.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel

from agentalign.records.criterion import Criterion, Score, ScoreStatus, overall
from agentalign.records.trajectory import Message, Step, Trajectory
from agentalign.store.store import RunRow

MOST_MARKS = 10


class CallView(BaseModel):
    """A tool call with what came back for it."""

    name: str
    arguments: str
    result: str | None
    """None where the run ended before an answer came."""
    error: bool


class Entry(BaseModel):
    """One line of the timeline."""

    kind: Literal["system", "user", "tool", "step"]
    message: int
    """Index of the message in the run."""
    step: int | None = None
    tool: str = ""
    """Name of the tool, for a result that no call of its step asked for."""
    text: str = ""
    reasoning: str = ""
    malformed: str = ""
    calls: list[CallView] = []
    error: bool = False


class Mark(BaseModel):
    """One value a rater may give."""

    value: float
    key: str
    """The digit to press, printed on the button."""
    anchor: str


class CriterionView(BaseModel):
    """A criterion as a card for the rater."""

    key: str
    name: str
    description: str
    level: Literal["trajectory", "step"]
    kind: Literal["check", "human", "judge"]
    gate: bool
    higher_is_better: bool
    weight: float
    marks: list[Mark]
    chips: list[str]
    """Short reasons to tick beside a value."""


class ScoreView(BaseModel):
    """The newest answer of one rater to one criterion."""

    criterion: str
    step: int | None
    status: str
    value: float | None
    unit: float | None
    """The value mapped to [0, 1], 1 the best; None for criteria that are no longer in force."""
    rater: str
    rater_kind: str
    mine: bool
    note: str
    chips: list[str]
    time: str


class RunView(BaseModel):
    """One run, whole, for its page."""

    id: str
    taskset: str
    task_id: str | None
    family: str
    split: str
    policy: str
    origin_kind: str
    stop_reason: str
    error: str
    seconds: float | None
    created: str
    timeline: list[Entry]
    criteria: list[CriterionView]
    criteria_missing: str
    """Why there are no criteria to rate by; empty where there are."""
    scores: list[ScoreView]
    overall: float | None
    bases: int
    """How many cached bases could show the run as tokens."""
    hidden: bool = False
    """It is open in the rater's queue: who made it and what others said is left out."""


class ListRow(BaseModel):
    """One run in the list."""

    id: str
    taskset: str
    task_id: str | None
    family: str
    split: str
    policy: str
    stop_reason: str
    n_steps: int
    n_calls: int
    n_errors: int
    created: str
    excerpt: str
    """Beginning of the first user message."""
    overall: float | None
    mine: int
    """How many of the criteria and steps this rater has marked."""


class BlindRun(BaseModel):
    """One side of a comparison."""

    timeline: list[Entry]
    stop_reason: str


def timeline(messages: Sequence[Message], steps: Sequence[Step]) -> list[Entry]:
    """The run as entries in order; a tool result stands with its call, and alone where no call of its step asked for it."""
    by_message = {step.message_index: step for step in steps}
    entries: list[Entry] = []
    placed: set[int] = set()
    for index, message in enumerate(messages):
        if index in placed:
            continue
        if index in by_message:
            entry, used = _step_entry(by_message[index])
            placed |= used
        else:
            role: Literal["system", "user", "tool"] = "tool" if message.role == "tool" else "system" if message.role == "system" else "user"
            entry = Entry(kind=role, message=index, tool=message.name or "", text=message.content, error=message.error)
        entries.append(entry)
    return entries


def _step_entry(step: Step) -> tuple[Entry, set[int]]:
    first = step.message_index + 1
    waiting = {first + offset: result for offset, result in enumerate(step.results)}
    calls, used = [], set()
    for call in step.message.tool_calls:
        at = next((index for index, result in waiting.items() if result.tool_call_id == call.id and index not in used), None)
        used |= set() if at is None else {at}
        result = None if at is None else waiting[at]
        calls.append(
            CallView(name=call.name, arguments=call.arguments, result=result and result.content, error=result is not None and result.error)
        )
    message = step.message
    entry = Entry(
        kind="step",
        message=step.message_index,
        step=step.index,
        text=message.content,
        reasoning=message.reasoning,
        malformed=message.malformed,
        calls=calls,
    )
    return entry, used


def marks(criterion: Criterion) -> list[Mark]:
    """The values a rater may give: every whole number of a short scale, else the anchors' values, else five even ones."""
    low, high = criterion.scale
    anchors = {float(value): text for value, text in criterion.anchors.items() if _is_number(value)}
    if low.is_integer() and high.is_integer() and high - low < MOST_MARKS:
        values = [low + step for step in range(int(high - low) + 1)]
    elif 2 <= len(inside := sorted(value for value in anchors if low <= value <= high)) <= MOST_MARKS:
        values = inside
    else:
        values = [low + (high - low) * step / 4 for step in range(5)]
    digits = [str(int(value)) if value.is_integer() and 0 <= value <= 9 else "" for value in values]
    if not all(digits):
        digits = [str((position + 1) % 10) for position in range(len(values))]
    return [Mark(value=value, key=digit, anchor=anchors.get(value, "")) for value, digit in zip(values, digits, strict=True)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def criterion_view(criterion: Criterion) -> CriterionView:
    """The card of a criterion."""
    return CriterionView(
        key=criterion.key,
        name=criterion.name,
        description=criterion.description,
        level=criterion.level,
        kind=criterion.kind,
        gate=criterion.gate,
        higher_is_better=criterion.higher_is_better,
        weight=criterion.weight,
        marks=marks(criterion),
        chips=list(criterion.chips),
    )


def newest(scores: Iterable[Score]) -> list[Score]:
    """Of scores in the order they were stored the last of every rater per criterion and step: older ones are kept, but no longer count."""
    found: dict[tuple[str, str, str, int], Score] = {}
    for score in scores:
        found[(score.criterion, score.rater_kind, score.rater, -1 if score.step is None else score.step)] = score
    return [found[key] for key in sorted(found)]


def is_mine(score: Score, rater: str) -> bool:
    """Whether this person gave the score."""
    return score.rater_kind == "human" and score.rater == rater


def score_view(score: Score, criteria: Sequence[Criterion], rater: str) -> ScoreView:
    """A score for the page."""
    criterion = next((criterion for criterion in criteria if criterion.key == score.criterion), None)
    return ScoreView(
        criterion=score.criterion,
        step=score.step,
        status=score.status.value,
        value=score.value,
        unit=None if criterion is None or score.value is None else criterion.unit_value(score.value),
        rater=score.rater,
        rater_kind=score.rater_kind,
        mine=is_mine(score, rater),
        note=score.note,
        chips=list(score.chips),
        time=score.time,
    )


def run_view(
    run: Trajectory, scores: Sequence[Score], criteria: Sequence[Criterion], *, criteria_missing: str, rater: str, bases: int
) -> RunView:
    """The run's page."""
    return RunView(
        id=run.id,
        taskset=run.taskset,
        task_id=run.task_id,
        family=run.family,
        split=run.split,
        policy=run.origin.reference,
        origin_kind=run.origin.kind,
        stop_reason=run.stop_reason.value,
        error=run.error,
        seconds=run.seconds,
        created=run.created,
        timeline=timeline(run.messages, run.steps),
        criteria=[criterion_view(criterion) for criterion in criteria],
        criteria_missing=criteria_missing,
        scores=[score_view(score, criteria, rater) for score in newest(scores)],
        overall=overall(criteria, scores),
        bases=bases,
    )


def list_row(row: RunRow, scores: Sequence[Score], criteria: Sequence[Criterion], rater: str) -> ListRow:
    """The run's line in the list."""
    return ListRow(
        id=row.id,
        taskset=row.taskset,
        task_id=row.task_id,
        family=row.family,
        split=row.split,
        policy=row.policy,
        stop_reason=row.stop_reason,
        n_steps=row.n_steps,
        n_calls=row.n_calls,
        created=row.created,
        n_errors=row.n_errors,
        excerpt=row.excerpt,
        overall=overall(criteria, scores),
        mine=sum(is_mine(score, rater) and score.status != ScoreStatus.WITHDRAWN for score in newest(scores)),
    )


def blind_view(run: Trajectory) -> BlindRun:
    """The run as a rater may see it who must not know where it came from."""
    return BlindRun(timeline=timeline(run.messages, run.steps), stop_reason=run.stop_reason.value)
