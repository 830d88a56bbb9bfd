"""Which entry of a list an agent takes, and examples for the places of lists that preferences mostly reject.

An agent that has looked something up acts on one of several entries: the order to cancel, the file to open. Where most preferences
reject the first ("not that order, the red one"), a policy learns to pass over the first, whatever it was asked for: on the order desk a
dozen such pairs took "my latest order" from half of the tasks that had all gone well, and from a fifth where there were few.
Pairs from demonstrations that rightly take just that place teach the difference.
Surprise: what counts as a list is read off the text of a tool's result, whatever form it has: values of one make after the same words.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.records.trajectory import Message, ToolCall, Trajectory

MOST_CHARACTERS = 20_000
"""A longer result is not looked through for its entries."""
MOST_OF_A_VALUE = 200
"""A longer argument is a text, not an entry."""
_PIECES = re.compile(r"\d+|[^\W\d_]+|.", re.DOTALL)
_BEFORE = re.compile(r"[\n{}\[\](),;|]")


class Pick(NamedTuple):
    """An argument whose value is one of the entries that a tool had listed."""

    message: int
    """Index in the run's messages."""
    argument: str
    value: str
    place: int
    """Which of the entries it is, from 0."""
    entries: tuple[str, ...]
    """All of them, in the list's order."""


class Unlike(NamedTuple):
    """A demonstration up to a step, which takes another entry than the demonstration did."""

    demonstration: Trajectory
    step: int
    altered: Trajectory


def entries(result: str, value: str) -> tuple[str, ...]:
    """The values in a tool's result that are made like this one and stand after the same words, in their order, each once.

    Made like: the same letters-digits-signs pattern, of any length. Empty where the value itself is not among them.
    """
    if not value or len(value) > MOST_OF_A_VALUE or len(result) > MOST_CHARACTERS or value not in result:
        return ()
    made = "".join(_made_like(piece) for piece in _PIECES.findall(value))
    found: dict[str, list[str]] = {}
    of_value = None
    for match in re.finditer(rf"(?<!\w){made}(?!\w)", result):
        line = _BEFORE.split(result[max(0, match.start() - 80) : match.start()])[-1]
        before = re.sub(r"\d+", "", line).strip().casefold()
        found.setdefault(before, []).append(match.group())
        if of_value is None and match.group() == value:
            of_value = before
    return tuple(dict.fromkeys(found[of_value])) if of_value is not None else ()


def _made_like(piece: str) -> str:
    if piece.isdecimal():
        return r"\d+"
    return r"[^\W\d_]+" if piece.isalpha() else re.escape(piece)


def picks(run: Trajectory, step: int) -> list[Pick]:
    """The arguments of a step's only call that were taken from a list of two and more, in the order of their names."""
    if not 0 <= step < len(run.steps):
        return []
    index, message = run.steps[step].message_index, run.steps[step].message
    said = [before.content for before in run.messages[:index] if before.role in ("user", "system")]
    found = []
    for argument, written in sorted(_arguments(message).items()):
        value = str(written)
        if not isinstance(written, str | int) or isinstance(written, bool):
            continue
        if any(value in text for text in said):  # named by who asked: nothing to choose
            continue
        for before in reversed(run.messages[:index]):
            listed = entries(before.content, value) if before.role == "tool" else ()
            if len(listed) > 1:
                found.append(Pick(index, argument, value, listed.index(value), listed))
                break
    return found


def picked_apart(better: Trajectory, worse: Trajectory, step: int) -> tuple[Pick, Pick] | None:
    """Where two runs part by taking different entries of one list for the same argument: what each took."""
    one, other = (run.steps[step].message for run in (better, worse))
    calls = _call(one), _call(other)
    if calls[0] is None or calls[1] is None or calls[0].name != calls[1].name:
        return None
    if (one.content, one.reasoning) != (other.content, other.reasoning):
        return None
    ours, theirs = _arguments(one), _arguments(other)
    # Records hold arguments in the order of their names: what differs first is where the two texts part.
    differs = next(
        (name for name in sorted({*ours, *theirs}) if name not in ours or name not in theirs or ours[name] != theirs[name]), None
    )
    mine, others = ({pick.argument: pick for pick in picks(run, step)} for run in (better, worse))
    if differs is None or differs not in mine or differs not in others:
        return None
    return (mine[differs], others[differs]) if mine[differs].entries == others[differs].entries else None


def unlike(pairs: Sequence[tuple[Pick, Pick]], demonstrations: Sequence[Trajectory], own_from: Mapping[str, int]) -> list[Unlike]:
    """For each place that is rejected more often than preferred, as many demonstrations that take it as are missing.

    Args:
        pairs: what the better and the worse run of each pair took.
        demonstrations: to take contexts from; each is used as often as any other.
        own_from: trajectory id -> its first step that its own maker wrote.
    """
    if not pairs:
        return []
    preferred = Counter(better.place for better, _ in pairs)
    against: dict[int, list[int]] = {}
    for better, worse in pairs:
        against.setdefault(worse.place, []).append(better.place)
    taken: dict[int, list[tuple[Trajectory, int, Pick]]] = {}
    for run in demonstrations:
        for step in range(own_from.get(run.id, 0), len(run.steps)):
            for pick in picks(run, step)[:1]:
                taken.setdefault(pick.place, []).append((run, step, pick))
    used: Counter[str] = Counter()
    found = []
    for place in sorted(against):
        for instead in against[place][preferred[place] :]:
            for run, step, pick in sorted(taken.get(place, []), key=lambda one: (used[one[0].id], one[0].id, one[1])):
                others = [other for other in range(len(pick.entries)) if other != place]
                altered = _taking(run, pick, pick.entries[min(others, key=lambda at: abs(at - instead))])
                if altered is not None:
                    used[run.id] += 1
                    found.append(Unlike(run, step, altered))
                    break
    return found


def _taking(run: Trajectory, pick: Pick, entry: str) -> Trajectory | None:
    """The run up to that step, which takes another entry; None where the written call does not show the value once."""
    message = run.messages[pick.message]
    (call,) = message.tool_calls
    if call.arguments.count(pick.value) != 1:
        return None
    said = Message.model_validate(
        {**message.model_dump(), "tool_calls": [{**call.model_dump(), "arguments": call.arguments.replace(pick.value, entry)}]}
    )
    meant = {name: entry if name == pick.argument else str(value) for name, value in _arguments(message).items()}
    if {name: str(value) for name, value in _arguments(said).items()} != meant:  # 007 is no number
        return None
    return Trajectory(
        taskset=run.taskset, messages=(*run.messages[: pick.message], said), tools=run.tools, origin=run.origin, task_id=run.task_id
    )


def _call(message: Message) -> ToolCall | None:
    return message.tool_calls[0] if len(message.tool_calls) == 1 else None


def _arguments(message: Message) -> dict[str, JsonValue]:
    """What a message's only call was given, by name; empty where that is no object."""
    call = _call(message)
    try:
        written = json.loads(call.arguments) if call else {}
    except (ValueError, RecursionError):
        return {}
    return written if isinstance(written, dict) else {}
