"""Who was right where the answer is known, person by person and criterion by criterion.

No run is named here: a lead who reads it may still meet the run or pair themselves.
"""

from collections.abc import Iterable
from typing import NamedTuple

from agentalign.store.queue_items import GoldMark


class GoldRow(NamedTuple):
    """What one person answered by one criterion."""

    person: str
    criterion: str
    is_pair: bool
    asked: int
    right: int
    off: float | None
    """Mean distance on the criterion's scale; None for pairs, whose answers have no order, and where nothing was judged."""
    set_by: tuple[str, ...]
    """Who set the known answers, where somebody said who."""


def gold_rows(marks: Iterable[GoldMark]) -> list[GoldRow]:
    """The answers, counted."""
    groups: dict[tuple[str, str, bool], list[GoldMark]] = {}
    for mark in marks:
        groups.setdefault((mark.person, mark.criterion, mark.other is not None), []).append(mark)
    return [_row(*key, theirs) for key, theirs in sorted(groups.items())]


def _row(person: str, criterion: str, is_pair: bool, theirs: list[GoldMark]) -> GoldRow:
    given = [(mark.expected, mark.given) for mark in theirs if mark.given is not None]
    right = sum(expected == value for expected, value in given)
    off = sum(abs(expected - value) for expected, value in given) / len(given) if given and not is_pair else None
    set_by = tuple(sorted({mark.set_by for mark in theirs if mark.set_by}))
    return GoldRow(person, criterion, is_pair, len(theirs), right, off, set_by)
