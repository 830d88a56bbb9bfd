"""Two timelines beside each other, row by row: what both runs did, what only one did, and where the same act differs.

What both begin with is counted. After it rows are matched by a longest common subsequence of acts (tools with canonical arguments);
what is left between two matches is matched again by tools alone, which finds the same tool with other arguments. The surprise: a
message without a call matches any other of its kind in that second round, because its words are what a rater wants to see compared.
"""

import json
from collections.abc import Hashable, Iterator, Sequence
from itertools import takewhile
from typing import Literal

from pydantic import BaseModel

from agentalign.records.base import canonical_json
from agentalign.ui.views import Entry

MOST_CELLS = 1_000_000
"""Longer timelines are matched from their beginnings alone: the table grows with the product of both lengths."""


class Row(BaseModel):
    """What stands side by side: places in the two timelines."""

    left: int | None
    right: int | None
    """None: this side did nothing of the kind here."""
    kind: Literal["same", "changed", "only_left", "only_right"]
    """"same" says nothing about reasoning, which is not compared."""


def shared_entries(left: Sequence[BaseModel], right: Sequence[BaseModel]) -> int:
    """How many entries two timelines have in common, reasoning included, before they part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def align(left: Sequence[Entry], right: Sequence[Entry]) -> list[Row]:
    """The rows after what both begin with, in the order of both timelines."""
    start = shared_entries(left, right)
    acts = [[_act(entry) for entry in side] for side in (left, right)]
    tools = [[_tools(entry) for entry in side] for side in (left, right)]
    rows: list[Row] = []
    at = (start, start)
    for exact in [*_matches(acts[0], acts[1], at, (len(left), len(right))), (len(left), len(right))]:
        for near in [*_matches(tools[0], tools[1], at, exact), exact]:
            rows += [Row(left=index, right=None, kind="only_left") for index in range(at[0], near[0])]
            rows += [Row(left=None, right=index, kind="only_right") for index in range(at[1], near[1])]
            if near[0] < len(left) and near[1] < len(right):
                same = _shown(left[near[0]]) == _shown(right[near[1]])
                rows.append(Row(left=near[0], right=near[1], kind="same" if same else "changed"))
            at = (near[0] + 1, near[1] + 1)
    return rows


def _matches(
    left: Sequence[Hashable], right: Sequence[Hashable], start: tuple[int, int], end: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """A longest common subsequence of the two stretches, as pairs of places."""
    a, b = left[start[0] : end[0]], right[start[1] : end[1]]
    if len(a) * len(b) > MOST_CELLS:
        yield from ((start[0] + n, start[1] + n) for n, _ in enumerate(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))
        return
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        here, below = longest[i], longest[i + 1]
        for j in reversed(range(len(b))):
            here[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], here[j + 1])
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            yield start[0] + i, start[1] + j
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1


def _act(entry: Entry) -> Hashable:
    calls = tuple((call.name, canonical_arguments(call.arguments)) for call in entry.calls)
    return (entry.kind, entry.tool, calls) if calls else (entry.kind, entry.tool, entry.text)


def _tools(entry: Entry) -> Hashable:
    return (entry.kind, entry.tool, tuple(call.name for call in entry.calls))


def _shown(entry: Entry) -> Hashable:
    answers = tuple((call.result, call.error) for call in entry.calls)
    return (_act(entry), entry.text, entry.malformed, entry.error, answers)


def canonical_arguments(text: str) -> str:
    """Arguments as one spelling of their JSON; as they are where they are none, or too deep or too large to be read."""
    try:
        return canonical_json(json.loads(text))
    except (ValueError, RecursionError):
        return text
