"""Preferences from scores: which run of a task is better, and which step at the point where two runs part.

Pure functions over records; a run comes with what it is worth, or None where that is missing (such a run makes no pair).
Two runs are compared by the criteria that both were judged by: a run that someone rated is not worse or better for it than one that
nobody looked at. All runs of a task are laid into one tree of messages, so a step stands for every run that took it: a step is preferred
only if the runs that took it did better on average too, and equal steps or runs never face each other.
Surprise: tool-call ids take no part in "equal". They are names a server made up; two runs that differ in nothing else are one.
"""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from pydantic import JsonValue

from agentalign.records.base import digest
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, StopReason, Trajectory
from agentalign.scoring.worth import Worth

Scored = tuple[Trajectory, Worth | None]
"""A run and its worth; None where its overall value cannot be known."""

T = TypeVar("T")
Group = tuple[str, str]
"""(family, branch): what pairs are balanced over."""

MOST_RUNS = 200
"""More runs of one task than this are thinned out by chance first: pairs grow with their square."""

_ROUNDING = 1e-9

logger = logging.getLogger("agentalign")


class _Run(NamedTuple):
    trajectory: Trajectory
    nodes: tuple[int, ...]
    """Per message the node of the task's tree: equal for two runs exactly where all messages up to there are equal."""
    worth: Worth = Worth(frozenset(), lambda _: None)


class _Candidate(NamedTuple):
    better: Item
    worse: Item
    sides: tuple[int, int]
    """Tree nodes of the better and the worse item: equal content has equal nodes."""
    gap: float
    contest: "_Contest"


class _Contest(NamedTuple):
    """Two runs, one of which is better by the criteria that both have answers to."""

    better: _Run
    worse: _Run
    criteria: frozenset[str]
    values: tuple[float, float]

    @property
    def note(self) -> str:
        one_sided = sorted(self.better.worth.answered ^ self.worse.worth.answered)
        more = f", without {', '.join(one_sided)}" if one_sided else ""
        more = ", which failed a veto" if self.worse.worth.vetoed else more
        return f"overall {self.values[0]:.3f} over {self.values[1]:.3f}{more}"


class _Means:
    """Mean value of the runs at each node of a task's tree, by any set of criteria, over the runs with answers to all of these."""

    def __init__(self, runs: Sequence[_Run], nodes_of: Callable[[_Run], Iterable[int]]) -> None:
        self._runs, self._nodes_of = runs, nodes_of
        self._found: dict[frozenset[str], dict[int, float]] = {}

    def at(self, node: int, criteria: frozenset[str]) -> float:
        if criteria not in self._found:
            values: dict[int, list[float]] = defaultdict(list)
            for run in self._runs:
                value = run.worth.by(criteria) if run.worth.answered >= criteria else None
                if value is not None:
                    for place in self._nodes_of(run):
                        values[place].append(value)
            self._found[criteria] = {place: sum(group) / len(group) for place, group in values.items()}
        return self._found[criteria][node]


def task_pairs(runs: Sequence[Scored], *, margin: float, per_task: int, seed: int) -> list[Preference]:
    """Whole runs of one task whose values differ by at least `margin`, at most `per_task` pairs a task, in an order the seed fixes."""
    found = []
    for group in _by_task(runs, seed):
        means = _Means(group, lambda run: run.nodes[-1:])
        candidates = []
        for contest in _contests(group, group, margin):
            better, worse = contest.better, contest.worse
            sides = (better.nodes[-1], worse.nodes[-1])
            gap = means.at(sides[0], contest.criteria) - means.at(sides[1], contest.criteria)
            if sides[0] != sides[1] and gap >= margin - _ROUNDING and gap > 0:
                candidates.append(_Candidate(Item(better.trajectory.id), Item(worse.trajectory.id), sides, gap, contest))
        found += _preferences(group, candidates, per_task, seed, "scores")
    return found


