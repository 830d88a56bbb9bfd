"""How each person rates: the side they favour, whether they would say it again, whether they drift, and how fast they are.

Every figure has its n, and flags are for talking to someone, not for deleting their marks: a fast rater may be a good one. Surprise: an
answer changed within the hour is a correction, unless ten other runs lie between; only a second look tells self-consistency.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby, pairwise
from statistics import fmean, median

import numpy as np

from agentalign.records.base import Record
from agentalign.records.criterion import Criterion
from agentalign.scoring.agreement import FEWEST_ITEMS, FEWEST_RUNS
from agentalign.scoring.cases import Answer, Case, Panel, Question, Rater
from agentalign.scoring.intervals import Share, bootstrap, no_more_than, share_of

REPEAT_SECONDS = 3600.0
REPEAT_RUNS = 10
"""So many other runs or pairs between two answers, and the second is a new look however soon it comes."""
PAUSE_SECONDS = 1800.0
"""A longer gap between two marks is a break, not work on a run."""
FAST_SECONDS = 5.0
FAST_SHARE = 1 / 3
"""Of the others' time per run."""
OVERALL = Question("overall", "pair")
BY_CHANCE = 0.01
"""A row of equal answers less likely than this is flagged."""


class Week(Record):
    """A person's marks of one week beside the others' on the same cases."""

    week: str
    """ISO year and week, "2026-W05"."""
    marks: int
    lean: float | None
    """Mean of own minus others' mean, on [0, 1] with 1 the best: above 0 is milder than the others. None without shared cases."""
    low: float | None
    high: float | None
    shared: int


class Streak(Record):
    """Runs in a row with equal answers to one question."""

    criterion: str
    value: float
    length: int
    marks: int
    """Runs that the person answered it about in all."""


class Habits(Record):
    """One person."""

    name: str
    marks: int
    pairs: int
    left: Share | None
    """Of clear overall choices between two sides, how often the left one. Other criteria of a pair would count one glance many times."""
    repeat: Share | None
    """Of cases answered again after an hour, or after ten other runs, how often alike."""
    swapped: Share | None
    """Of pairs answered again with their sides swapped, how often alike, overall: who goes by the side does not."""
    upheld: Share | None
    """Of decided cases, how often this person's answer was the decision. Mostly disputed cases are decided: low for everyone."""
    seconds_per_run: float | None
    """Median; None below two runs without a break between."""
    runs: int
    """Runs and pairs that the time is the median of."""
    weeks: tuple[Week, ...]
    streaks: tuple[Streak, ...]
    """Those that are unlikely by chance."""
    flags: tuple[str, ...]
    """Sentences worth a talk."""


def habits(found: Panel, criteria: Sequence[Criterion]) -> list[Habits]:
    """Everyone who rated, by name."""
    scales = {criterion.key: criterion for criterion in criteria}
    said: dict[Rater, list[tuple[Case, Answer]]] = {}
    for case, answers in found.events.items():
        for answer in answers:
            said.setdefault(answer.rater, []).append((case, answer))
    for own in said.values():
        own.sort(key=lambda one: one[1].time)
    paces = {rater: _seconds(own) for rater, own in said.items()}
    return [_habits(found, rater, said[rater], paces, scales) for rater in sorted(said)]


def _habits(
    found: Panel,
    rater: Rater,
    said: Sequence[tuple[Case, Answer]],
    paces: Mapping[Rater, Sequence[float]],
    scales: Mapping[str, Criterion],
) -> Habits:
    left = _left(said)
    repeat, swapped, upheld = _repeat(said), _swapped(said), _upheld(found, rater)
    weeks, streaks = _weeks(found, rater, scales), _streaks(found, rater)
    pace = paces[rater]
    others = [seconds for other, list_ in paces.items() if other != rater for seconds in list_]
    answered = [case for case, answers in found.answers.items() if rater in answers]
    return Habits(
        name=rater.name,
        marks=sum(case.question.kind == "mark" for case in answered),
        pairs=len({case.run for case in answered if case.question.kind == "pair"}),
        left=left,
        repeat=repeat,
        swapped=swapped,
        upheld=upheld,
        seconds_per_run=median(pace) if pace else None,
        runs=len(pace),
        weeks=tuple(weeks),
        streaks=tuple(streaks),
        flags=tuple(_flags(left, weeks, streaks, pace, others)),
    )


