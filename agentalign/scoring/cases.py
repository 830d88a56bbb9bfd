"""Cases: what raters were asked, and everyone's answer, side by side.

A case is one criterion asked about one run, one step, or a pair of runs. Scores and preferences become the same kind of thing here, so
that whatever compares raters is written once. Surprise: which side of a pair was better is noted by the runs' ids, never by the side of
the screen, so that two people who saw it mirrored agree when they mean the same run.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from agentalign.records.criterion import NO_ANSWER, Score, ScoreStatus
from agentalign.records.preference import Item, Preference


class Question(NamedTuple):
    """A criterion, and how it was asked: by marks or by comparing two."""

    criterion: str
    """"name@version", or "overall" for pairs."""
    kind: Literal["mark", "pair"]


class Case(NamedTuple):
    """One question about one thing."""

    question: Question
    items: tuple[Item, ...]
    """The run or step; both of a pair, in the order of their ids."""

    @property
    def run(self) -> str:
        """What cases that are not independent have in common: the run, or the two runs."""
        return "+".join(item.trajectory for item in self.items)


class Rater(NamedTuple):
    """Who answers."""

    kind: str
    """"human", "judge", "check", "reward_model"; "scores" for pairs that scores made."""
    name: str


class Answer(NamedTuple):
    """What one said about a case."""

    rater: Rater
    value: float | None
    """On the criterion's scale, or an index into `preference.PAIR_ANSWERS`; None for "does not apply"."""
    note: str
    time: str
    left: str | None = None
    """Of a pair: the run that was shown on the left."""
    is_none: bool = False
    """The rater took an earlier answer back, or cannot judge: there is none from now on."""


class Panel(NamedTuple):
    """All cases of a taskset."""

    answers: dict[Case, dict[Rater, Answer]]
    """The newest of each rater."""
    decisions: dict[Case, Answer]
    """What an adjudicator decided; the newest."""
    events: dict[Case, list[Answer]]
    """Everything that people ever answered, oldest first, what they took back later included."""

    def people(self, case: Case) -> dict[Rater, Answer]:
        """What people answered."""
        return {rater: answer for rater, answer in self.answers[case].items() if rater.kind == "human"}

    def is_split(self, case: Case) -> bool:
        """Whether people do not all say the same; "does not apply" is an answer here."""
        return len({answer.value for answer in self.people(case).values()}) > 1


def panel(scores: Iterable[Score], preferences: Iterable[Preference]) -> Panel:
    """Everyone's answers by case.

    A check or judge that broke has not answered, nor has who took an answer back or cannot judge. Rankings of more than two are left out:
    their pairs were not asked one by one.

    Args:
        scores: in the order they were stored, which says who changed their mind; so are `preferences`.
    """
    found = Panel({}, {}, {})
    said = [(_score_case(score), _score_answer(score)) for score in scores if score.status != ScoreStatus.ERROR]
    said += [_pair(preference) for preference in preferences if len(preference.items) == 2]
    for case, answer in said:
        if answer.is_none:
            _drop(found, case, answer.rater)
            continue
        if answer.rater.kind == "adjudicator":
            found.decisions[case] = answer
            continue
        found.answers.setdefault(case, {})[answer.rater] = answer
        if answer.rater.kind == "human":
            found.events.setdefault(case, []).append(answer)
    return found


def _drop(found: Panel, case: Case, rater: Rater) -> None:
    if rater.kind == "adjudicator":
        found.decisions.pop(case, None)
        return
    answers = found.answers.get(case, {})
    answers.pop(rater, None)
    if not answers:
        found.answers.pop(case, None)


def _score_case(score: Score) -> Case:
    return Case(Question(score.criterion, "mark"), (Item(score.trajectory, score.step),))


def _score_answer(score: Score) -> Answer:
    is_none = score.status in NO_ANSWER
    return Answer(Rater(score.rater_kind, score.rater), score.value, score.note, score.time, is_none=is_none)


def _pair(preference: Preference) -> tuple[Case, Answer]:
    first, second = sorted(preference.items, key=lambda item: (item.trajectory, -1 if item.step is None else item.step))
    rater, is_none = Rater(preference.source, preference.rater), not preference.is_answer
    answer = Answer(rater, preference.pair_answer, preference.note, preference.time, preference.left, is_none=is_none)
    return Case(Question(preference.criterion, "pair"), (first, second)), answer
