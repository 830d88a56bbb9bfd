"""The cases behind a figure: what two raters, or all people, said about the same things, the widest apart first."""

from collections.abc import Sequence

from agentalign.records.base import Record
from agentalign.records.criterion import Criterion
from agentalign.records.preference import PAIR_ANSWERS, Item
from agentalign.scoring.cases import Answer, Case, Panel, Question, Rater


class Said(Record):
    """One answer, for showing."""

    rater: Rater
    value: float | None
    word: str
    """The value as people say it."""
    note: str
    time: str


class Dispute(Record):
    """A case with everyone's answers side by side."""

    question: Question
    items: tuple[Item, ...]
    spread: float
    """How far people are apart, from 0 to 1 of the scale; 1 where one says it does not apply."""
    answers: tuple[Said, ...]
    """People first."""
    decision: Said | None


def disputes(found: Panel, question: Question, criterion: Criterion | None, between: Sequence[Rater] = ()) -> list[Dispute]:
    """The question's cases that all of `between` answered (without them: two or more people), open ones first, then the widest apart."""
    cases = [case for case in found.answers if case.question == question]
    if between:
        cases = [case for case in cases if all(rater in found.answers[case] for rater in between)]
    else:
        cases = [case for case in cases if len(found.people(case)) > 1 or case in found.decisions]
    made = [dispute(found, case, criterion, between) for case in cases]
    return sorted(made, key=lambda one: (one.decision is not None, -one.spread, one.items))


def dispute(found: Panel, case: Case, criterion: Criterion | None, between: Sequence[Rater] = ()) -> Dispute:
    """One case; `spread` is over `between`, else over people."""
    answers = found.answers.get(case, {})
    asked = [answers[rater] for rater in between] if between else list(found.people(case).values()) if answers else []
    order = sorted(answers, key=lambda rater: (rater.kind != "human", rater))
    decision = found.decisions.get(case)
    return Dispute(
        question=case.question,
        items=case.items,
        spread=_spread([answer.value for answer in asked], case.question, criterion),
        answers=tuple(_said(answers[rater], case.question) for rater in order),
        decision=None if decision is None else _said(decision, case.question),
    )


def _said(answer: Answer, question: Question) -> Said:
    if answer.value is None:
        word = "does not apply"
    else:
        word = PAIR_ANSWERS[int(answer.value)] if question.kind == "pair" else f"{answer.value:g}"
    return Said(rater=answer.rater, value=answer.value, word=word, note=answer.note, time=answer.time)


def _spread(values: Sequence[float | None], question: Question, criterion: Criterion | None) -> float:
    if len(set(values)) < 2:
        return 0.0
    numbers = [value for value in values if value is not None]
    if question.kind == "pair" or criterion is None or len(numbers) < len(values):
        return 1.0
    low, high = criterion.scale
    return (max(numbers) - min(numbers)) / (high - low)