def _left(said: Sequence[tuple[Case, Answer]]) -> Share | None:
    clear = [(case, answer) for case, answer in said if case.question == OVERALL and answer.value in (0.0, 1.0) and answer.left]
    picked = [case.items[0 if answer.value == 0.0 else 1].trajectory == answer.left for case, answer in clear]
    return share_of(sum(picked), len(picked)) if picked else None


def _repeat(said: Sequence[tuple[Case, Answer]]) -> Share | None:
    pieces = enumerate(list(answers) for _, answers in groupby(said, key=lambda one: one[0].run))
    own: dict[Case, list[tuple[int, Answer]]] = {}
    for number, answers in pieces:
        for case, answer in answers:
            own.setdefault(case, []).append((number, answer))
    again = [
        before.value == after.value
        for answers in own.values()
        for (first, before), (second, after) in pairwise(answers)
        if second - first > REPEAT_RUNS or _apart(before, after) >= REPEAT_SECONDS
    ]
    return share_of(sum(again), len(again)) if again else None


def _swapped(said: Sequence[tuple[Case, Answer]]) -> Share | None:
    own: dict[Case, list[Answer]] = {}
    for case, answer in said:
        if case.question == OVERALL and answer.left:
            own.setdefault(case, []).append(answer)
    again = [one.value == other.value for answers in own.values() for one, other in pairwise(answers) if one.left != other.left]
    return share_of(sum(again), len(again)) if again else None


def _upheld(found: Panel, rater: Rater) -> Share | None:
    own = [(found.answers[case].get(rater), decision) for case, decision in found.decisions.items() if case in found.answers]
    both = [(answer.value, decision.value) for answer, decision in own if answer is not None]
    return share_of(sum(one == other for one, other in both), len(both)) if both else None


def _seconds(said: Sequence[tuple[Case, Answer]]) -> list[float]:
    """Seconds for each run or pair but the first after a break: from the last mark before it to its own last mark."""
    ends = [list(marks)[-1][1] for _, marks in groupby(said, key=lambda one: one[0].run)]
    gaps = (_apart(before, after) for before, after in pairwise(ends))
    return [seconds for seconds in gaps if 0 < seconds <= PAUSE_SECONDS]


def _apart(before: Answer, after: Answer) -> float:
    one, other = _moment(before.time), _moment(after.time)
    return (other - one).total_seconds() if one and other else 0.0


