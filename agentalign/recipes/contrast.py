"""Pairs from demonstrations that say where an action is right which the preferences mostly reject.

Preferences speak of where a policy goes wrong. An action that most of them reject is unlearned everywhere, also where it is right and
never went wrong, so that no preference speaks for it: seven pairs "look the order up, do not track it" ended the tracking of orders in
13 of 18 tasks that had all gone well, though demonstrations of it were replayed. Pairs in the other direction, in the contexts of such
demonstrations, teach the difference.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from agentalign.errors import AgentAlignError
from agentalign.recipes.compared import sides_of
from agentalign.recipes.data import Part, Turn
from agentalign.recipes.listed import Pick, picked_apart, unlike
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import inherited_tokens
from agentalign.scoring.pairs import parting_step
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect
from agentalign.training.render import Rendered, render

logger = logging.getLogger("agentalign")


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


class Compared(NamedTuple):
    """A pair that a preference makes: one turn of one token on each side, and the runs."""

    chosen: Part
    rejected: Part
    better: Trajectory
    worse: Trajectory


def contrasts(
    pairs: Sequence[Compared],
    demonstrations: Sequence[Trajectory],
    rendered: Mapping[str, Rendered],
    render_altered: Callable[[Trajectory, str], Rendered],
) -> list[Contrast]:
    """What speaks for what the pairs mostly reject: a token at a place of the turn, or, where two runs took different entries of a list,
    the entry's place in it.

    Args:
        demonstrations: to take contexts from; each is used as often as any other.
        rendered: the worse runs and the demonstrations as tokens; a demonstration that is not there was refused.
        render_altered: a demonstration that takes another entry, and the demonstration's id, as tokens.
    """
    shown = {run.id: rendered[run.id] for run in demonstrations if run.id in rendered}
    taken: dict[int, tuple[Pick, Pick]] = {}
    for index, pair in enumerate(pairs):
        parting = parting_step(pair.better, pair.worse)
        if parting is not None and (both := picked_apart(pair.better, pair.worse, parting)):
            taken[index] = both
    tokens = _token_contrasts([pair for index, pair in enumerate(pairs) if index not in taken], rendered, list(shown.values()))
    own_from = {id: run.inherited for id, run in shown.items()}
    places = []
    for one in unlike(list(taken.values()), [run for run in demonstrations if run.id in shown], own_from):
        id = one.demonstration.id
        try:
            altered = render_altered(one.altered, id)
        except AgentAlignError as error:
            logger.info("pairs: no demonstration is made of one that takes another entry: %s", error)
            continue
        if sides := sides_of(shown[id], altered, one.step, "token"):
            places.append(Contrast(*sides, id))
    text = "pairs: %d more from demonstrations, for what the preferences mostly reject, and %d for the places in lists that they do"
    logger.info(text, len(tokens), len(places))
    return [*tokens, *places]


def rendered_beside(store: Store, dialect: Dialect, altered: Trajectory, original: str) -> Rendered:
    """An altered copy of a run as tokens, which up to there are those that the run recorded."""
    record = inherited_tokens(altered, store.tokens(original))
    return render(altered, dialect, tokens=record[0] if record else None, max_tokens=None)


def _token_contrasts(pairs: Sequence[Compared], runs: Mapping[str, Rendered], demonstrations: Sequence[Rendered]) -> list[Contrast]:
    """For what is rejected at a place more than twice as often as preferred, as many demonstrations that go on just so as are missing."""
    preferred = Counter(_choice(pair.chosen, runs[pair.worse.id]) for pair in pairs)
    against: dict[Choice, list[int]] = {}
    for pair in pairs:
        against.setdefault(_choice(pair.rejected, runs[pair.worse.id]), []).append(pair.chosen.turns[0].completion[0])
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
    return run.inherited <= at.turn < len(run.turns) and run.turns[at.turn].completion[: len(written)] == written
