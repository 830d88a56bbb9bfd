"""The parts of two runs that a preference compares: from where they part, or the turn or the token that they part at."""

from collections.abc import Sequence

from agentalign.recipes.data import Part, Turn, whole
from agentalign.training.render import Rendered


def sides_of(best: Rendered, worst: Rendered, parting: int | None, credit: str) -> tuple[Part, Part] | None:
    """What is compared: tokens that both sides wrote after the same context stay as context only.

    In the sigmoid loss their weight is exactly 0. In ipo, which divides by lengths, it would not be: left out there as well, a margin per
    token is one per token that differs, and does not grow smaller by what two runs have in common.
    """
    if credit == "run":
        return apart(whole(best).turns, whole(worst).turns)
    if parting is None or parting >= min(len(best.turns), len(worst.turns)):
        return None
    # The worse side's context: it is what the policy really saw, and both sides answer the same messages.
    context = worst.turns[parting].context
    sides = apart((Turn(context, best.turns[parting].completion),), (Turn(context, worst.turns[parting].completion),))
    if sides is None or credit != "token":
        return sides
    first, second = (side.turns[0] for side in sides)
    if first.completion[0] == second.completion[0]:
        return None
    return Part((Turn(first.context, first.completion[:1]),)), Part((Turn(second.context, second.completion[:1]),))


def apart(best: Sequence[Turn], worst: Sequence[Turn]) -> tuple[Part, Part] | None:
    """Both sides from where they part; None where they never do. Each keeps at least one token to train."""
    first = next((i for i, (a, b) in enumerate(zip(best, worst, strict=False)) if a != b), min(len(best), len(worst)))
    if first == len(best) == len(worst):
        return None
    first = min(first, len(best) - 1, len(worst) - 1)
    (one, *more), (other, *others) = best[first:], worst[first:]
    if one.context == other.context:
        pairs = zip(one.completion, other.completion, strict=False)
        shortest = min(len(one.completion), len(other.completion))
        shared = min(next((i for i, (a, b) in enumerate(pairs) if a != b), shortest), shortest - 1)
        one, other = (Turn((*turn.context, *turn.completion[:shared]), turn.completion[shared:]) for turn in (one, other))
    return Part((one, *more)), Part((other, *others))