def _moment(time: str) -> datetime | None:
    """Imported ratings may say any time, or none."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _weeks(found: Panel, rater: Rater, scales: Mapping[str, Criterion]) -> list[Week]:
    marks: dict[str, int] = {}
    leans: dict[str, dict[str, list[float]]] = {}
    for case, answers in found.answers.items():
        own, criterion = answers.get(rater), scales.get(case.question.criterion)
        moment = _moment(own.time) if own else None
        if own is None or moment is None or criterion is None or case.question.kind == "pair" or own.value is None:
            continue
        year, number, _ = moment.isocalendar()
        week = f"{year}-W{number:02}"
        marks[week] = marks.get(week, 0) + 1
        others = [a.value for other, a in found.people(case).items() if other != rater and a.value is not None]
        if others:
            lean = criterion.unit_value(own.value) - fmean(map(criterion.unit_value, others))
            leans.setdefault(week, {}).setdefault(case.run, []).append(lean)
    return [_week(week, count, list(leans.get(week, {}).values())) for week, count in sorted(marks.items())]


def _week(week: str, marks: int, leans: Sequence[Sequence[float]]) -> Week:
    """Of leans by run: steps of one run are not independent, so runs are drawn again."""
    sums, counts = np.array([sum(own) for own in leans]), np.array([len(own) for own in leans])
    shared = int(counts.sum())
    low = high = None
    if shared >= FEWEST_ITEMS and len(leans) >= FEWEST_RUNS:
        low, high = bootstrap(lambda drawn: (drawn @ sums) / (drawn @ counts), len(leans)) or (None, None)
    if low is not None and high is not None and high - low < 1e-9:  # all alike, which is no certainty
        low, high = low - no_more_than(len(leans)), high + no_more_than(len(leans))
    return Week(week=week, marks=marks, lean=float(sums.sum() / shared) if shared else None, low=low, high=high, shared=shared)


def _streaks(found: Panel, rater: Rater) -> list[Streak]:
    """Of a run's answers to one question their mean: steps of one run go together, and would make rows of their own."""
    said: dict[tuple[Rater, str, str], list[tuple[str, float]]] = {}
    for case, answers in found.answers.items():
        for one, answer in answers.items():
            if one.kind == "human" and answer.value is not None and case.question.kind == "mark":
                said.setdefault((one, case.question.criterion, case.run), []).append((answer.time, answer.value))
    own: dict[str, list[tuple[str, float]]] = {}
    theirs: dict[str, list[float]] = {}
    for (one, criterion, _), timed in said.items():
        value = fmean(value for _, value in timed)
        if one == rater:
            own.setdefault(criterion, []).append((max(timed)[0], value))
        else:
            theirs.setdefault(criterion, []).append(value)
    found_streaks = []
    for criterion, runs in sorted(own.items()):
        values = [value for _, value in sorted(runs)]
        value, length = max(((value, len(list(row))) for value, row in groupby(values)), key=lambda one: one[1])
        others = theirs.get(criterion, [])
        # How common the answer is among the others, never quite certain: everyone may be right about an easy criterion.
        usual = (others.count(value) + 1) / (len(others) + 2)
        if len(values) >= FEWEST_ITEMS and len(others) >= FEWEST_ITEMS and _chance(length, len(values), usual) < BY_CHANCE:
            found_streaks.append(Streak(criterion=criterion, value=value, length=length, marks=len(values)))
    return found_streaks


def _chance(length: int, marks: int, usual: float) -> float:
    """Expected number of rows of `length` or more equal answers among `marks`: at least as large as the chance of one."""
    return usual**length * (1 + (marks - length) * (1 - usual))


def _flags(
    left: Share | None, weeks: Sequence[Week], streaks: Sequence[Streak], pace: Sequence[float], others: Sequence[float]
) -> Iterable[str]:
    if left is not None and left.n >= FEWEST_ITEMS and not left.low <= 0.5 <= left.high:
        yield f"chooses the {'left' if left.share > 0.5 else 'right'} side more often than chance"
    if len(pace) >= FEWEST_ITEMS:
        own = median(pace)
        if own < FAST_SECONDS:
            yield f"takes {own:.0f} s a run: hardly time to read one"
        elif len(others) >= FEWEST_ITEMS and own < FAST_SHARE * median(others):
            yield f"takes {own:.0f} s a run where the others take {median(others):.0f} s"
    for streak in streaks:
        yield f"gave {streak.criterion.split('@')[0]} the value {streak.value:g} in {streak.length} runs in a row"
    moved = [(a, b) for a, b in pairwise([w for w in weeks if w.low is not None]) if _left_each_other(a, b)]
    for before, after in moved:
        yield f"became {'milder' if (after.lean or 0) > (before.lean or 0) else 'stricter'} from {before.week} to {after.week}"


def _left_each_other(before: Week, after: Week) -> bool:
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return False
    return before.high < after.low or after.high < before.low