def step_pairs(runs: Sequence[Scored], *, margin: float, per_task: int, seed: int) -> list[Preference]:
    """The step of the better run over that of the worse, at the first step where two runs of one task part.

    Everything before the two steps is equal, tool results included. Runs that part because the environment answered differently,
    or because one simply ends, make no pair; nor does a better step whose tool call could not be read.
    """
    found = []
    for group in _by_task(runs, seed):
        means = _Means(group, lambda run: run.nodes)
        candidates = []
        for contest in _contests(group, group, margin):
            better, worse = contest.better, contest.worse
            place = _parting(better, worse)
            if place is None or better.trajectory.messages[place].malformed:
                continue
            sides = (better.nodes[place], worse.nodes[place])
            gap = means.at(sides[0], contest.criteria) - means.at(sides[1], contest.criteria)
            if gap >= margin - _ROUNDING and gap > 0:
                step = _step_index(better.trajectory, place)
                items = Item(better.trajectory.id, step), Item(worse.trajectory.id, step)
                candidates.append(_Candidate(*items, sides, gap, contest))
        found += _preferences(group, candidates, per_task, seed, "scores")
    return found


def corrections(experts: Sequence[Scored], runs: Sequence[Scored], *, margin: float, per_task: int, seed: int) -> list[Preference]:
    """What an expert did where a run went wrong: the expert's step over the run's, at the first step where they part.

    `experts` are expert runs and corrected runs (forks that continue a run's own history); of several the one that parts latest
    from the run speaks, because it says most exactly where the mistake is. A run's step is no mistake when the runs that took it
    did about as well as the expert.
    """
    expert_ids = {trajectory.id for trajectory, _ in experts}
    own = [run for run in runs if run[0].id not in expert_ids]
    found = []
    for group in _by_task([*experts, *own], seed, always=expert_ids):
        teachers = [run for run in group if run.trajectory.id in expert_ids]
        pupils = [run for run in group if run.trajectory.id not in expert_ids]
        means = _Means(pupils, lambda run: run.nodes)
        latest: dict[str, tuple[int, _Candidate]] = {}
        for contest in _contests(teachers, pupils, margin):
            teacher, pupil = contest.better, contest.worse
            place = _parting(teacher, pupil)
            if place is None or teacher.trajectory.messages[place].malformed:
                continue
            gap = contest.values[0] - means.at(pupil.nodes[place], contest.criteria)
            if gap < margin - _ROUNDING or place <= latest.get(pupil.trajectory.id, (-1,))[0]:
                continue
            step = _step_index(teacher.trajectory, place)
            items = Item(teacher.trajectory.id, step), Item(pupil.trajectory.id, step)
            sides = (teacher.nodes[place], pupil.nodes[place])
            latest[pupil.trajectory.id] = (place, _Candidate(*items, sides, gap, contest))
        found += _preferences(group, [candidate for _, candidate in latest.values()], per_task, seed, "correction")
    return found


def parting_step(first: Trajectory, second: Trajectory) -> int | None:
    """Index of the first step where two runs differ after equal messages; None where no step of both is the first difference."""
    tree: dict[tuple[object, ...], int] = {}
    place = _parting(_Run(first, _nodes(first, tree)), _Run(second, _nodes(second, tree)))
    return None if place is None else _step_index(first, place)


