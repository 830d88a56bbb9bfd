"""Pairs from demonstrations that say where an action is right which the preferences mostly reject.

Preferences speak of where a policy goes wrong. An action that most of them reject is unlearned everywhere, also where it is right and
never went wrong, so that no preference speaks for it: seven pairs "look the order up, do not track it" ended the tracking of orders in
13 of 18 tasks that had all gone well, though demonstrations of it were replayed. Pairs in the other direction, in the contexts of such
demonstrations, teach the difference.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentalign.recipes.data import Part, Turn
from agentalign.training.render import Rendered


class Choice(NamedTuple):
    """A place where two tokens were compared, told apart by the turn and what the agent had written of it."""

    turn: int
    written: tuple[int, ...]
    """What both sides wrote of the turn before they part."""
    token: int


class Contrast(NamedTuple):
    """A demonstration's token over the one that preferences like better at such a place."""

    chosen: Part
    rejected: Part
    demonstration: str
    """Trajectory id."""


def contrasts(sides: Sequence[tuple[Part, Part, str]], runs: Mapping[str, Rendered], demonstrations: Sequence[Rendered]) -> list[Contrast]:
    """For what is rejected at a place more than twice as often as preferred, as many demonstrations that go on just so as are missing.

    Args:
        sides: per pair the chosen and the rejected part, each one turn of one token, and the id of the worse run.
        runs: the worse runs as tokens.
        demonstrations: to take contexts from; each is used as often as any other.
    """
    preferred = Counter(_choice(chosen, runs[worse]) for chosen, _, worse in sides)
    against: dict[Choice, list[int]] = {}
    for chosen, rejected, worse in sides:
        against.setdefault(_choice(rejected, runs[worse]), []).append(chosen.turns[0].completion[0])
    used: Counter[str] = Counter()
    found = []
    for at, instead in against.items():
        fitting = [run for run in demonstrations if _goes_on(run, at)]
        if not fitting or len(instead) <= 2 * preferred[at]:
            continue
        for token in instead[preferred[at] :]:
            run = min(fitting, key=lambda run: (used[run.trajectory], run.trajectory))
            used[run.trajectory] += 1
            context = (*run.turns[at.turn].context, *at.written)
            better, worse_side = (Part((Turn(context, (one,)),)) for one in (at.token, token))
            found.append(Contrast(better, worse_side, run.trajectory))
    return found


def _choice(side: Part, run: Rendered) -> Choice:
    """Both sides of a pair stand in the worse run's context."""
    context = side.turns[0].context
    turn = max(i for i, one in enumerate(run.turns) if len(one.context) <= len(context))
    return Choice(turn, context[len(run.turns[turn].context) :], side.turns[0].completion[0])


def _goes_on(run: Rendered, at: Choice) -> bool:
    written = (*at.written, at.token)
    return at.turn < len(run.turns) and run.turns[at.turn].completion[: len(written)] == written
