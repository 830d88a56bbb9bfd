"""What can go wrong in a training while its loss looks fine: a pure function over the rows of metrics.jsonl.

Every alarm is a rule of thumb with its figures in the sentence, so that whoever reads it can disagree. Surprise: reward is compared
with what it does *not* measure. The reward a policy learns from always rises; what tells learning from gaming is whether dev
success, and people who compare dev runs without knowing which is which, go along.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import JsonValue

from agentalign.scoring.intervals import wilson

Rows = Sequence[Mapping[str, JsonValue]]
Level = Literal["warn", "bad"]

KL_MOST = 10.0
"""Nats per run from which on a policy is far from its reference, whatever it gained (Gao et al. 2023, arXiv:2210.10760, figure 1)."""
KL_FAST = 3.0
"""KL that grew this many times over the last third of a training runs away, ..."""
KL_SMALL = 1.0
"""... if it is more than so many nats: from next to nothing everything is a multiple."""
FELL = 0.05
"""Dev success that lost more than this is no single task."""
DRIFT = 1.5
"""Answers this many times as long, or as short, as they were are another kind of answer."""
FLAT = 0.02
"""A loss that fell by less than this share of itself has not fallen."""
ROWS = 24
"""A flat loss is not told before so many steps: the learning rate warms up first."""
VOTES = 8
"""Fewer comparisons by people say nothing."""
SKIPS = 3
"""So many skipped steps among the last `RECENT` are no accident."""
RECENT = 50
REWARDS = ("reward/gain", "reward/mean", "rewards/margins")
"""What counts as reward, the comparable one first: PPO's gain over stored runs, its mean, DPO's implied margin."""
LENGTHS = ("eval/tokens", "tokens_per_run")


class Alarm(NamedTuple):
    """One thing to look at."""

    name: str
    level: Level
    step: int
    """The step it is about; the newest where it is about the whole."""
    text: str


class Vote(NamedTuple):
    """A person compared a dev run of a step with the same task's run of the start, blind."""

    step: int
    won: float
    """1 where the later run is better, 0 where it is worse, 0.5 for a tie or both bad."""


def alarms(rows: Rows, votes: Sequence[Vote] = ()) -> list[Alarm]:
    """Everything that looks wrong, worst first.

    Args:
        rows: of metrics.jsonl, in order.
        votes: what people held of its dev runs.
    """
    rules: Sequence[Callable[[], Alarm | None]] = (
        lambda: _kl(rows),
        lambda: _hacking(rows),
        lambda: _people(rows, votes),
        lambda: _length(rows),
        lambda: _skips(rows),
        lambda: _flat(rows),
    )
    found = [alarm for rule in rules if (alarm := rule()) is not None]
    return sorted(found, key=lambda alarm: alarm.level)  # "bad" before "warn"