def balance(
    pairs: Sequence[T],
    group_of: Callable[[T], Group],
    cap: int,
    *,
    name_of: Callable[[T], str],
    ratio: float = 3.0,
    seed: int = 0,
    branches: Iterable[Group] = (),
) -> list[T]:
    """At most `cap` pairs per (family, branch), and in a family no branch more than `ratio` times its smallest.

    Learning from one branch of a judgement alone turns its error round ("always cancel" instead of "never cancel"; measured: four
    pairs that say "act" ended all asking back). Which ones go is drawn by the seed; those that stay keep their order.

    Args:
        name_of: what tells pairs apart, the same in every run.
        branches: every (family, branch) there is: a family that has pairs on some of its branches only keeps none.
    """
    groups: dict[Group, list[str]] = {group: [] for group in branches}
    for pair in pairs:
        groups.setdefault(group_of(pair), []).append(name_of(pair))
    smallest = rarest(groups)
    kept: set[str] = set()
    for (family, branch), members in sorted(groups.items()):
        if branch and members and not smallest[family]:
            text = (
                "%d pairs of %s/%s are left out: another side of this judgement has none, and one side alone teaches to act always alike; "
                "sample or compare more runs of the other sides"
            )
            logger.warning(text, len(members), family, branch)
        limit = min(cap, int(ratio * smallest[family])) if branch else cap
        names = sorted(set(members))
        random.Random(f"{seed}/{(family, branch)}").shuffle(names)
        kept.update(names[:limit])
    return [pair for pair in pairs if name_of(pair) in kept]


def rarest(groups: Mapping[Group, Sequence[object]]) -> dict[str, int]:
    """Family with sides -> how many its rarest side has."""
    found: dict[str, list[int]] = defaultdict(list)
    for (family, branch), members in groups.items():
        found[family] += [len(members)] if branch else []
    return {family: min(sizes) for family, sizes in found.items() if sizes}


