"""What the scores said about pairs before, brought in line with what they say now.

Preferences are append-only, so a pair that the scores no longer give is not deleted: a later word takes it back, or turns it round.
What people said is never touched. Surprise: a pair that is given again stays the word that it was, although the values in its note may
have moved since: a training that learned from it finds it under the same id.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.records.base import digest, now
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Trajectory

Place = tuple[str, frozenset[Item], str, str]
"""What a rater's later word on supersedes their earlier one: criterion, items, source, rater."""


class Words(NamedTuple):
    """What to say in order that the given pairs, and no others, are in force."""

    pairs: list[Preference]
    """The given pairs, each as it is stored or as it has to be."""
    withdrawn: list[Preference]
    """Words that take back pairs which are not given any more."""


def words(given: Sequence[Preference], stored: Iterable[Preference], runs: Mapping[str, Trajectory], *, whole: bool, steps: bool) -> Words:
    """The given pairs as words of their own, and what takes back the other pairs that scores made of these runs.

    Args:
        given: what the scores say now, and people's corrections, which pass as they are.
        stored: every preference of the taskset, oldest first.
        runs: those that were compared, by id; pairs of any other run are left alone.
        whole: pairs of whole runs were made.
        steps: pairs of steps were made.
    """
    newest = {_place(word): word for word in stored if from_scores(word, runs)}
    pairs = [_said(pair, newest.get(_place(pair))) if from_scores(pair, runs) else pair for pair in given]
    kept = {_place(pair) for pair in pairs}
    gone = [
        word for place, word in newest.items() if word.is_answer and place not in kept and (whole if word.items[0].step is None else steps)
    ]
    return Words(pairs, [_taken_back(word) for word in gone])


def from_scores(word: Preference, runs: Mapping[str, Trajectory]) -> bool:
    """Whether scores, and not a person, put the items of a preference on these runs in order."""
    if word.criterion != "overall" or not all(item.trajectory in runs for item in word.items):
        return False
    better = runs[word.items[0].trajectory]
    # A correction that a person wrote is a run of one step; an expert's whole run is one of values.
    by_expert = word.source == "correction" and not better.is_one_step and word.rater == better.origin.reference
    return (word.source == "scores" and word.rater == "overall") or by_expert


def _place(word: Preference) -> Place:
    return word.criterion, frozenset(word.items), word.source, word.rater


def _said(pair: Preference, before: Preference | None) -> Preference:
    if before is not None and before.is_answer and before.items == pair.items:
        return before
    return pair.model_copy(update={"id": _id(pair, before)})


def _taken_back(before: Preference) -> Preference:
    word = before.model_copy(update={"withdrawn": True, "note": "the scores do not give this pair any more", "time": now()})
    return word.model_copy(update={"id": _id(word, before)})


def _id(word: Preference, before: Preference | None) -> str:
    """With the word that it comes after: what is said again after something else was said in between is a new word."""
    items: list[JsonValue] = [list(item) for item in word.items]
    return digest([word.taskset, items, word.source, word.rater, word.note, before.id if before else ""])
