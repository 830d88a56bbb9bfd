"""What a run is worth by some of the team's criteria, so that two runs can be compared by what both were asked."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from agentalign.records.criterion import Criterion, Score, answered_criteria, overall


class Worth(NamedTuple):
    """What a run is worth, by any of the criteria that it was judged by."""

    answered: frozenset[str]
    """Those that have an answer; "does not apply" is one."""
    by: Callable[[frozenset[str]], float | None]
    """The overall value by some of them alone; None where these say nothing."""
    vetoed: bool = False
    """A gate failed, whichever: such a run is worth 0 beside any other, and better than none."""


def worth(criteria: Sequence[Criterion], scores: Sequence[Score]) -> Worth | None:
    """What a run's scores say by each part of the criteria; None where the overall value cannot be known."""
    whole = overall(criteria, scores)
    if whole is None:
        return None

    @cache
    def by(some: frozenset[str]) -> float | None:
        asked = [criterion for criterion in criteria if criterion.key in some]
        value = overall(asked, scores) if whole else 0.0  # a veto holds, whoever else was asked
        # Gates alone have no mean, but passing them is better than failing.
        return 1.0 if value is None and asked and all(criterion.gate for criterion in asked) else value

    return Worth(answered_criteria(scores) & {criterion.key for criterion in criteria}, by, vetoed=whole == 0.0)