def describe(preferences: Iterable[Preference], group_of: Callable[[Preference], Group]) -> dict[str, dict[str, int]]:
    """Counts to print: per criterion, source, level ("run" or "step"), outcome, family, and "family/branch"."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("criterion", "source", "level", "outcome", "family", "branch")}
    for preference in preferences:
        family, branch = group_of(preference)
        counts["criterion"][preference.criterion] += 1
        counts["source"][preference.source] += 1
        counts["level"]["run" if preference.items[0].step is None else "step"] += 1
        counts["outcome"][_outcome(preference)] += 1
        counts["family"][family] += 1
        counts["branch"][f"{family}/{branch}" if branch else family] += 1
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()}


def _outcome(preference: Preference) -> str:
    said = {"tie": preference.tie, "both bad": preference.both_bad, "withdrawn": preference.withdrawn, "can't judge": preference.cant_judge}
    return next((outcome for outcome, holds in said.items() if holds), "decided")


def runs_by_task(trajectories: Iterable[Trajectory]) -> dict[tuple[str, str], list[Trajectory]]:
    """Runs of one taskset and task together; imported runs without a task id by their tools and messages before the first act."""
    groups: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        groups[(trajectory.taskset, trajectory.same_task_key())].append(trajectory)
    return dict(groups)


def _by_task(runs: Sequence[Scored], seed: int, always: frozenset[str] | set[str] = frozenset()) -> list[list[_Run]]:
    """Usable runs per task, tasks and runs in an order that does not depend on the order given."""
    # A run that broke says something about the environment, not about the agent; one without a step has nothing to learn from.
    worths = {t.id: worth for t, worth in runs if worth is not None and t.stop_reason != StopReason.ERROR and t.steps}
    usable = {t.id: t for t, _ in runs if t.id in worths}
    groups = []
    for key, members in sorted(runs_by_task(usable.values()).items()):
        members.sort(key=lambda trajectory: trajectory.id)
        if len(members) > MOST_RUNS:
            random.Random(f"{seed}/{key}").shuffle(members)
            members.sort(key=lambda trajectory: trajectory.id not in always)
            members = sorted(members[:MOST_RUNS], key=lambda trajectory: trajectory.id)
        tree: dict[tuple[object, ...], int] = {}
        groups.append([_Run(t, _nodes(t, tree), worths[t.id]) for t in members])
    return groups


def _nodes(trajectory: Trajectory, tree: dict[tuple[object, ...], int]) -> tuple[int, ...]:
    numbers: dict[str, int] = {}
    node = tree.setdefault(("tools", trajectory.tools), len(tree))
    nodes = []
    for message in trajectory.messages:
        node = tree.setdefault((node, *_key(message, numbers)), len(tree))
        nodes.append(node)
    return tuple(nodes)


def _key(message: Message, numbers: dict[str, int]) -> tuple[object, ...]:
    for call in message.tool_calls:
        numbers[call.id] = len(numbers)
    calls = tuple((numbers[call.id], call.name, call.arguments) for call in message.tool_calls)
    answers = numbers.get(message.tool_call_id) if message.tool_call_id is not None else None
    return message.role, message.content, message.reasoning, calls, answers, message.name, message.error, message.malformed


def _parting(first: _Run, second: _Run) -> int | None:
    """Message index of the first difference, where both runs have an assistant message there."""
    for place, (one, other) in enumerate(zip(first.nodes, second.nodes, strict=False)):
        if one != other:
            roles = {first.trajectory.messages[place].role, second.trajectory.messages[place].role}
            same_tools = first.trajectory.tools == second.trajectory.tools
            return place if roles == {"assistant"} and same_tools else None
    return None


def _step_index(trajectory: Trajectory, place: int) -> int:
    return sum(message.role == "assistant" for message in trajectory.messages[:place])


def _contests(first: Sequence[_Run], second: Sequence[_Run], margin: float) -> Iterable[_Contest]:
    vetoed = {run.nodes[-1] for run in (*first, *second) if run.worth.vetoed}  # and whoever said the same is no better
    for better in first:
        for worse in second if better.nodes[-1] not in vetoed else ():
            criteria = better.worth.answered & worse.worth.answered
            values = better.worth.by(criteria), worse.worth.by(criteria)
            if values[0] is None or values[1] is None:
                continue
            gap = values[0] - values[1]
            if gap >= margin - _ROUNDING and gap > 0:
                yield _Contest(better, worse, criteria, (values[0], values[1]))


def _preferences(
    group: Sequence[_Run], candidates: Sequence[_Candidate], per_task: int, seed: int, source: Literal["scores", "correction"]
) -> list[Preference]:
    """Up to `per_task` of the candidates: two contents once, unused items first, then the widest gap, then by chance.

    Pairs of runs that were judged by other criteria may say the opposite of the same two contents: of these, what more criteria say
    stands, and nothing where as many do.
    """
    distinct: dict[frozenset[int], _Candidate] = {}
    even: set[frozenset[int]] = set()
    for candidate in candidates:
        contents = frozenset(candidate.sides)
        known = distinct.setdefault(contents, candidate)
        more = len(candidate.contest.criteria) - len(known.contest.criteria)
        if more == 0 and candidate.sides != known.sides:
            even.add(contents)
        elif more > 0:
            distinct[contents] = candidate
            even.discard(contents)
        elif more == 0 and round(candidate.gap, 6) > round(known.gap, 6):
            distinct[contents] = candidate
    left = sorted(
        (one for contents, one in distinct.items() if contents not in even), key=lambda c: (c.better.trajectory, c.worse.trajectory)
    )
    random.Random(f"{seed}/{source}/{group[0].trajectory.same_task_key()}").shuffle(left)
    used: Counter[int] = Counter()
    runs = {run.trajectory.id: run for run in group}
    chosen: list[Preference] = []
    while left and len(chosen) < per_task:
        best = min(left, key=lambda c: (used[c.sides[0]] + used[c.sides[1]], -round(c.gap, 6)))
        left.remove(best)
        used.update(best.sides)
        chosen.append(_preference(runs[best.better.trajectory], best, source))
    return chosen


def _preference(better: _Run, candidate: _Candidate, source: Literal["scores", "correction"]) -> Preference:
    rater = "overall" if source == "scores" else better.trajectory.origin.reference
    items: list[JsonValue] = [list(candidate.better), list(candidate.worse)]
    return Preference(
        taskset=better.trajectory.taskset,
        items=(candidate.better, candidate.worse),
        source=source,
        rater=rater,
        note=candidate.contest.note,
        # Without time and values: making the same pairs again adds nothing to the store.
        id=digest([better.trajectory.taskset, items, source, rater]),
    )
