"""Who agrees with whom: per question alpha over people, kappa for every two raters, and what people and machines say of each other.

A team reads here whether a criterion means the same to everyone, before anything is trained on it. Only people count in alpha; judges,
checks and reward models stand beside them, each against each person. "Does not apply" is missing data to a coefficient; where some say
it and others give a value, the case counts as split.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from agentalign.records.base import Record
from agentalign.records.criterion import Criterion
from agentalign.records.preference import PAIR_ANSWERS, Item
from agentalign.scoring.agreement import Estimate, Metric, alpha, correlation, kappa
from agentalign.scoring.cases import Case, Panel, Question, Rater
from agentalign.scoring.intervals import Share, share_of

WORST = 10
"""Disagreements with a machine that are listed."""
MOST_CLASSES = 7
"""More different values than this are put into thirds of the scale for a table of who said what."""


class Kappa(Record):
    """Two raters of one question."""

    first: Rater
    second: Rater
    kappa: Estimate
    same: float | None
    """Share of equal answers; reads high where one answer is common, so it never stands alone."""


class Disagreement(Record):
    """A case on which people and a machine are far apart."""

    items: tuple[Item, ...]
    people: float
    """The decision where there is one, else people's mean."""
    machine: float


class Confusion(Record):
    """How often people said the row's value and the machine the column's."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Machine(Record):
    """A judge, check or reward model against people, on one question."""

    rater: Rater
    correlation: Estimate | None
    """Spearman's, with people's mean; None for pairs, which have no order."""
    confusion: Confusion
    worst: tuple[Disagreement, ...]


class FirstErrors(Record):
    """Where two people saw the first bad step of a run; over all runs and pairs of people."""

    same: Share | None
    """Both saw one, at the same step."""
    mean_distance: float | None
    """Steps between the two, where both saw one."""
    one_only: int
    """One saw a bad step and the other none."""
    neither: int


class QuestionAgreement(Record):
    """How one question is answered."""

    question: Question
    level: str
    """run, step or pair"""
    metric: Metric
    raters: tuple[Rater, ...]
    """People first."""
    alpha: Estimate
    kappas: tuple[Kappa, ...]
    shared: int
    """Cases that two or more people answered."""
    split: int
    """Of these, where they do not all say the same."""
    open: int
    """Of these, not decided yet."""
    decided: int
    machines: tuple[Machine, ...]
    first_errors: FirstErrors | None = None
    """For steps only."""


def questions(found: Panel, criteria: Sequence[Criterion]) -> list[QuestionAgreement]:
    """Every question in force that more than one rater answered, in the order of the criteria, pairs last."""
    known = {criterion.key: criterion for criterion in criteria}
    groups: dict[Question, list[Case]] = {}
    for case in found.answers:
        if case.question.criterion in known or case.question.criterion == "overall":
            groups.setdefault(case.question, []).append(case)
    order = [*known, "overall"]
    asked = sorted(groups, key=lambda question: (question.kind == "pair", order.index(question.criterion)))
    return [_question(found, question, groups[question], known.get(question.criterion)) for question in asked]


def _question(found: Panel, question: Question, cases: Sequence[Case], criterion: Criterion | None) -> QuestionAgreement:
    raters = sorted({rater for case in cases for rater in found.answers[case]}, key=lambda rater: (rater.kind != "human", rater))
    metric = _metric(found, question, cases, criterion)
    people = [[a.value for a in found.people(case).values() if a.value is not None] for case in cases]
    shared = [case for case in cases if len(found.people(case)) > 1]
    split = [case for case in shared if found.is_split(case)]
    steps = question.kind == "mark" and criterion is not None and criterion.level == "step"
    return QuestionAgreement(
        question=question,
        level="pair" if question.kind == "pair" else "step" if steps else "run",
        metric=metric,
        raters=tuple(raters),
        alpha=alpha(people, metric, [case.run for case in cases]),
        kappas=tuple(
            _kappa(found, cases, first, second, metric)
            for first, second in combinations(raters, 2)
            if first.kind == "human" and _both(found, cases, first, second)
        ),
        shared=len(shared),
        split=len(split),
        open=sum(case not in found.decisions for case in split),
        decided=sum(case in found.decisions for case in cases),
        machines=tuple(_machine(found, cases, r, criterion) for r in raters if r.kind != "human" and _facing(found, cases, r)),
        first_errors=first_errors(found, cases, criterion) if steps and criterion else None,
    )


def _metric(found: Panel, question: Question, cases: Sequence[Case], criterion: Criterion | None) -> Metric:
    if question.kind == "pair" or criterion is None:
        return "nominal"
    values = {answer.value for case in cases for answer in found.answers[case].values()} - {None}
    return "nominal" if values <= set(criterion.scale) else "ordinal"


def _both(found: Panel, cases: Sequence[Case], first: Rater, second: Rater) -> list[tuple[Case, float, float]]:
    pairs = []
    for case in cases:
        one, other = found.answers[case].get(first), found.answers[case].get(second)
        if one and other and one.value is not None and other.value is not None:
            pairs.append((case, one.value, other.value))
    return pairs


def _kappa(found: Panel, cases: Sequence[Case], first: Rater, second: Rater, metric: Metric) -> Kappa:
    both = _both(found, cases, first, second)
    estimate = kappa([one for _, one, _ in both], [other for _, _, other in both], metric, [case.run for case, _, _ in both])
    same = None if estimate.why == "too few" else sum(one == other for _, one, other in both) / len(both)
    return Kappa(first=first, second=second, kappa=estimate, same=same)


def _facing(found: Panel, cases: Sequence[Case], rater: Rater) -> list[tuple[Case, float, float]]:
    """(case, what holds by people, what the machine said) wherever both spoke."""
    pairs = []
    for case in cases:
        machine, people = found.answers[case].get(rater), _by_people(found, case)
        if machine and machine.value is not None and people is not None:
            pairs.append((case, people, machine.value))
    return pairs


def _by_people(found: Panel, case: Case) -> float | None:
    if case in found.decisions:
        return found.decisions[case].value
    values = [answer.value for answer in found.people(case).values() if answer.value is not None]
    if not values or (case.question.kind == "pair" and len(set(values)) > 1):
        return None  # two who chose differently have no mean
    return sum(values) / len(values)


def _machine(found: Panel, cases: Sequence[Case], rater: Rater, criterion: Criterion | None) -> Machine:
    facing = _facing(found, cases, rater)
    people, machine = [one for _, one, _ in facing], [other for _, _, other in facing]
    scale = criterion.scale if criterion is not None and facing[0][0].question.kind == "mark" else None
    rho = correlation(people, machine, [case.run for case, _, _ in facing]) if scale else None
    span = scale[1] - scale[0] if scale else 1.0
    # On a long scale a rounding of the mean is no disagreement; a quarter of the scale is one.
    apart = [one for one in facing if abs(one[1] - one[2]) >= (span / 4 if scale else 0.5)]
    apart.sort(key=lambda one: (-abs(one[1] - one[2]), one[0].run))
    worst = tuple(Disagreement(items=case.items, people=one, machine=other) for case, one, other in apart[:WORST])
    return Machine(rater=rater, correlation=rho, confusion=confusion(list(zip(people, machine, strict=True)), scale), worst=worst)


def confusion(pairs: Sequence[tuple[float, float]], scale: tuple[float, float] | None) -> Confusion:
    """Counts of what was said together; `scale` is None for pairs."""
    if scale is None:
        return _counted(PAIR_ANSWERS, [(int(one), int(other)) for one, other in pairs])
    values = sorted({value for pair in pairs for value in pair})
    if len(values) <= MOST_CLASSES:
        return _counted([f"{value:g}" for value in values], [(values.index(one), values.index(other)) for one, other in pairs])
    low, high = scale

    def third(value: float) -> int:
        return min(2, max(0, int(3 * (value - low) / (high - low))))

    return _counted(["low", "middle", "high"], [(third(one), third(other)) for one, other in pairs])


def _counted(labels: Sequence[str], pairs: Iterable[tuple[int, int]]) -> Confusion:
    counts = [[0] * len(labels) for _ in labels]
    for row, column in pairs:
        counts[row][column] += 1
    return Confusion(labels=tuple(labels), counts=tuple(tuple(row) for row in counts))


def first_errors(found: Panel, cases: Sequence[Case], criterion: Criterion) -> FirstErrors:
    """How far apart people find the first bad step (worth less than half) of the runs that both marked."""
    marked: dict[str, dict[Rater, int | None]] = {}
    for case in cases:
        (item,) = case.items
        for rater, answer in found.people(case).items():
            firsts = marked.setdefault(item.trajectory, {})
            before = firsts.setdefault(rater, None)
            if answer.value is not None and criterion.unit_value(answer.value) < 0.5 and item.step is not None:
                firsts[rater] = item.step if before is None else min(before, item.step)
    return _distances([pair for firsts in marked.values() for pair in combinations(_in_order(firsts), 2)])


def _in_order(firsts: Mapping[Rater, int | None]) -> list[int | None]:
    return [firsts[rater] for rater in sorted(firsts)]


def _distances(pairs: Sequence[tuple[int | None, int | None]]) -> FirstErrors:
    apart = [abs(one - other) for one, other in pairs if one is not None and other is not None]
    return FirstErrors(
        same=share_of(apart.count(0), len(apart)) if apart else None,
        mean_distance=sum(apart) / len(apart) if apart else None,
        one_only=sum((one is None) != (other is None) for one, other in pairs),
        neither=sum(one is None and other is None for one, other in pairs),
    )
