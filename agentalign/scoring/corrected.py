"""A step that a person wrote anew: a run of its own that ends there, and the pair "this, not that" at the same state.

The original is never touched. The new run holds the original's messages up to the step, so a training that imitates it must leave
those turns alone: the agent wrote them (`training.render` knows by `parent`). The surprise: a correction is no whole run. Nothing was
acted out after it, so no check scores it and nobody compares it; it stands by its author's word, until that is taken back.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.environments.tool import check_arguments, schema_validator
from agentalign.errors import DataError, TasksetError, ToolError
from agentalign.records.base import digest
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, TokenRecord, ToolCall, Trajectory


class Act(NamedTuple):
    """What the agent should have written."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    """(tool, arguments as JSON text) in order."""


def correct_step(run: Trajectory, step: int, act: Act, author: str) -> Trajectory:
    """The run up to `step`, which now is `act`.

    Raises:
        DataError: the run has no such step, nothing was changed, or a call does not fit its tool.
    """
    if run.is_corrected_step:
        raise DataError(
            "this run is itself a corrected step. Correct the step of the run that it was made from; the newest correction counts."
        )
    if not 0 <= step < len(run.steps):
        raise DataError(f"run {run.id} has {len(run.steps)} steps, so there is no step {step} to correct: steps are counted from 0.")
    place, original = run.steps[step].message_index, run.steps[step].message
    if not act.content.strip() and not act.calls:
        raise DataError("the corrected step says nothing and calls nothing. Write a reply, or add a call.")
    offered = offered_tools(run)
    for name, arguments in act.calls:
        require_fit(name, arguments, offered)
    message = Message(role="assistant", content=act.content, reasoning=act.reasoning, tool_calls=_calls(run, original, act))
    if _said(message) == _said(original):
        raise DataError("the corrected step says just what the agent's did. Change it, or leave the step as it is.")
    return Trajectory(
        taskset=run.taskset,
        messages=(*run.messages[:place], message),
        tools=run.tools,
        origin=Origin(kind="correction", reference=author, task=run.origin.task, sample=run.origin.sample, seed=run.origin.seed),
        task_id=run.task_id,
        family=run.family,
        split=run.split,
        parent=(run.id, step),
    )


def inherited_tokens(corrected: Trajectory, original: TokenRecord | None) -> list[TokenRecord]:
    """Recorded tokens of the turns before the corrected one: the state is then exactly what the agent saw."""
    turns = tuple(turn for turn in original.turns if turn.message_index < len(corrected.messages) - 1) if original else ()
    return [TokenRecord(trajectory=corrected.id, base=original.base, turns=turns)] if original and turns else []


def correction_pair(corrected: Trajectory, original: Trajectory, *, note: str = "", id: str = "", withdrawn: bool = False) -> Preference:
    """The author's word: the corrected step over the original's, at the same state; or that word taken back.

    Args:
        id: idempotency key; by default made from what is compared, so that making the pair again adds nothing.
    """
    step = len(corrected.steps) - 1
    items = (Item(corrected.id, step), Item(original.id, step))
    author = corrected.origin.reference
    return Preference(
        taskset=corrected.taskset, items=items, source="correction", rater=author, note=note, withdrawn=withdrawn,
        id=id or digest(["correction", [list(item) for item in items], author]),
    )  # fmt: skip


def standing(runs: Iterable[Trajectory], preferences: Iterable[Preference]) -> dict[str, Preference | None]:
    """Which corrected steps count: of every author and step the one of the newest word, unless that takes it back.

    Args:
        runs: oldest first; those that are no corrected steps are passed over.
        preferences: oldest first.

    Returns:
        By the corrected step's run id the author's word on it; None for an imported one that has no pair yet.
    """
    newest = {(p.rater, p.items[-1]): p for p in preferences if p.source == "correction"}
    found: dict[tuple[str, Item], tuple[str, Preference | None]] = {}
    for run in runs:
        if run.is_corrected_step and run.parent is not None:
            key = (run.origin.reference, Item(*run.parent))
            word = newest.get(key)
            if word is None or (word.items[0].trajectory == run.id and not word.withdrawn):
                found[key] = (run.id, word)
    return dict(found.values())


def corrected_pairs(runs: Mapping[str, Trajectory], preferences: Sequence[Preference]) -> list[Preference]:
    """The pair of every corrected step that counts and whose original is among the runs; those that are stored, as they are stored."""
    pairs = []
    for id, word in standing(runs.values(), preferences).items():
        parent = runs[id].parent
        original = runs.get(parent[0]) if parent else None
        if original is not None:
            pairs.append(word or correction_pair(runs[id], original))
    return pairs


def offered_tools(run: Trajectory) -> dict[str, JsonValue]:
    """Parameters' schema by tool: of those the run was offered, else of those it called, of which nothing more is known."""
    try:
        listed = json.loads(run.tools)
    except ValueError:
        listed = []
    functions = [entry.get("function") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    found: dict[str, JsonValue] = {
        f["name"]: f.get("parameters") or {} for f in functions if isinstance(f, dict) and isinstance(f.get("name"), str)
    }
    return found or {call.name: {} for step in run.steps for call in step.message.tool_calls}


def require_fit(name: str, arguments: str, offered: Mapping[str, JsonValue]) -> None:
    """DataError where a person wrote a call that the tools offered (see `offered_tools`) would not take."""
    if name not in offered:
        raise DataError(f"this run was not offered a tool '{name}'. Use one of: {', '.join(offered) or 'none; write a reply instead'}.")
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{name}: the arguments are not JSON ({str(error) or "nested too deeply"}). Write an object such as {{"key": "value"}}.'
        ) from None
    if not isinstance(value, dict):
        raise DataError(f'{name}: the arguments must be an object such as {{"key": "value"}}.')
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise DataError(
            f"{name}: the arguments hold NaN, infinity or half a character, which no tool can be called with. Remove it."
        ) from None
    try:
        check_arguments(schema_validator(offered[name], f"tool '{name}' of this run", is_own=False), name, value)
    except ToolError as error:
        raise DataError(f"{error} Mend the arguments and save again.") from None
    except TasksetError as error:
        raise DataError(f"the call cannot be checked: {error}") from None


def _calls(run: Trajectory, original: Message, act: Act) -> tuple[ToolCall, ...]:
    """The calls under the original's ids, so that nothing differs but what was corrected; further ones get ids that are new in the run."""
    taken = {call.id for message in run.messages for call in message.tool_calls}
    fresh = (f"call_{n}" for n in range(len(taken) + len(act.calls)) if f"call_{n}" not in taken)
    ids = [call.id for call in original.tool_calls]
    return tuple(
        ToolCall(id=ids[n] if n < len(ids) else next(fresh), name=name, arguments=text) for n, (name, text) in enumerate(act.calls)
    )


def _said(message: Message) -> tuple[object, ...]:
    return message.content, message.reasoning, [(call.name, call.arguments) for call in message.tool_calls], bool(message.malformed)