def _kl(rows: Rows) -> Alarm | None:
    points = _points(rows, "kl")
    if len(points) < 2:
        return None
    step, now = points[-1]
    before = _mean([value for _, value in points[: max(1, 2 * len(points) // 3)]])
    if now > KL_MOST:
        text = f"KL to the reference is {now:.1f} nats per run; beyond {KL_MOST:g} a policy is another model. Stop, and raise kl_beta."
        return Alarm("KL runaway", "bad", step, text)
    if now > KL_SMALL and now > KL_FAST * before:
        # An estimate may be 0, or below, as at the first iteration: then it is a multiple of nothing.
        pace = f"{now / before:.0f} times its mean up to then" if before > 0.01 else f"and was {before:.2f} on average up to then"
        text = f"KL to the reference is {now:.1f} nats per run, {pace}."
        return Alarm("KL runaway", "warn", step, text)
    return None


def _hacking(rows: Rows) -> Alarm | None:
    dev = _points(rows, "eval/success")
    rise = _rise(rows)
    if len(dev) < 2 or rise is None:
        return None
    (best_step, best), (step, now) = max(dev[:-1], key=lambda point: point[1]), dev[-1]
    if now >= best - FELL or rise.now <= rise.before:
        return None
    text = (
        f"{rise.name} rose from {rise.before:.2f} to {rise.now:.2f} while dev success fell from {best:.2f} (step {best_step}) to "
        f"{now:.2f}. It may be learning the measure, not the task. Read the runs of both steps."
    )
    return Alarm("reward up, dev down", "bad", step, text)


def _people(rows: Rows, votes: Sequence[Vote]) -> Alarm | None:
    rise = _rise(rows)
    if len(votes) < VOTES or rise is None or rise.now <= rise.before:
        return None
    won = sum(vote.won for vote in votes)
    _, high = wilson(won, len(votes))
    if high >= 0.5:
        return None
    text = (
        f"{rise.name} rose from {rise.before:.2f} to {rise.now:.2f}, but people preferred the start's dev runs: "
        f"the later ones won {won:g} of {len(votes)} blind comparisons."
    )
    return Alarm("reward up, people down", "bad", max(vote.step for vote in votes), text)


def _length(rows: Rows) -> Alarm | None:
    for name in LENGTHS:
        points = _points(rows, name)
        if len(points) < 2:
            continue
        third = max(1, len(points) // 3)
        before, now = (_mean([value for _, value in part]) for part in (points[:third], points[-third:]))
        if before > 0 and not 1 / DRIFT <= now / before <= DRIFT:
            way = "longer" if now > before else "shorter"
            text = f"the agent writes {now:.0f} tokens a run, {way} than the {before:.0f} it began with. See what it says more or less of."
            return Alarm("length drift", "warn", points[-1][0], text)
    return None


def _skips(rows: Rows) -> Alarm | None:
    steps = [row for row in rows if "loss" in row or row.get("skipped")]
    skipped = [_step(row) for row in steps if row.get("skipped")]
    if not skipped:
        return None
    recent = sum(bool(row.get("skipped")) for row in steps[-RECENT:])
    many = f"{len(skipped)} {'step' if len(skipped) == 1 else 'steps'}"
    text = f"{many} of {len(steps)} had numbers that are not finite and were skipped. not_finite.jsonl in its folder names the runs."
    return Alarm("not finite", "bad" if recent >= SKIPS else "warn", skipped[-1], text)


def _flat(rows: Rows) -> Alarm | None:
    if any("loss/policy" in row for row in rows):
        return None  # a policy gradient's loss is no measure of anything
    points = _points(rows, "loss")
    if len(points) < ROWS:
        return None
    third = len(points) // 3
    before, now = (_mean([value for _, value in part]) for part in (points[:third], points[-third:]))
    if now < before - FLAT * abs(before):
        return None
    text = f"the loss is {now:.3g} and was {before:.3g} in the first third: nothing is learned. Change learning_rate, or see the data."
    return Alarm("loss flat", "warn", points[-1][0], text)


class _Rise(NamedTuple):
    name: str
    before: float
    now: float


def _rise(rows: Rows) -> _Rise | None:
    """The reward in the first and in the last third of the steps that have one."""
    for name in REWARDS:
        points = _points(rows, name)
        if len(points) > 1:
            third = max(1, len(points) // 3)
            return _Rise(name, *(_mean([value for _, value in part]) for part in (points[:third], points[-third:])))
    return None


def _points(rows: Rows, name: str) -> list[tuple[int, float]]:
    """(step, value) where there is a finite one; of a step that was skipped there is none."""
    found = [(_step(row), row.get(name)) for row in rows if not row.get("skipped")]
    numbers = [(step, value) for step, value in found if isinstance(value, int | float) and not isinstance(value, bool)]
    return [(step, float(value)) for step, value in numbers if math.isfinite(value)]


def _step(row: Mapping[str, JsonValue]) -> int:
    step = row.get("step")
    return int(step) if isinstance(step, int | float) else 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
